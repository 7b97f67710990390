"""The folder for downloaded and computed files."""

from __future__ import annotations

import os
from pathlib import Path

from modeling_tsarank.ranking_errors import ResourceError


CACHE_VARIABLE = "TSARANK_CACHE"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """`cache_dir`, else `$TSARANK_CACHE`, else `tsarank` under `$XDG_CACHE_HOME`, else `~/.cache/tsarank`.

    A relative `$XDG_CACHE_HOME` is ignored, as required by the XDG Base Directory Specification.

    Raises:
        ResourceError: There is no home folder.
    """
    try:
        chosen = cache_dir if cache_dir is not None else os.environ.get(CACHE_VARIABLE)
        if chosen:
            return Path(chosen).expanduser()
        base = Path(os.environ.get("XDG_CACHE_HOME", "")).expanduser()
        return (base if base.is_absolute() else Path.home() / ".cache") / "tsarank"
    except RuntimeError as error:
        raise ResourceError(f"no folder for the cache: {error}; set {CACHE_VARIABLE}") from error

"""What distinguishes models of the same name: the content of their files, or the commit on the Hub."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..files.hashes import hash_file, hash_folder
from ..files.reading import read_json_object
from ..ranking_errors import InputError


def model_fingerprint(name_or_path: str, commit: str | None = None) -> dict[str, Any]:
    """The identity of a model for use in a key: the content of its folder or file, or a Hub id and its commit.

    An adapter is identified together with its base model.
    """
    path = Path(name_or_path)
    if path.is_file():
        return {"model": f"sha256:{hash_file(path)}"}
    if not path.is_dir():
        return {"model": name_or_path, "commit": commit or hub_commit(name_or_path)}
    facts: dict[str, Any] = {"model": f"sha256:{hash_folder(path, deep=True)}"}
    base, _ = adapter_base(path)
    return facts if base is None else {**facts, "base": model_fingerprint(base)}


def adapter_base(folder: Path) -> tuple[str | None, str | None]:
    """Name and revision of the base model of a folder's adapter, `None` where not recorded."""
    config: dict[str, Any] = {}
    with contextlib.suppress(InputError):
        config = read_json_object(folder / "adapter_config.json")
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    known = isinstance(base, str) and base != "" and "\0" not in base and Path(base).resolve() != folder.resolve()
    return base if known else None, revision if isinstance(revision, str) else None


def hub_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a Hub id would be loaded at, or `None` if it cannot be determined.

    A branch moves: a name alone does not identify the weights.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(name, "config.json", revision=revision)
    except (OSError, ValueError):
        return None
    parts = Path(found or "").parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None

"""Folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.writing import whole_file, write_json
from modeling_tsarank.ranking_errors import ResourceError, TSARankError


_FULL_BYTES = 1 << 20


@contextlib.contextmanager
def writing_errors(what: str, folder: str | Path) -> Iterator[None]:
    """Turns the refusal to write into one line, whichever library meets it.

    Raises:
        ResourceError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, TSARankError):
            raise
        # torch and safetensors say of a full disk that a position is unexpected.
        full = False
        with contextlib.suppress(OSError):
            full = shutil.disk_usage(folder).free < _FULL_BYTES
        if isinstance(error, RuntimeError) and not full and "inline_container" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        reason = "no space left on device" if full else reason
        raise ResourceError(
            f"{what} cannot be written to {folder}: {reason}; make room and resume from the last checkpoint"
        ) from error


@contextlib.contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, whose files are moved into `folder` when the body ends without an error.

    Files of the same name are replaced one by one, each in one step; other files of `folder` are left alone. After an
    error nothing has changed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        yield staging
        for source in sorted(path for path in staging.rglob("*") if path.is_file()):
            with whole_file(folder / source.relative_to(staging)) as temporary:
                shutil.move(source, temporary)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def set_config_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Writes the dtype into the folder's config.json."""
    path = folder / "config.json"
    config = read_json_object(path)
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_json(path, config)

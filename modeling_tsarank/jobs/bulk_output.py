"""Parquet files that say what they were made from and whether they are still what was written."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..files.writing import replacement
from .bulk_pairs import arrow


logger = logging.getLogger(__name__)

_JOB_KEY = b"tsarank.job"
_DATA_KEY = b"tsarank.data.sha256"
# A Parquet file ends in its footer, the footer's length (4 bytes) and a mark (4 bytes).
_TAIL = 8


class _HashingFile:
    """A file for pyarrow to write to, which hashes what passes through."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


@contextmanager
def hashed_parquet(path: Path, schema: Any, digest: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetWriter` for a file that appears whole or not at all.

    The footer holds `digest`, which identifies the job, and the SHA-256 of all bytes before the footer. Raises
    `OSError`.
    """
    with replacement(path) as temporary, temporary.open("wb") as file:
        sink = _HashingFile(file)
        with arrow().parquet.ParquetWriter(sink, schema) as writer:
            yield writer
            writer.add_key_value_metadata({_JOB_KEY: digest, _DATA_KEY: sink.sha256.hexdigest()})


def is_output_of(path: Path, digest: str, columns: Sequence[str] | None = None, rows: int | None = None) -> bool:
    """Whether a file is there as `hashed_parquet` wrote it for this job: every byte before the footer is read."""
    if not path.is_file():
        return False
    pyarrow = arrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            found, names = file.metadata, file.schema_arrow.names
            facts = found.metadata or {}
        if facts.get(_JOB_KEY) != digest.encode():
            return False
        if (columns is not None and list(columns) != names) or (rows is not None and rows != found.num_rows):
            return False
        if facts.get(_DATA_KEY) == _data_hash(path).encode():
            return True
    except (pyarrow.ArrowException, OSError, ValueError):
        pass
    logger.warning("%s is damaged or was edited, and is made again", path)
    return False


def _data_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(size - _TAIL)
        left = size - _TAIL - int.from_bytes(file.read(4), "little")
        file.seek(0)
        while piece := file.read(min(left, 1 << 20)):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()

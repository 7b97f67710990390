"""The files of a store: safetensors with one tensor of bytes per document, indexed by the header."""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ..files.reading import parse_json
from ..files.writing import replacement, system_errors
from .state_bytes import STATE_DTYPES


logger = logging.getLogger(__name__)

FORMAT = "tsarank document states 1"
SUFFIX = ".safetensors"
_ALIGN = 64


class Entry(NamedTuple):
    """One document's bytes in a shard."""

    key: str
    shard: str
    start: int
    size: int


def disk_errors(folder: Path) -> AbstractContextManager[None]:
    """Converts errors on a folder into one line that says what to do."""
    full = (
        f"no space left in {folder} for document states; free some space or lower the store's bound and run it again "
        "(entries written before stay valid)"
    )
    return system_errors(f"cannot use the store {folder} for its document states", full=full)


def write_shard(path: Path, blobs: Sequence[tuple[str, bytes]], dtype: str) -> list[Entry]:
    """Writes a safetensors file, complete or not at all, and returns where each document is in it.

    Not written with the safetensors library, because the index needs the offsets and the caller the system's own
    error. Raises `OSError`.
    """
    header: dict[str, object] = {"__metadata__": {"format": FORMAT, "dtype": dtype}}
    ends = list(accumulate(len(blob) for _, blob in blobs))
    for (key, blob), end in zip(blobs, ends, strict=True):
        header[key] = {"dtype": "U8", "shape": [len(blob)], "data_offsets": [end - len(blob), end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    with replacement(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for _, blob in blobs:
            file.write(blob)
    begin = 8 + len(text)
    sized = ((key, len(blob), end) for (key, blob), end in zip(blobs, ends, strict=True))
    return [Entry(key, path.name, begin + end - size, size) for key, size, end in sized]


def read_shard(path: Path) -> tuple[str, list[Entry]]:
    """A shard's format, and where each document is in it, from its header.

    Returns nothing, with a warning, for a file that is not a shard.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
            if length >= size:
                raise ValueError("its header is incomplete")
            header, start = parse_json(file.read(length), str(path)), 8 + length
        if not isinstance(header, dict) or header.get("__metadata__", {}).get("format") != FORMAT:
            raise ValueError("its header names another format")
        dtype = header["__metadata__"]["dtype"]
        places = {key: tensor["data_offsets"] for key, tensor in header.items() if key != "__metadata__"}
        entries = [Entry(key, path.name, start + first, end - first) for key, (first, end) in places.items()]
        if dtype not in STATE_DTYPES or any(min(entry.start - start, entry.size) < 0 for entry in entries):
            raise ValueError("its header is malformed")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is not a shard of document states and is ignored (%s)", path, error)
        return "", []
    return dtype, [entry for entry in entries if entry.start + entry.size <= size]

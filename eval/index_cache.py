"""On-disk cache of retrieval indexes, keyed by everything that an index is built from."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from modeling_tsarank.files.caches import CACHE_VARIABLE, cache_root
from modeling_tsarank.files.hashes import hash_file, hash_parts
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import whole_folder, write_json
from modeling_tsarank.ranking_errors import InputError, ResourceError


logger = logging.getLogger(__name__)

T = TypeVar("T")

_MANIFEST = "manifest.json"


class BrokenIndexError(Exception):
    """A cached index cannot be used and must be rebuilt."""


def content_hash(ids: Sequence[str], texts: Sequence[str]) -> str:
    """Hash (hexadecimal, 128 bits) of documents in their order.

    Raises:
        InputError: There are no documents, the two lengths differ, or an id appears twice.
    """
    if not len(ids) or len(ids) != len(texts):
        raise InputError(f"an index needs one id for every text and at least one: {len(ids)} ids, {len(texts)} texts")
    if len(set(ids)) != len(ids):
        raise InputError(f"an index needs unique ids: {len(ids)} ids, {len(set(ids))} different ones")
    return hash_parts(part for pair in zip(ids, texts, strict=True) for part in pair)[:32]


def cached_index(
    kind: str,
    made_from: Mapping[str, Any],
    build: Callable[[Path], None],
    load: Callable[[Path], T],
    cache_dir: str | os.PathLike[str] | None = None,
) -> T:
    """Loads the index of `made_from` from the cache, after building it if necessary.

    The entry is the folder `CACHE/indexes/KIND-KEY`, created atomically by a rename; a manifest inside records
    `made_from` and the SHA-256 of every file. An entry that does not match its manifest or that `load` rejects is
    rebuilt, with a warning. If several processes need the same index, one builds it and the others wait.

    Args:
        kind: `bm25`, `dense` or `splade`.
        made_from: JSON-serializable parameters, library versions, model and content hash.
        build: Writes the index into an empty folder.
        load: Reads it from the folder; raises OSError, ValueError, KeyError or EOFError if the files are invalid.
        cache_dir: See `files.caches.cache_root`.

    Raises:
        ResourceError: The cache folder cannot be written.
    """
    described = {"kind": kind, **made_from}
    key = hash_parts([json.dumps(described, sort_keys=True)])[:24]
    folder = cache_root(cache_dir) / "indexes" / f"{kind}-{key}"
    try:
        return _load_checked(folder, described, load)
    except BrokenIndexError:
        logger.debug("%s is missing or incomplete", folder)  # checked again under the lock
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            return _load_or_build(folder, described, build, load)
    except OSError as error:
        raise ResourceError(
            f"the index cannot be written to {folder.parent}: {error.strerror or error}; "
            f"set {CACHE_VARIABLE} to another folder"
        ) from error


def _load_or_build(
    folder: Path, described: Mapping[str, Any], build: Callable[[Path], None], load: Callable[[Path], T]
) -> T:
    """Checks again and builds, under the lock of the entry."""
    if folder.is_dir():
        try:
            return _load_checked(folder, described, load)
        except BrokenIndexError as error:
            logger.warning("the cached index %s is incomplete (%s) and is rebuilt", folder, error)
    for leftover in folder.parent.glob(f".{folder.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a killed build; holding the lock, we know it is not running
    with whole_folder(folder) as unfinished:
        build(unfinished)
        write_json(unfinished / _MANIFEST, _manifest(unfinished, described))
    try:
        return _load_checked(folder, described, load)
    except BrokenIndexError as error:
        raise ResourceError(f"the index just built in {folder} cannot be read back: {error}") from error


def _load_checked(folder: Path, described: Mapping[str, Any], load: Callable[[Path], T]) -> T:
    try:
        if read_json(folder / _MANIFEST) != json.loads(json.dumps(_manifest(folder, described))):
            raise BrokenIndexError("its files differ from those that were written")
        return load(folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BrokenIndexError(f"{type(error).__name__}: {error}") from error


def _manifest(folder: Path, described: Mapping[str, Any]) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {"made_from": described, "files": {path.relative_to(folder).as_posix(): hash_file(path) for path in paths}}

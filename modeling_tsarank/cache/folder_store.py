"""Document states on disk: a folder of memory-mapped safetensors files, shared by any number of processes.

File headers index where each document's states are. They are read when a store is opened; headers of new files when a
document is not found. Documents are written many at a time, in files that are complete or absent. An entry has its key
and a checksum; a truncated, corrupted or missing entry counts as absent and is written again, and of two entries the
one in the newer file counts. Entries of several models share a folder; their keys differ.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from ..engine.state_blocks import Groups, Layers
from ..ranking_errors import InputError, ResourceError
from ..ranking_options import whole_number
from .memory_store import LeastRecentlyUsed, MemoryStore, StateStore
from .shards import SUFFIX, Entry, disk_errors, read_shard, write_shard
from .state_bytes import DamagedStatesError, check_state_dtype, decode_states, encode_states, fill_states


__all__ = ["FolderStore", "MemoryStore", "StateStore", "open_store", "use_store"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_DTYPE = "int8"
_OPEN_SHARDS = 256
_LOCK_SECONDS = 600.0


def _is_ours(path: Path) -> bool:
    return path.suffix in (SUFFIX, ".partial") or path.name.startswith((".lock", "index.sqlite", "documents.sqlite"))


class FolderStore(StateStore):
    """Document states in a folder.

    Parameters:
        folder: created if missing.
        dtype: `int8` (default for a new store; a quarter of float32), `bfloat16`, `float16` or `float32`. `None` takes
            the folder's format; a store has one format.
        max_disk_bytes: bound of the folder; the least recently used files are deleted. `None`: no bound.
        max_memory_bytes: bound of the in-memory cache, so that frequent documents are read and checked only once; 0
            for no cache.
        shard_bytes: how much is buffered in memory before a file is written; `flush` and `close` write the rest.
        read_only: the folder is not changed, for folders without write access; `put` then stores nothing.

    Raises `InputError` for an unsuitable folder or format, `ResourceError` if the folder cannot be used or the disk is
    full: no file is then incomplete, and existing files stay valid.
    """

    def __init__(
        self,
        folder: str | Path,
        dtype: str | None = None,
        *,
        max_disk_bytes: int | None = None,
        max_memory_bytes: int = 256 << 20,
        shard_bytes: int = 64 << 20,
        read_only: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.read_only = read_only
        self.max_disk_bytes = None if max_disk_bytes is None else whole_number(max_disk_bytes, "max_disk_bytes")
        shard_bytes = whole_number(shard_bytes, "shard_bytes")
        self.max_memory_bytes = whole_number(max_memory_bytes, "max_memory_bytes", 0)
        # The bound on the disk deletes whole files, so there must be space for several.
        self.shard_bytes = shard_bytes if max_disk_bytes is None else max(min(shard_bytes, max_disk_bytes // 8), 1)
        self._pending: dict[str, bytes] = {}
        self._pending_bytes = 0
        self._checked = LeastRecentlyUsed(self.max_memory_bytes)
        self._maps: dict[str, mmap.mmap] = {}
        self._touched: set[str] = set()
        self._warned = False
        self._lock = threading.RLock()
        self._file_lock = FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS)
        wanted = None if dtype is None else check_state_dtype(dtype)
        self._entries: dict[str, Entry] = {}
        self._shards: dict[str, int] = {}
        self._scanned = 0
        self.dtype = ""
        self._open(wanted or DEFAULT_DTYPE)
        if wanted not in (None, self.dtype):
            raise InputError(
                f"the store {self.folder} has the format {self.dtype}, not {wanted}; leave the format out, or name "
                "another folder"
            )

    # ---- opening ---------------------------------------------------------------------------------

    def _open(self, dtype: str) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; a store of document states is a folder")
        with disk_errors(self.folder):
            if not self.read_only:
                self.folder.mkdir(parents=True, exist_ok=True)
            found = list(self.folder.iterdir()) if self.folder.is_dir() else []
            for path in found:
                if _is_ours(path) and path.is_dir():
                    raise InputError(f"{path} is a folder, expected a file; delete it, the store needs its name")
            if not any(path.suffix == SUFFIX for path in found):
                if self.read_only:
                    raise InputError(f"{self.folder} is not a store of document states: it has no *{SUFFIX} file")
                if not all(map(_is_ours, found)):
                    raise InputError(f"{self.folder} has other files; name an empty or new folder for the store")
            if not self.read_only:
                with self._exclusive():
                    for leftover in self.folder.glob(".*.partial"):  # of a process that was killed
                        leftover.unlink(missing_ok=True)
                    self._scan()
                    if not self.dtype:  # a file without documents records the format of a new store
                        self.dtype = dtype
                        self._write([])
                    self._make_room(0)  # the bound may be lower than last time
            self._scan()

    def _scan(self) -> None:
        """Reads the headers of new files, and drops entries of deleted ones."""
        with disk_errors(self.folder):
            changed = self.folder.stat().st_mtime_ns
            if changed == self._scanned:
                return
            with os.scandir(self.folder) as found:
                sizes = {entry.name: entry.stat().st_size for entry in found if entry.name.endswith(SUFFIX)}
        self._scanned = changed
        gone = self._shards.keys() - sizes.keys()
        if gone:
            self._shards = {name: size for name, size in self._shards.items() if name not in gone}
            self._entries = {key: entry for key, entry in self._entries.items() if entry.shard not in gone}
        new = [(name, *read_shard(self.folder / name)) for name in sorted(sizes.keys() - self._shards.keys())]
        if not self.dtype:
            # Files in a format other than the majority's were not written by this store.
            formats = Counter(dtype for _, dtype, _ in new if dtype).most_common(1)
            self.dtype = formats[0][0] if formats else ""
        for name, dtype, entries in new:
            ours = dtype == self.dtype
            # Files of other kinds are recorded by name, so that they are neither read again nor deleted.
            self._shards[name] = sizes[name] if ours else 0
            if ours:
                self._entries.update((entry.key, entry) for entry in entries)
            elif dtype:
                logger.warning("%s has states in another format than the store and is ignored", self.folder / name)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process writes at a time; readers need no lock, since files never change."""
        with disk_errors(self.folder):
            try:
                self._file_lock.acquire()
            except Timeout:  # a subclass of OSError
                raise ResourceError(
                    f"another process has locked the store {self.folder} for {_LOCK_SECONDS / 60:.0f} minutes; "
                    "wait for it or end it"
                ) from None
        try:
            yield
        finally:
            self._file_lock.release()

    # ---- reading ---------------------------------------------------------------------------------

    def get(self, key: str, *, dtype: torch.dtype | None = None, device: Any = None) -> Layers | None:
        return self._read(key, lambda data, _: decode_states(key, data, dtype, device))

    def fill(self, key: str, targets: Groups) -> bool:
        def fill(data: Any, checked: bool) -> bool:
            fill_states(key, data, targets, checked)
            return True

        return bool(self._read(key, fill))

    def _read(self, key: str, use: Callable[[Any, bool], T]) -> T | None:
        """`use(bytes, whether they were checked before)`, or `None` if the document is missing or damaged."""
        with self._lock:
            if key in self._pending:
                return use(self._pending[key], True)
            held = self._checked.get(key)
            if held is not None:
                return use(held, True)
            if self._is_missing(key):
                return None
            entry = self._entries[key]
            try:
                data = self._bytes_of(entry)
                # For the memory cache, copy before checking: the file may change in between.
                held = bytearray(data) if entry.size <= self.max_memory_bytes else None
                used = use(data if held is None else held, False)
            except (DamagedStatesError, OSError, ValueError) as error:
                self._give_up(entry, error)
                return None
            self._touched.add(entry.shard)
            if held is not None:
                self._checked.put(key, held, len(held))
            return used

    def _bytes_of(self, entry: Entry) -> memoryview:
        path = self.folder / entry.shard
        mapped = self._maps.get(entry.shard)
        # Reading beyond the end of a truncated, mapped file kills the process, so check its size every time.
        size = path.stat().st_size
        if mapped is None or len(mapped) != size:
            while len(self._maps) >= _OPEN_SHARDS:
                self._maps.pop(next(iter(self._maps)))
            with path.open("rb") as file:
                # Private pages: torch needs writable memory, and the file must not change.
                mapped = self._maps[entry.shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if entry.start < 0 or entry.size < 0 or entry.start + entry.size > size:
            raise DamagedStatesError("the file is shorter than its index says")
        return memoryview(mapped)[entry.start : entry.start + entry.size]

    def _give_up(self, entry: Entry, error: Exception) -> None:
        self._maps.pop(entry.shard, None)
        self._entries.pop(entry.key)
        if isinstance(error, FileNotFoundError):  # another process deleted it to free space
            return
        level = logging.DEBUG if self._warned else logging.WARNING
        logger.log(level, "document states in %s are damaged (%s) and are computed again", entry.shard, error)
        self._warned = True

    def _is_missing(self, key: str) -> bool:
        if key not in self._entries:
            self._scan()
        return key not in self._entries

    def missing(self, keys: Iterable[str]) -> list[str]:
        with self._lock:
            return [key for key in keys if key not in self._pending and self._is_missing(key)]

    def __contains__(self, key: str) -> bool:
        return not self.missing([key])

    def __len__(self) -> int:
        return self.count()

    def count(self, identity: str = "") -> int:
        """Number of documents, of all models or of the one with this `model_identity`."""
        with self._lock:
            self._scan()
            return sum(key.startswith(identity) for key in (*self._pending, *self._entries))

    def disk_bytes(self) -> int:
        """Bytes of all files of states."""
        with self._lock:
            self._scan()
            return sum(self._shards.values())

    def verify(self) -> tuple[int, int]:
        """Checks every entry: (intact, damaged). Damaged ones are dropped and will be computed again."""
        with self._lock:
            self._scan()
            entries = list(self._entries.values())
            for entry in entries:
                try:
                    decode_states(entry.key, self._bytes_of(entry))
                except (DamagedStatesError, OSError, ValueError) as error:
                    self._give_up(entry, error)
            whole = sum(entry.key in self._entries for entry in entries)
            return whole, len(entries) - whole

    # ---- writing ---------------------------------------------------------------------------------

    def put(self, key: str, layers: Layers, targets: Sequence[Groups] = ()) -> None:
        blob = encode_states(key, layers, self.dtype)
        with self._lock:
            for target in targets:  # before disk access, whose errors must not stop a ranking
                fill_states(key, blob, target, checked=True)
            if not self.missing([key]):
                # An existing entry stays: another thread or process may have been faster.
                for target in targets:
                    self.fill(key, target)  # if it is damaged, the target is unchanged
            elif not self.read_only:
                self._pending[key] = blob
                self._pending_bytes += len(blob)
            if self._pending_bytes >= self.shard_bytes:
                self.flush()

    def flush(self) -> None:
        """Writes new entries, and records which files were used. On an error, unwritten entries are dropped."""
        if self.read_only:
            return
        with self._lock:
            waiting, self._pending, self._pending_bytes = self._pending, {}, 0
            touched, self._touched = self._touched, set()
            if not waiting and not touched:
                return
            with disk_errors(self.folder), self._exclusive():
                for name in touched:
                    with contextlib.suppress(FileNotFoundError):
                        os.utime(self.folder / name)
                # Another process may have been faster.
                blobs = [(key, blob) for key, blob in waiting.items() if self._is_missing(key)]
                if blobs:
                    self._make_room(sum(len(blob) for _, blob in blobs))
                    self._write(blobs)

    def _write(self, blobs: list[tuple[str, bytes]]) -> None:
        # Names sort by time: of two entries of one document, the later one counts.
        path = self.folder / f"states-{time.time_ns():016x}-{secrets.token_hex(4)}{SUFFIX}"
        self._entries.update((entry.key, entry) for entry in write_shard(path, blobs, self.dtype))
        self._shards[path.name] = path.stat().st_size

    def _make_room(self, size: int) -> None:
        if self.max_disk_bytes is None:
            return
        total = size + self.disk_bytes()
        files = [self.folder / name for name, held in self._shards.items() if held]
        for path in sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            if total <= self.max_disk_bytes:
                break
            total -= self._shards[path.name]
            path.unlink()
        self._scan()

    def close(self) -> None:
        """Writes the rest and closes all files."""
        try:
            self.flush()
        finally:
            self._maps.clear()


def open_store(folder: str) -> FolderStore:
    """The store of document states of `tsarank index`; read-only if the folder is not writable.

    Raises `InputError` if there is none.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no store {folder}; create it with `tsarank index --documents … --store {folder}`")
    writable = os.access(folder, os.W_OK)
    if not writable:
        logger.warning("the store %s is not writable: missing states are computed but not added", folder)
    return FolderStore(folder, read_only=not writable)


def use_store(model: Any, folder: str) -> FolderStore:
    """Makes a model use the document states of a store, which is returned; the caller closes it.

    Raises `InputError` if there is no such store, and `ModelError` for a model whose document states cannot be cached.
    """
    model.check_cacheable()
    store = model.document_store = open_store(folder)
    return store

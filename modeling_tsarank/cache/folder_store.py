"""Document states on disk: a folder of safetensors files, read by memory map, shared by any number of processes.

`index.sqlite` says where each document's states lie; it can be lost, as the files say the same. Documents are written
many at a time, a file whole or not at all; an entry carries its key and a checksum, and one that is torn, flipped or
gone counts as absent. Entries of several models lie beside each other, told apart by their keys.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from ..engine.state_blocks import Groups, Layers
from ..ranking_errors import InputError, ResourceError
from ..ranking_options import whole_number
from .catalog import (
    SUFFIX,
    Catalog,
    DamagedCatalogError,
    Entry,
    disk_error,
    read_shard,
    write_shard,
)
from .memory_store import LeastRecentlyUsed, MemoryStore, StateStore, check_bound
from .state_bytes import DamagedStatesError, check_state_dtype, decode_states, encode_states, fill_states


__all__ = ["FolderStore", "MemoryStore", "StateStore", "open_store", "use_store"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULT_DTYPE = "int8"
_OPEN_SHARDS = 256
_LOCK_SECONDS = 600.0


def _is_ours(path: Path) -> bool:
    return (
        path.suffix in (SUFFIX, ".partial")
        or path.name == ".lock"
        or path.name.startswith(("index.sqlite", "documents.sqlite"))
    )


class FolderStore(StateStore):
    """Document states in a folder.

    Parameters:
        folder: made if need be.
        dtype: `int8` (default for a new store; a quarter of float32), `bfloat16`, `float16` or `float32`. `None` takes
            what the folder has; a store keeps one format.
        max_disk_bytes: bound of the folder; whole files that were not used for longest are deleted. `None`: no bound.
        max_memory_bytes: documents' bytes kept in memory, so that those of frequent ones are read and checked once; 0
            for none.
        shard_bytes: what is collected in memory before a file is written; `flush` and `close` write the rest.
        read_only: changes nothing in the folder, for one that cannot be written; `put` then keeps nothing.

    Raises `InputError` for an unfit folder or format, `ResourceError` where the folder cannot be used or the disk is
    full: nothing is then half-written, and what was written before stays valid.
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
        self.max_disk_bytes = check_bound("max_disk_bytes", max_disk_bytes)
        shard_bytes = whole_number(shard_bytes, "shard_bytes")
        max_memory_bytes = whole_number(max_memory_bytes, "max_memory_bytes", 0)
        # Files are what the bound on the disk deletes, so it must hold several.
        self.shard_bytes = shard_bytes if max_disk_bytes is None else max(min(shard_bytes, max_disk_bytes // 8), 1)
        self._pending: dict[str, bytes] = {}
        self._pending_bytes = 0
        self.max_memory_bytes = max_memory_bytes
        self._checked = LeastRecentlyUsed(max_memory_bytes)
        self._maps: dict[str, mmap.mmap] = {}
        self._touched: set[str] = set()
        self._warned = False
        self._lock = threading.RLock()
        self._file_lock = FileLock(self.folder / ".lock", timeout=_LOCK_SECONDS)
        wanted = None if dtype is None else check_state_dtype(dtype)
        self.catalog = Catalog(self.folder, read_only)
        self._open()
        self.dtype = self._settle_dtype(wanted)

    # ---- opening ---------------------------------------------------------------------------------

    def _open(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file; a store of document states is a folder")
        try:
            self._refuse_folders()
            if self.read_only:
                if not self.catalog.path.is_file() and not any(self.folder.glob(f"*{SUFFIX}")):
                    name = self.catalog.path.name
                    raise InputError(f"{self.folder} is no store of document states: it holds no {name}")
                self._safely(self.catalog.dtype)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                fresh = not self.catalog.path.exists()
                if fresh and any(not _is_ours(path) for path in self.folder.iterdir()):
                    raise InputError(f"{self.folder} holds other files; name an empty or new folder for the store")
                for leftover in self.folder.glob(".*.partial"):  # of a process that was killed
                    leftover.unlink(missing_ok=True)
                self._safely(self._enter_files)
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def _refuse_folders(self) -> None:
        """Raises `InputError` where a folder has the name of one of the store's files."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as found:
            for entry in found:
                if _is_ours(Path(entry.path)) and entry.is_dir():
                    raise InputError(
                        f"{entry.path} is a folder, a file was expected; delete it, the store needs its name"
                    )

    def _enter_files(self) -> None:
        """Brings the index up to date with the files: a killed process may have left some unlisted."""
        self.catalog.dtype()
        known = {name for name, _ in self.catalog.shards()}
        files = {path.name: path for path in self.folder.glob(f"*{SUFFIX}")}
        for name in known - set(files):
            self.catalog.forget_shard(name)
        for name in sorted(set(files) - known):
            dtype, entries = read_shard(files[name])
            if not entries:
                continue
            if self.catalog.set_setting("dtype", dtype) != dtype:
                logger.warning("%s holds states in another format than the store and is left out", files[name])
                continue
            self.catalog.add(name, files[name].stat().st_size, entries)

    def _settle_dtype(self, wanted: str | None) -> str:
        found = self._safely(self.catalog.dtype)
        if found is None:
            if self.read_only:
                raise InputError(f"{self.folder} is no store of document states: its index names no format")
            with self._exclusive():
                found = self._safely(lambda: self.catalog.set_setting("dtype", wanted or DEFAULT_DTYPE))
        if wanted is not None and wanted != found:
            raise InputError(
                f"the store {self.folder} keeps document states as {found}, not {wanted}; leave the format out, or "
                "name another folder"
            )
        return check_state_dtype(str(found))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time writes; readers need no lock, as no file is ever changed."""
        try:
            self._file_lock.acquire()
        except Timeout:
            raise ResourceError(
                f"another process has held the store {self.folder} for {_LOCK_SECONDS / 60:.0f} minutes; "
                "wait for it or end it"
            ) from None
        except OSError as error:
            raise disk_error(error, self.folder) from error
        try:
            yield
        finally:
            self._file_lock.release()

    def _safely(self, action: Any) -> Any:
        """`action()` on the index, which is made again from the files if the action finds it damaged."""
        try:
            return action()
        except DamagedCatalogError as error:
            logger.warning("the index of %s is damaged (%s) and is made again from its files", self.folder, error)
        try:
            with contextlib.nullcontext() if self.read_only else self._exclusive():
                self.catalog.rebuild()
                return action()
        except DamagedCatalogError as error:
            raise ResourceError(
                f"the index of the store {self.folder} cannot be made again ({error}); look after the disk"
            ) from error

    # ---- reading ---------------------------------------------------------------------------------

    def get(self, key: str, *, dtype: torch.dtype | None = None, device: Any = None) -> Layers | None:
        return self._read(key, lambda data, _: decode_states(key, data, dtype, device))

    def fill(self, key: str, targets: Groups) -> bool:
        def fill(data: Any, checked: bool) -> bool:
            fill_states(key, data, targets, checked)
            return True

        return bool(self._read(key, fill))

    def _read(self, key: str, use: Callable[[Any, bool], T]) -> T | None:
        """`use(bytes, whether they were checked before)`, or `None` where the document is not, or not whole."""
        with self._lock:
            if key in self._pending:
                return use(self._pending[key], True)
            held = self._checked.get(key)
            if held is not None:
                return use(held, True)
            entry = self._safely(lambda: self.catalog.find(key))
            if entry is None:
                return None
            try:
                data = self._bytes_of(entry)
                # What is kept in memory is copied before it is checked: the file may change in between.
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
        # A file cut short behind a map's back would kill the process on reading; its size is asked every time.
        size = path.stat().st_size
        if mapped is None or len(mapped) != size:
            while len(self._maps) >= _OPEN_SHARDS:
                self._maps.pop(next(iter(self._maps)))
            with path.open("rb") as file:
                # Private pages: torch wants memory that could be written, and the file must not be.
                mapped = self._maps[entry.shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if entry.start < 0 or entry.size < 0 or entry.start + entry.size > size:
            raise DamagedStatesError("the file is shorter than its index says")
        return memoryview(mapped)[entry.start : entry.start + entry.size]

    def _give_up(self, entry: Entry, error: Exception) -> None:
        level = logging.DEBUG if self._warned else logging.WARNING
        logger.log(level, "document states in %s are damaged (%s); such are computed again", entry.shard, error)
        self._warned = True
        self._maps.pop(entry.shard, None)
        if not self.read_only:
            with self._exclusive():
                self._safely(lambda: self.catalog.forget(entry))

    def missing(self, keys: Iterable[str]) -> list[str]:
        with self._lock:
            asked = list(keys)
            found = self._safely(lambda: self.catalog.present(asked))
            return [key for key in asked if key not in found and key not in self._pending]

    def __contains__(self, key: str) -> bool:
        return not self.missing([key])

    def __len__(self) -> int:
        return self.count()

    def count(self, identity: str = "") -> int:
        """Documents that are kept, of all models or of the one with this `model_identity`."""
        with self._lock:
            waiting = sum(key.startswith(identity) for key in self._pending)
            return waiting + int(self._safely(lambda: self.catalog.count(identity)))

    def disk_bytes(self) -> int:
        """Bytes of all files of states."""
        with self._lock:
            return sum(size for _, size in self._safely(self.catalog.shards))

    def verify(self) -> tuple[int, int]:
        """Reads every entry once: (whole, damaged). Damaged ones are struck out and will be computed again."""
        whole = damaged = 0
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            for listed in read_shard(path)[1]:
                with self._lock:
                    entry = self._safely(lambda listed=listed: self.catalog.find(listed.key))
                    if entry is None or entry.shard != path.name:
                        continue
                    try:
                        decode_states(entry.key, self._bytes_of(entry))
                        whole += 1
                    except (DamagedStatesError, OSError, ValueError) as error:
                        self._give_up(entry, error)
                        damaged += 1
        return whole, damaged

    # ---- writing ---------------------------------------------------------------------------------

    def put(self, key: str, layers: Layers, targets: Sequence[Groups] = ()) -> None:
        blob = encode_states(key, layers, self.dtype)
        with self._lock:
            # What is there stays: another thread or process may have been quicker.
            if not self.read_only and self.missing([key]):
                self._pending[key] = blob
                self._pending_bytes += len(blob)
            for target in targets:
                if not self.fill(key, target):
                    fill_states(key, blob, target, checked=True)
            if self._pending_bytes >= self.shard_bytes:
                self.flush()

    def flush(self) -> None:
        """Writes what was put, and notes which files were used. On an error, what was not written is given up."""
        if self.read_only:
            return
        with self._lock:
            waiting, self._pending, self._pending_bytes = self._pending, {}, 0
            touched, self._touched = self._touched, set()
            if not waiting and not touched:
                return
            try:
                with self._exclusive():
                    if touched:
                        self._safely(lambda: self.catalog.touch(touched))
                    # Another process may have been quicker.
                    there = self._safely(lambda: self.catalog.present(list(waiting)))
                    blobs = [(key, blob) for key, blob in waiting.items() if key not in there]
                    if blobs:
                        self._write(blobs)
            except OSError as error:
                raise disk_error(error, self.folder) from error

    def _write(self, blobs: list[tuple[str, bytes]]) -> None:
        self._make_room(sum(len(blob) for _, blob in blobs))
        path = self.folder / f"states-{secrets.token_hex(8)}{SUFFIX}"
        entries = write_shard(path, blobs, self.dtype)
        try:
            self._safely(lambda: self.catalog.add(path.name, path.stat().st_size, entries))
        except ResourceError:
            path.unlink(missing_ok=True)
            raise

    def _make_room(self, size: int) -> None:
        if self.max_disk_bytes is None:
            return
        shards = self._safely(self.catalog.shards)
        total = sum(held for _, held in shards)
        for name, held in shards:
            if total + size <= self.max_disk_bytes:
                return
            self._safely(lambda name=name: self.catalog.forget_shard(name))
            (self.folder / name).unlink(missing_ok=True)
            self._maps.pop(name, None)
            total -= held

    def close(self) -> None:
        """Writes the rest and lets go of all files."""
        try:
            self.flush()
        finally:
            self._maps.clear()
            self.catalog.close()


def open_store(folder: str) -> FolderStore:
    """The store of document states that `tsarank index` made, opened for reading only where it cannot be written.

    Raises `InputError` if there is none.
    """
    if not Path(folder).is_dir():
        raise InputError(f"there is no store {folder}; `tsarank index --documents … --store {folder}` makes one")
    writable = os.access(folder, os.W_OK)
    if not writable:
        logger.warning("the store %s cannot be written: what it lacks is computed and not added", folder)
    return FolderStore(folder, read_only=not writable)


def use_store(model: Any, folder: str) -> FolderStore:
    """Lets a model read its document states from a store, which is returned, to be closed.

    Raises `InputError` if there is no such store, and `ModelError` for a model whose document states cannot be kept.
    """
    model.check_cacheable()
    store = model.document_store = open_store(folder)
    return store

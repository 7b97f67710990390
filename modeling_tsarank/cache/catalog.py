"""Which document states lie where in a store's folder: an SQLite table that can be made again from the files."""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..files.reading import parse_json
from ..files.writing import replacement
from ..ranking_errors import ResourceError
from .state_bytes import STATE_DTYPES


logger = logging.getLogger(__name__)

FORMAT = "tsarank document states 1"
SUFFIX = ".safetensors"
_ALIGN = 64
_TABLES = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, used REAL NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, shard TEXT NOT NULL, start INTEGER NOT NULL, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_by_shard ON entries (shard);
"""
_SCHEMA = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
# What says that the file is not an index of ours or not whole, and not that the machine refuses to use it.
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_SCHEMA", "SQLITE_MISMATCH", "SQLITE_CONSTRAINT",
           "SQLITE_FORMAT", "SQLITE_TOOBIG", "SQLITE_RANGE")  # fmt: skip


class DamagedCatalogError(Exception):
    """The index file is no index of these files, or a damaged one: it is to be made again."""


class Entry(NamedTuple):
    """One document's bytes in a shard."""

    key: str
    shard: str
    start: int
    size: int


def disk_error(error: Exception, folder: Path, what: str = "its document states") -> ResourceError:
    """One line about a folder that cannot be written, and what to do."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    full = full or (isinstance(error, sqlite3.Error) and "full" in str(error))
    if full:
        return ResourceError(
            f"the disk is full: {folder} has no room for {what}; free some space or lower the store's bound and run "
            "it again (what was written before stays and is used)"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ResourceError(f"cannot use the store {folder} for {what}: {reason}")


class Catalog:
    """The table of entries and shards in `index.sqlite`, for any number of processes.

    Every method raises `ResourceError` where the file cannot be used, `DamagedCatalogError` where `rebuild` is needed,
    whatever it was that showed it. Only one process at a time may write.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder = folder
        self.path = folder / "index.sqlite"
        self.read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._owner = 0
        self._file: tuple[int, int] | None = None  # `None` for an index in memory

    @contextmanager
    def _connected(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is not None and self._is_outdated():
                self.close()
            if self._connection is None:
                self._connection, self._owner = self._connect(), os.getpid()
            if not write:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # Text that is not UTF-8 has no error name. What cannot be written can still be read into memory anew.
            name = getattr(error, "sqlite_errorname", "SQLITE_FORMAT")
            if self.read_only or name.startswith(_DAMAGE):
                raise DamagedCatalogError(str(error)) from error
            raise disk_error(error, self.folder, "its index") from error

    def _is_outdated(self) -> bool:
        """Whether the connection is another process's, or to a file that another process has replaced."""
        if self._owner != os.getpid():  # a connection must not be used after a fork
            return True
        if self._file is None:
            return False
        try:
            return self._file != _place(self.path)
        except FileNotFoundError:
            raise DamagedCatalogError("it is gone") from None
        except OSError as error:
            raise disk_error(error, self.folder, "its index") from error

    def _connect(self) -> sqlite3.Connection:
        try:
            self._file = _place(self.path)  # before it is opened: it may be replaced in between
        except OSError:
            self._file = None
        connection = _open(f"{self.path.resolve().as_uri()}?mode={'ro' if self.read_only else 'rwc'}")
        try:
            if not self.read_only:
                connection.executescript(_TABLES)
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise DamagedCatalogError("its pages do not fit together")
            with closing(_open(":memory:")) as wanted:
                wanted.executescript(_TABLES)
                if connection.execute(_SCHEMA).fetchall() != wanted.execute(_SCHEMA).fetchall():
                    raise DamagedCatalogError("it has other tables")
            self._file = self._file or _place(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Lets go of the file."""
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None

    def rebuild(self) -> None:
        """Makes the index anew from the files, whatever the old one holds; in memory where nothing can be written.

        Another process finds the old one or the whole new one. Raises `ResourceError` where it cannot be written.
        """
        self.close()
        files = [(path, path.stat(), read_shard(path)) for path in sorted(self.folder.glob(f"*{SUFFIX}"))]
        whole = [(path, status, dtype, entries) for path, status, (dtype, entries) in files if entries]
        # Files of another format than most were put here by someone else.
        formats = Counter(dtype for _, _, dtype, _ in whole).most_common(1)
        dtype = formats[0][0] if formats else None
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            connection = _open(":memory:" if self.read_only else temporary.resolve().as_uri())
            try:
                connection.executescript(_TABLES)
                connection.execute("BEGIN")
                if dtype is not None:
                    connection.execute("INSERT INTO settings VALUES ('dtype', ?)", (dtype,))
                for path, status, own, entries in whole:
                    if own == dtype:
                        _enter(connection, path.name, status.st_size, status.st_mtime, entries)
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            if self.read_only:
                self._connection, self._owner, self._file = connection, os.getpid(), None
                return
            connection.close()
            for leftover in self.folder.glob(f"{self.path.name}-*"):  # they would be applied to the new file
                leftover.unlink(missing_ok=True)
            os.replace(temporary, self.path)
        except (OSError, sqlite3.Error) as error:
            raise disk_error(error, self.folder, "its index") from error
        finally:
            if not self.read_only:
                for leftover in self.folder.glob(f"{temporary.name}*"):
                    leftover.unlink(missing_ok=True)

    # ---- reading ---------------------------------------------------------------------------------

    def dtype(self) -> str | None:
        """The format of the store, `None` for one that is not settled yet."""
        found, shards = self.setting("dtype"), self.shards()
        if (found is None and shards) or (found is not None and found not in STATE_DTYPES):
            raise DamagedCatalogError(f"it names the format {found!r}")
        known = {name for name, _ in shards}
        files = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.name not in known)
        for path in files:
            own, entries = read_shard(path)
            if entries and path.name not in known:
                raise DamagedCatalogError("it knows none of the files")
            if entries and own != found:
                raise DamagedCatalogError(f"it says {found}, and the files are {own}")
            if entries:
                break
        return found

    def setting(self, name: str) -> str | None:
        """A setting of the store, or `None`."""
        with self._connected() as connection:
            row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def find(self, key: str) -> Entry | None:
        """Where the states under `key` lie."""
        with self._connected() as connection:
            row = connection.execute("SELECT key, shard, start, size FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        entry = Entry(*row)
        sizes = isinstance(entry.start, int) and isinstance(entry.size, int) and min(entry.start, entry.size) >= 0
        if not sizes or not _is_shard_name(entry.shard):
            raise DamagedCatalogError("an entry is nonsense")
        return entry

    def present(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that have an entry."""
        found: set[str] = set()
        with self._connected() as connection:
            for start in range(0, len(keys), 500):
                part = keys[start : start + 500]
                marks = ",".join("?" * len(part))
                found.update(
                    row[0] for row in connection.execute(f"SELECT key FROM entries WHERE key IN ({marks})", part)
                )
        return found

    def count(self, prefix: str = "") -> int:
        """Number of entries whose key begins with `prefix` (a model's identity)."""
        with self._connected() as connection:
            row = connection.execute(
                "SELECT COUNT(*) FROM entries WHERE key >= ? AND key < ?", (prefix, f"{prefix}~")
            ).fetchone()
        return int(row[0])

    def shards(self) -> list[tuple[str, int]]:
        """Names and bytes of all shards, the least recently used first."""
        with self._connected() as connection:
            found = connection.execute("SELECT name, bytes FROM shards ORDER BY used, name").fetchall()
        if not all(_is_shard_name(name) and isinstance(size, int) and size >= 0 for name, size in found):
            raise DamagedCatalogError("its list of files is nonsense")
        return found

    # ---- writing ---------------------------------------------------------------------------------

    def set_setting(self, name: str, value: str) -> str:
        """Makes a setting unless it is there, and returns what it is."""
        with self._connected(write=True) as connection:
            connection.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, value))
            return str(connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()[0])

    def add(self, name: str, size: int, entries: Sequence[Entry]) -> None:
        """Enters a shard that lies in the folder."""
        with self._connected(write=True) as connection:
            _enter(connection, name, size, time.time(), entries)

    def forget(self, entry: Entry) -> None:
        """Strikes out one entry, unless it has been written anew elsewhere."""
        with self._connected(write=True) as connection:
            connection.execute(
                "DELETE FROM entries WHERE key = ? AND shard = ? AND start = ?", (entry.key, entry.shard, entry.start)
            )

    def forget_shard(self, name: str) -> None:
        """Strikes out a shard and all its entries."""
        with self._connected(write=True) as connection:
            connection.execute("DELETE FROM entries WHERE shard = ?", (name,))
            connection.execute("DELETE FROM shards WHERE name = ?", (name,))

    def touch(self, names: Iterable[str]) -> None:
        """Notes that these shards have just been used."""
        with self._connected(write=True) as connection:
            connection.executemany("UPDATE shards SET used = ? WHERE name = ?", [(time.time(), n) for n in names])


def _place(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _open(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None, check_same_thread=False)


def _enter(connection: sqlite3.Connection, name: str, size: int, used: float, entries: Sequence[Entry]) -> None:
    connection.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (name, size, used))
    connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", entries)


def _is_shard_name(name: object) -> bool:
    """Whether it can be a file of the store's own: what an index names is opened and, beyond a bound, deleted."""
    return isinstance(name, str) and name.endswith(SUFFIX) and Path(name).name == name and "\0" not in name


# ---- shards: safetensors files with one tensor of bytes per document ---------------------------------


def write_shard(path: Path, blobs: Sequence[tuple[str, bytes]], dtype: str) -> list[Entry]:
    """Writes a safetensors file, whole or not at all, and returns where in it each document lies.

    Written by hand rather than by the safetensors library because the index needs the places, and the caller the
    system's own error. Raises `OSError`.
    """
    header: dict[str, object] = {"__metadata__": {"format": FORMAT, "dtype": dtype}}
    at = 0
    for key, blob in blobs:
        header[key] = {"dtype": "U8", "shape": [len(blob)], "data_offsets": [at, at + len(blob)]}
        at += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    with replacement(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for _, blob in blobs:
            file.write(blob)
    entries, start = [], 8 + len(text)
    for key, blob in blobs:
        entries.append(Entry(key, path.name, start, len(blob)))
        start += len(blob)
    return entries


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """A shard's header, the place where its data begin, and the file's size. Raises `ValueError` for no shard."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length >= size:
            raise ValueError("its header is incomplete")
        header = parse_json(file.read(length), str(path))
    if not isinstance(header, dict) or header.get("__metadata__", {}).get("format") != FORMAT:
        raise ValueError("its header names another format")
    return header, 8 + length, size


def read_shard(path: Path) -> tuple[str, list[Entry]]:
    """A shard's format, and where in it each document lies, from its own header.

    Nothing of a file that is no shard, with a warning.
    """
    try:
        header, start, size = _header(path)
        dtype = header["__metadata__"]["dtype"]
        places = {key: tensor["data_offsets"] for key, tensor in header.items() if key != "__metadata__"}
        entries = [Entry(key, path.name, start + first, end - first) for key, (first, end) in places.items()]
        if dtype not in STATE_DTYPES or any(min(entry.start - start, entry.size) < 0 for entry in entries):
            raise ValueError("its header is nonsense")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logger.warning("%s is no shard of document states and is left out (%s)", path, error)
        return "", []
    return dtype, [entry for entry in entries if entry.start + entry.size <= size]

"""Which document states lie where in a store's folder: an SQLite table that can be made again from the files."""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .ranking_errors import ResourceError


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


class DamagedCatalogError(Exception):
    """The index file is no database, or a damaged one."""


class Entry(NamedTuple):
    """One document's bytes in a shard."""

    key: str
    shard: str
    start: int
    size: int


def disk_error(error: OSError | sqlite3.Error, folder: Path, what: str = "its document states") -> ResourceError:
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

    Raises `ResourceError` where the file cannot be used, `DamagedCatalogError` where it must be made again.
    """

    def __init__(self, folder: Path, read_only: bool = False) -> None:
        self.folder = folder
        self.path = folder / "index.sqlite"
        self.read_only = read_only
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    @contextmanager
    def _connected(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if self._connection is None or self._owner != os.getpid():  # a connection must not be used after a fork
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
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
                raise DamagedCatalogError(str(error)) from error
            raise disk_error(error, self.folder, "its index") from error

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rwc"
        connection = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode={mode}",
            uri=True,
            timeout=60,
            isolation_level=None,
            check_same_thread=False,
        )
        if not self.read_only:
            connection.executescript(_TABLES)
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            connection.close()
            raise DamagedCatalogError("its pages do not fit together")
        return connection

    def close(self) -> None:
        """Lets go of the file."""
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()
        self._connection = None

    # ---- reading ---------------------------------------------------------------------------------

    def setting(self, name: str) -> str | None:
        """A setting of the store, or `None`."""
        with self._connected() as connection:
            row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def find(self, key: str) -> Entry | None:
        """Where the states under `key` lie."""
        with self._connected() as connection:
            row = connection.execute("SELECT key, shard, start, size FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else Entry(*row)

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
            return [
                (str(n), int(b)) for n, b in connection.execute("SELECT name, bytes FROM shards ORDER BY used, name")
            ]

    # ---- writing ---------------------------------------------------------------------------------

    def set_setting(self, name: str, value: str) -> str:
        """Makes a setting unless it is there, and returns what it is."""
        with self._connected(write=True) as connection:
            connection.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (name, value))
            return str(connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()[0])

    def add(self, name: str, size: int, entries: Sequence[Entry]) -> None:
        """Enters a shard that lies in the folder."""
        with self._connected(write=True) as connection:
            connection.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (name, size, time.time()))
            connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", entries)

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
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            for _, blob in blobs:
                file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
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
        header = json.loads(file.read(length))
    if not isinstance(header, dict) or header.get("__metadata__", {}).get("format") != FORMAT:
        raise ValueError("its header names another format")
    return header, 8 + length, size


def read_shard_entries(path: Path) -> list[Entry]:
    """Where each document lies in a shard, from its own header; nothing of a file that is no shard, with a warning."""
    try:
        header, start, size = _header(path)
        places = {key: tensor["data_offsets"] for key, tensor in header.items() if key != "__metadata__"}
        entries = [Entry(key, path.name, start + first, end - first) for key, (first, end) in places.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is no shard of document states and is left out (%s)", path, error)
        return []
    return [entry for entry in entries if entry.start + entry.size <= size]


def shard_dtype(path: Path) -> str:
    """The format of a shard's states. Raises `ValueError` for a file that is no shard."""
    return str(_header(path)[0]["__metadata__"]["dtype"])

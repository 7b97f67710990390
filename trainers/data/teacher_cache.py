"""A disk cache of everything that was paid for: a teacher's answers, scores, generated queries.

One SQLite file. Every entry is committed as soon as it is there, so a killed run loses at most what was under way, and
a second run asks nothing twice. The key is a hash of the request; no header, and so no API key, is part of it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from modeling_tsarank.files.reading import parse_json
from modeling_tsarank.ranking_errors import InputError, ResourceError


_SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT NOT NULL, answer TEXT NOT NULL)"


def request_key(request: Any) -> str:
    """SHA-256 (hexadecimal) of a JSON-able request, whatever the order of its fields."""
    return hashlib.sha256(_canonical(request).encode("utf-8", "surrogatepass")).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class RequestCache:
    """Request to answer, both JSON-able, kept in one file; safe for several threads of one process and for several
    processes.

    Args:
        path: The file; its folder is made if need be.

    Raises:
        InputError: the file is no such cache.
        ResourceError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.hits = 0
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60, check_same_thread=False, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error
        except OSError as error:
            raise ResourceError(f"cannot make the cache {self.path}: {error.strerror or error}") from error

    def _failure(self, error: sqlite3.DatabaseError) -> InputError | ResourceError:
        if isinstance(error, sqlite3.OperationalError):
            return ResourceError(f"the cache {self.path} cannot be used: {error}; choose a writable folder with room")
        return InputError(f"{self.path} is no cache of answers ({error}); name another file, or remove it")

    def get(self, request: Any) -> Any | None:
        """The answer to `request`, or None where it was never answered."""
        try:
            with self._lock:
                row = self._connection.execute(
                    "SELECT answer FROM answers WHERE key = ?", (request_key(request),)
                ).fetchone()
                if row is not None:
                    self.hits += 1
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error
        return None if row is None else parse_json(row[0], str(self.path))

    def put(self, request: Any, answer: Any) -> None:
        """Keeps an answer; on disk when this returns. An answer that is there already is replaced."""
        row = (request_key(request), _canonical(request), json.dumps(answer, ensure_ascii=True))
        try:
            with self._lock:
                self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from error

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Closes the file; what was put is on disk already."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> RequestCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

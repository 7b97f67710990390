"""Uploaded documents: texts by id, in memory or in a persistent SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path

from ..ranking_errors import ResourceError


class UploadedTexts:
    """Titles and texts by document id, safe for several threads.

    Args:
        path: An SQLite file; `None` keeps them in memory.

    Raises:
        ResourceError: The file cannot be used.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(":memory:" if path is None else path, check_same_thread=False)
            with self._database:
                tables = self._database.execute("select name from sqlite_master where type = 'table'").fetchall()
                if set(tables) - {("documents",)}:
                    raise sqlite3.DatabaseError("it is the database of another program")
                self._database.execute("create table if not exists documents (id text primary key, title, text)")
                self._database.execute("select id, title, text from documents limit 1")
        except sqlite3.Error as error:
            raise ResourceError(f"{path} cannot be used for uploaded documents: {error}") from error

    def put(self, documents: Iterable[tuple[str, str, str]]) -> None:
        """Adds or replaces (id, title, text). Raises `ResourceError`, for one if the disk is full."""
        with self._lock:
            try:
                with self._database:
                    self._database.executemany("insert or replace into documents values (?, ?, ?)", documents)
            except sqlite3.Error as error:
                raise ResourceError(f"uploaded documents cannot be written: {error}") from error

    def get(self, identifier: str) -> dict[str, str] | None:
        """`{"title", "text"}`, or `None`. Raises `ResourceError` if the file is damaged."""
        try:
            with self._lock:
                found = self._database.execute("select title, text from documents where id = ?", (identifier,))
                row = found.fetchone()
        except sqlite3.Error as error:
            raise ResourceError(f"uploaded documents cannot be read: {error}") from error
        return None if row is None else {"title": row[0], "text": row[1]}

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._database.close()

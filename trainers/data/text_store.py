"""A store on disk for texts that wait for their other half."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path


_COMMIT_EVERY = 20_000


class TextStore:
    """Texts by a key, in a temporary database on disk that vanishes with this object.

    A later text of a key replaces the earlier. Its memory is SQLite's cache, whatever is put in.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tsarank-")
        self._connection = sqlite3.connect(Path(self._folder.name) / "texts.sqlite")
        self._connection.execute("PRAGMA journal_mode = OFF")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("CREATE TABLE texts (key TEXT PRIMARY KEY, first TEXT, second TEXT) WITHOUT ROWID")
        self._pending = 0

    def __enter__(self) -> TextStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._folder.cleanup()

    def put(self, key: str, first: str, second: str = "") -> None:
        """Keeps two texts under a key."""
        self._connection.execute("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", (key, first, second))
        self._pending += 1
        if self._pending == _COMMIT_EVERY:
            self._connection.commit()
            self._pending = 0

    def get(self, key: str) -> tuple[str, str] | None:
        """The texts of a key, `None` where there are none."""
        row = self._connection.execute("SELECT first, second FROM texts WHERE key = ?", (key,)).fetchone()
        return None if row is None else (row[0], row[1])

"""Files behind the readers: packed text as streams, JSON lines, and a store on disk for texts that wait."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from modeling_tsarank.eval.extras import require
from modeling_tsarank.eval.file_access import parse_json_object
from modeling_tsarank.ranking_errors import InputError, ResourceError


_COMMIT_EVERY = 20_000


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked on the way where its name ends in .gz, .bz2, .xz or .zst.

    Raises:
        InputError: there is no such file, or its compression is broken.
        ResourceError: the system refuses to read it, or the package for .zst is missing.
    """
    try:
        with _unpacked(path) as stream:
            yield stream
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, a file was expected") from None
    except (gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path} is broken: {error}; unpack or fetch it again") from error
    except OSError as error:
        # bz2 and zstandard report broken content as OSError without a number.
        if error.errno is None:
            raise InputError(f"{path} is broken: {error}; unpack or fetch it again") from error
        raise ResourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _unpacked(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if path.suffix == ".bz2":
        return cast("IO[bytes]", bz2.open(path, "rb"))
    if path.suffix == ".xz":
        return cast("IO[bytes]", lzma.open(path, "rb"))
    if path.suffix == ".zst":
        zstandard = require("zstandard", extra="data", purpose="Reading .zst files")
        # Reddit's dumps are packed with a window of 2 GiB.
        return io.BufferedReader(
            zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(path.open("rb"), closefd=True)
        )
    return path.open("rb")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not blank as text, with its place (`FILE, line N`).

    Raises:
        InputError: see `open_stream`; also a line that is not UTF-8.
    """
    with open_stream(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield f"{path.name}, line {number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(f"{path.name}, line {number}: not UTF-8 ({error.reason})") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of a JSON Lines file with its place.

    Raises:
        InputError: see `read_lines`; also a line that is no JSON object.
    """
    for place, line in read_lines(path):
        yield place, parse_json_object(line, place)


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

"""Files read line by line with line numbers in every complaint, and written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from modeling_tsarank.ranking_errors import InputError, ResourceError


@contextmanager
def open_text(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Opens a UTF-8 text file for reading, unpacking `.gz` files on the way; a byte order mark is skipped.

    Raises:
        InputError: There is no such file, it is a folder, it is not UTF-8 or its compression is broken.
        ResourceError: The file exists and the system refuses to read it.
    """
    path = Path(path)
    try:
        with _open_for_reading(path) as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, a file was expected") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_for_reading(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


@contextmanager
def atomic_text(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Opens `path` for writing UTF-8; the file appears under its name only when the block ends without an error.

    The folder is made if need be. Until the end, the text is in a temporary file beside `path`; an error or an
    interrupt removes it and leaves whatever stood under `path` as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's umask: mkstemp makes private files, and results are meant to be as readable as any other."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def parse_json_object(line: str | bytes, place: str) -> dict[str, Any]:
    """One JSON object.

    Args:
        line: The text of the object.
        place: File and line for the error message.

    Raises:
        InputError: The line is not JSON, or not an object.
    """
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: a JSON object was expected, found {type(value).__name__}")
    return value


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) for every non-blank line of a JSON Lines file; place is `FILE, line N`.

    Raises:
        InputError: A line is not a JSON object (the message has its number), or the file cannot be used.
    """
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                yield place, parse_json_object(line, place)

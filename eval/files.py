"""Writing result files whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.file_access import atomic_text
from modeling_tsarank.ranking_errors import InputError, ResourceError


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write `path` into one line that says what to do.

    Raises:
        ResourceError: the folder cannot be made or written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ResourceError(f"cannot write {path}: {reason}; choose a writable folder with free space") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with its suffix, and renames it to `path` when the block ends well.

    For writers that want a file name, such as matplotlib's; `file_access.atomic_text` is the one for text.

    Raises:
        ResourceError: see `write_errors`.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all.

    Raises:
        ResourceError: see `write_errors`.
    """
    with write_errors(path), atomic_text(path) as stream:
        stream.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with a final line break."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a comma-separated file with one header line and `\\n` line ends."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: there is no such file, or it is not UTF-8 JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give an existing JSON file") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give the file that tsarank wrote") from error

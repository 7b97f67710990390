"""Atomic file writes, through links, with the mode kept; devices and pipes are written directly."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from modeling_tsarank.ranking_errors import InputError, ResourceError


_DESCRIPTOR = re.compile(r"/proc/(\d+)/(?:task/\d+/)?fd/(\d+)")
_MAX_LINKS = 40


@contextmanager
def system_errors(what: str, advice: str = "", full: str = "") -> Iterator[None]:
    """Converts system errors to one line: what cannot be done, the reason, and what to do.

    Args:
        what: The beginning of the line.
        advice: Its end.
        full: The message for a full disk.

    Raises:
        ResourceError: for every `OSError`.
    """
    try:
        yield
    except OSError as error:
        if full and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"the disk is full: {full}") from error
        raise ResourceError(f"{what}: {error.strerror or error}{advice and '; '}{advice}") from error


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Converts errors on writing `path` to one line that says what to do.

    Raises:
        InputError: the text has a lone surrogate, which cannot be written to a file.
        ResourceError: the folder cannot be created or written, or the disk is full.
    """
    try:
        with system_errors(f"cannot write {path}", "choose a writable folder with free space"):
            yield
    except UnicodeEncodeError as error:
        raise InputError(f"cannot write {path}: the text {error.object[error.start]!a} is broken Unicode") from error


@contextmanager
def replacement(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`whole_file` for callers with their own error messages: raises `OSError` unchanged."""
    path = Path(path)
    target, plain = _target_of(path)
    if plain:
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "content"
            yield temporary
            with temporary.open("rb") as source, _open_plainly(target) as sink:
                shutil.copyfileobj(source, sink)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        _replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path, whose content replaces `path` when the block ends without error.

    A link is kept: its target is replaced, with mode and owner kept. Paths under `/dev` or `/proc/self/fd`, pipes and
    sockets are written to and never replaced. The folder is created if missing. After an error or an interrupt, `path`
    is unchanged, and no other file remains.

    Raises:
        InputError: `path` is a folder, or links to a file in the Hub's cache, which other programs share.
        ResourceError: see `write_errors`.
    """
    with write_errors(Path(path)), replacement(path) as temporary:
        yield temporary


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty folder that replaces `path` when the block ends without error.

    A link is kept: its target folder is replaced, with its mode kept.

    Raises:
        ResourceError: see `write_errors`.
    """
    path = Path(os.path.realpath(path))
    with write_errors(path):
        mode = stat.S_IMODE(path.stat().st_mode) if path.is_dir() else 0o755
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(mode)
            replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Moves the folder `source` to `target`, which may exist, so that one complete version always exists."""
    if not os.path.lexists(target):  # a broken link is in the way, too
        os.replace(source, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=".replaced-", dir=target.parent))
    old = aside / target.name
    os.replace(target, old)
    try:
        os.replace(source, target)
    except OSError:
        os.replace(old, target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def whole_text(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Opens `path` for writing UTF-8 with `\\n` line ends, atomically: see `whole_file`."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def _replace(temporary: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        status = target.stat()
        with contextlib.suppress(PermissionError):  # only root may change owners
            os.chown(temporary, status.st_uid, status.st_gid)
        temporary.chmod(stat.S_IMODE(status.st_mode))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, target)


def _target_of(path: Path) -> tuple[Path, bool]:
    """The file to write, with links resolved, and whether it is written to directly instead of being replaced."""
    target = Path(os.path.abspath(path))
    for _ in range(_MAX_LINKS):
        target = Path(os.path.realpath(target.parent), target.name)
        # A link of /proc/self/fd refers to an open file; resolving it by name would miss that.
        if target.is_relative_to("/proc"):
            return target, True
        if not target.is_symlink():
            break
        target = target.parent / os.readlink(target)
    try:
        kind = target.stat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    if stat.S_ISDIR(kind):
        raise InputError(f"{path} is a folder, expected a file")
    parts = target.parts
    if any(
        name.startswith(("models--", "datasets--", "spaces--")) and below == "blobs" for name, below in pairwise(parts)
    ):
        raise InputError(f"{path} is a file in the Hub's cache ({target}), which other programs share; name another")
    return target, not stat.S_ISREG(kind)


def _open_plainly(target: Path) -> IO[bytes]:
    descriptor = _DESCRIPTOR.fullmatch(str(target))
    if descriptor and int(descriptor.group(1)) == os.getpid():
        # The same open file with the same position: opened again, it would be written from its start.
        return os.fdopen(os.dup(int(descriptor.group(2))), "wb")
    return target.open("wb")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, atomically: see `whole_file`."""
    with whole_text(path) as stream:
        stream.write(text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON with a final line break, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object per line, atomically."""
    with whole_text(path) as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_csv(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a comma-separated file with one header line and `\\n` line ends, atomically."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())

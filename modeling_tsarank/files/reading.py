"""Text, JSON and JSON Lines files, compressed or not: errors are one line with the file and the line number."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import io
import json
import lzma
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError, ResourceError


T = TypeVar("T")

MAX_DIGITS = 300
"""Longer integers do not fit into a float; Python refuses to print those of more than 4,300 digits."""
MAX_DEPTH = 100
"""Real data is never deeper, and Python's recursion limit is near."""
_DEEP = f"JSON nested more than {MAX_DEPTH} deep"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def open_stream(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file for reading, decompressed if its name ends in .gz, .bz2, .xz or .zst.

    Pipes are allowed; folders, devices and sockets are not.

    Raises:
        InputError: There is no such file, it is not a file, or its compressed data is damaged or truncated.
        ResourceError: The system refuses to read it, or the package for .zst is missing.
    """
    path = Path(path)
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            what = "a folder" if stat.S_ISDIR(kind) else "a device or a socket"
            raise InputError(f"{path} is {what}, expected a file")
        with _unpacked(path) as stream:
            yield stream
    except (InputError, ResourceError):
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file: {path}") from None
    except Exception as error:
        if _is_damage(error):
            raise InputError(f"{path} is damaged or incomplete ({error}); decompress or download it again") from error
        if isinstance(error, OSError):
            raise ResourceError(f"{path} cannot be read: {error.strerror or error}") from error
        if isinstance(error, ValueError) and "null" in str(error):
            raise InputError(f"{str(path)!r} is not a file name: it has a NUL") from None
        raise


def _is_damage(error: Exception) -> bool:
    """Whether a stream failed because of its compressed data, not because of a system error."""
    if isinstance(error, OSError):  # gzip's and bz2's have no errno
        return error.errno is None
    return isinstance(error, (EOFError, lzma.LZMAError, zlib.error)) or type(error).__name__ == "ZstdError"


def _unpacked(path: Path) -> IO[bytes]:
    if path.suffix == ".zst":
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise ResourceError("reading .zst files needs the package zstandard: pip install zstandard") from error
        # Reddit's dumps are compressed with a window of 2 GiB. The stream's own errors are not OSErrors.
        source = zstandard.ZstdDecompressor(max_window_size=2**31).stream_reader(path.open("rb"), closefd=True)
        return io.BufferedReader(cast("io.RawIOBase", source))
    unpack: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
    stream: IO[bytes] = unpack(path, "rb")
    return stream


def text_lines(stream: IO[bytes], name: str, allow_nul: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a stream of UTF-8 with their numbers, from 1, and their line ends; a byte order mark is skipped.

    `allow_nul` allows a few NULs, as a text may have, but not UTF-16.

    Only `\\n` ends a line: form feeds and Unicode separators are part of a text.

    Raises:
        InputError: A line is not UTF-8, or has a NUL; the message names the line.
    """
    number = 0
    try:
        for number, line in enumerate(stream, start=1):
            if number == 1 and line.startswith(_UTF16):
                raise InputError(f"{name}, line 1: UTF-16 text, expected UTF-8; convert the file")
            if b"\0" in line and (not allow_nul or 4 * line.count(b"\0") > len(line)):
                raise InputError(f"{name}, line {number}: NUL bytes, as in UTF-16; expected UTF-8 text")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"{name}, line {number}: not UTF-8 (byte {line[error.start]:#04x})"
                raise InputError(f"{where}; convert the file") from None
    except Exception as error:
        if not _is_damage(error):
            raise
        where = f"{name}, line {number + 1}: damaged or incomplete"
        raise InputError(f"{where} ({error}); decompress or download it again") from error


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """Yields (place, line) for every line that is not blank, without its line end; place is `FILE, line N`.

    Raises:
        InputError: See `open_stream` and `text_lines`.
    """
    with open_stream(path) as stream:
        for number, line in text_lines(stream, os.fspath(path)):
            if line.strip():
                yield f"{os.fspath(path)}, line {number}", line.rstrip("\r\n")


def read_text(path: str | os.PathLike[str]) -> str:
    """A whole UTF-8 file.

    Raises:
        InputError: See `open_stream` and `text_lines`.
    """
    with open_stream(path) as stream:
        return "".join(line for _, line in text_lines(stream, os.fspath(path)))


def parse_json(text: str | bytes, place: str, allow_nan: bool = False, by_line: bool = False) -> Any:
    """One JSON value.

    Args:
        text: UTF-8 or a string.
        place: File and line for the error message.
        allow_nan: Accept NaN and Infinity, as written by Python.
        by_line: The text is a whole file: the message includes the line.

    Raises:
        InputError: It is not JSON, nested more than `MAX_DEPTH` deep, or has a number too large for a float.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        value = json.loads(
            text,
            parse_constant=float if allow_nan else _refuse_constant,
            parse_float=float if allow_nan else _parse_float,
            parse_int=_parse_int,
        )
        if text.count("[") + text.count("{") <= MAX_DEPTH or not _is_deep(value):
            return value
        reason, at = _DEEP, _deep_at(text)
    except RecursionError:
        reason, at = _DEEP, _deep_at(cast("str", text))
    except json.JSONDecodeError as error:
        reason, at = f"not JSON ({error.msg} at column {error.colno})", error.pos
    except UnicodeDecodeError as error:
        reason, at = f"not UTF-8 (byte {error.object[error.start]:#04x})", 0
    except _BadNumberError as error:
        reason, at = f"not JSON ({error})", cast("str", text).find(error.token)
    line = f", line {text.count(chr(10), 0, max(at, 0)) + 1}" if by_line and isinstance(text, str) else ""
    raise InputError(f"{place}{line}: {reason}") from None


class _BadNumberError(ValueError):
    def __init__(self, token: str, reason: str) -> None:
        super().__init__(f"{token[:20]}{'…' * (len(token) > 20)} {reason}")
        self.token = token


def _refuse_constant(name: str) -> float:
    raise _BadNumberError(name, "is not a JSON number")


def _parse_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _BadNumberError(text, "is too large a number")
    return value


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _BadNumberError(text, f"is too large a number: {len(text):,} digits")
    return int(text)


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node if type(node) is list else ())
            if type(child) in (dict, list)
        ]
        if not level:
            return False
    return True


def _deep_at(text: str) -> int:
    """The position where the nesting exceeds `MAX_DEPTH`."""
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(match.group(), 0)
        if depth > MAX_DEPTH:
            return match.start()
    return 0


def parse_json_object(text: str | bytes, place: str) -> dict[str, Any]:
    """One JSON object; see `parse_json`.

    Raises:
        InputError: The text is not JSON, or not an object.
    """
    return _object(parse_json(text, place), place)


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json(path: str | os.PathLike[str], allow_nan: bool = False) -> Any:
    """A JSON file, compressed or not.

    Raises:
        InputError: There is no such file, or it is not JSON (with the line number); see `parse_json`.
    """
    return parse_json(read_text(path), os.fspath(path), allow_nan, by_line=True)


def read_json_object(path: str | os.PathLike[str], allow_nan: bool = False) -> dict[str, Any]:
    """A JSON file with an object; see `read_json`."""
    return _object(read_json(path, allow_nan), os.fspath(path))


def read_saved(cls: type[T], path: str | os.PathLike[str], maker: str) -> T:
    """A dataclass whose fields are a JSON object in a file, as the command `maker` writes it.

    Raises:
        InputError: There is no such file, a field is missing, unknown or of a wrong type, or `cls` refuses it.
    """
    given = read_json_object(path)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    needed = [name for name, one in known.items() if one.default is one.default_factory is dataclasses.MISSING]
    wrong = [f"there is no field {name!r}" for name in needed if name not in given]
    wrong += [f"unknown field {name!r:.60}" for name in given if name not in known]
    try:
        if not wrong:
            return cls(**given)
    except (TypeError, ValueError) as error:
        wrong = [str(error) if isinstance(error, InputError) else "a field is of a wrong type"]
    raise InputError(f"{os.fspath(path)}: {wrong[0]}; expected a file of `{maker}`")


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) for every non-blank line of a JSON Lines file; place is `FILE, line N`.

    Raises:
        InputError: A line is not a JSON object (the message has its number), or the file cannot be read.
    """
    for place, line in read_lines(path):
        yield place, parse_json_object(line, place)


def parse_yaml(text: str, place: str, loader: Any = None) -> Any:
    """One YAML document as plain values.

    Args:
        text: The document.
        place: File for the error message, which adds the line.
        loader: A subclass of `yaml.SafeLoader`, which is the default.

    Raises:
        InputError: It is not YAML, too deep, or has a value that Python cannot represent, or a text with a NUL
            character, which is invalid in names and paths.
        ResourceError: PyYAML is missing.
    """
    yaml = require("yaml", "train", "A YAML file")
    try:
        value = yaml.load(text, loader or yaml.SafeLoader)
    except RecursionError:
        raise InputError(f"{place}: YAML nested too deep") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise InputError(f"{place}: not YAML ({' '.join(str(error).split()):.300})") from error
    if _holds_nul(value):
        raise InputError(f"{place}: a text in it has a NUL character")
    return value


def _holds_nul(value: Any) -> bool:
    waiting, seen = [value], set[int]()  # an alias may refer to a value many times, or to itself
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and "\0" in one:
            return True
        if isinstance(one, Mapping | list) and id(one) not in seen:
            seen.add(id(one))
            waiting += [*one, *one.values()] if isinstance(one, Mapping) else one
    return False


def read_json_rows(path: str | os.PathLike[str], allow_nan: bool = False) -> Iterator[tuple[str, Any]]:
    """Yields (place, value) for the rows of a JSON array, of an object's list `data`, or of JSON Lines.

    Any other object is one row. Place is `FILE, row N` or, for JSON Lines, `FILE, line N`.

    Raises:
        InputError: The file is none of these (with the line number); see `parse_json`.
    """
    lines = read_lines(path)
    head = list(islice(lines, 2))
    if len(head) == 2 and _are_rows(*(line.strip() for _, line in head)):
        for place, line in chain(head, lines):
            yield place, parse_json(line, place, allow_nan)
        return
    content = read_json(path, allow_nan) if head else []
    if isinstance(content, dict):
        if not isinstance(content.get("data"), list):
            yield head[0][0], content
            return
        content = content["data"]
    if not isinstance(content, list):
        raise InputError(f"{os.fspath(path)}: expected an array of rows, found {type(content).__name__}")
    for number, value in enumerate(content, start=1):
        yield f"{os.fspath(path)}, row {number}", value


def _are_rows(first: str, second: str) -> bool:
    """Whether two lines are separate JSON values, and not the start of one value over several lines."""
    if not first.endswith("}") or second.startswith("{"):
        return first.endswith("}")
    with contextlib.suppress(InputError):
        return isinstance(parse_json(first, "", allow_nan=True), dict)
    return False

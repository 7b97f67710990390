"""Reading the documents a user wants ranked: a text file, JSON lines, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..files.fields import field_list, field_name, optional_id, record_title
from ..files.reading import open_stream, parse_json_object, text_lines
from ..ranking_errors import InputError
from ..ranking_text import clean_text, document_text


FORMATS = ("txt", "jsonl")
_SUFFIXES = {".txt": "txt", ".text": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl"}


@dataclass(frozen=True)
class NamedDocument:
    """One document of a file: its id (else its line number, from 1), its text, title included, and the title apart."""

    id: str
    text: str
    title: str = ""


def _format_of(source: str, given: str | None) -> str | None:
    if given is not None:
        if given not in FORMATS:
            raise InputError(f"unknown format {given!r}; expected one of {', '.join(FORMATS)}")
        return given
    if source == "-":
        return None
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{source}: unknown kind of file {suffix or '(no suffix)'!r}; expected .txt or .jsonl, or --format"
        )
    return _SUFFIXES[suffix]


def parse_documents(
    lines: Iterable[tuple[int, str]], name: str, file_format: str | None = None
) -> list[NamedDocument]:
    """Documents of numbered lines; `file_format` `None` means JSON lines where the first begins with a brace.

    Raises `InputError`, with the line number, for malformed lines, an id that occurs twice, and no documents.
    """
    filled: Iterator[tuple[int, str]] = ((number, line.strip()) for number, line in lines if line.strip())
    first = next(filled, None)
    if first is None:
        raise InputError(f"{name} holds no documents")
    if file_format is None:
        file_format = "jsonl" if first[1].startswith("{") else "txt"
    filled = chain([first], filled)
    if file_format == "txt":
        return [NamedDocument(str(number), line) for number, line in filled]
    return list(_documents(filled, name))


def _documents(lines: Iterable[tuple[int, str]], name: str) -> Iterator[NamedDocument]:
    seen: dict[str, int] = {}
    for number, line in lines:
        where = f"{name}, line {number}"
        row = parse_json_object(line, where)
        if field_name(row, "text") is None:
            raise InputError(f"{where}: no field 'text'; fields: {field_list(row)}")
        identifier = optional_id(row, where) or str(number)
        if identifier in seen:
            raise InputError(f"{where}: the id {identifier!r} was already used in line {seen[identifier]}")
        seen[identifier] = number
        title = clean_text(record_title(row, where), f"{where}: the title")
        yield NamedDocument(identifier, document_text(row, where), title)


def read_documents(source: str, file_format: str | None = None) -> list[NamedDocument]:
    """Documents of a `.txt` file (one a line; blank lines are skipped), a `.jsonl` file (`text`, optional `title` and
    `_id`, or the other names of `files.fields`), either of them gzipped, or standard input (`-`; JSON lines if the
    first line begins with a brace).

    Raises `InputError`, with the line number, for a file that is missing, unreadable, malformed or without documents,
    and for an id that occurs twice.
    """
    if source == "-":
        name = "standard input"
        lines = text_lines(sys.stdin.buffer, name, allow_nul=True)
        return parse_documents(lines, name, _format_of(source, file_format))
    with open_stream(source) as stream:
        lines = text_lines(stream, source, allow_nul=True)
        return parse_documents(lines, source, _format_of(source, file_format))

"""Reading the documents a user wants ranked: a text file, JSON lines, or standard input."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ranking_errors import InputError
from .ranking_text import document_text


logger = logging.getLogger(__name__)

FORMATS = ("txt", "jsonl")


@dataclass(frozen=True)
class NamedDocument:
    """One document of a file: its `_id` (else its line number, from 1) and its text, title included."""

    id: str
    text: str


def _lines(source: str) -> list[str]:
    if source == "-":
        data = sys.stdin.buffer.read()
        name = "standard input"
    else:
        path = Path(source)
        name = source
        if path.is_dir():
            raise InputError(f"{source} is a folder; expected a .txt or .jsonl file of documents")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise InputError(f"no file {source}") from None
        except OSError as error:
            raise InputError(f"cannot read {source}: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name}, line {line}: not UTF-8 (byte {data[error.start]:#04x}); convert the file") from None
    # Not splitlines(): form feeds and Unicode separators are part of a document, not the end of it.
    return text.replace("\r\n", "\n").split("\n")


def _format_of(source: str, lines: list[str], given: str | None) -> str:
    if given is not None:
        if given not in FORMATS:
            raise InputError(f"unknown format {given!r}; expected one of {', '.join(FORMATS)}")
        return given
    if source == "-":
        first = next((line for line in lines if line.strip()), "")
        return "jsonl" if first.lstrip().startswith("{") else "txt"
    suffix = Path(source).suffix.lower()
    known = {".txt": "txt", ".text": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if suffix not in known:
        raise InputError(
            f"{source}: unknown kind of file {suffix or '(no suffix)'!r}; expected .txt or .jsonl, or --format"
        )
    return known[suffix]


def _parse_json_line(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object with the field 'text', got {type(row).__name__}")
    if "text" not in row:
        raise InputError(f"{where}: no field 'text'; fields: {', '.join(row) or 'none'}")
    return row


def read_documents(source: str, file_format: str | None = None) -> list[NamedDocument]:
    """Documents of a `.txt` file (one a line; blank lines are skipped), a `.jsonl` file (`text`, optional `title` and
    `_id`), or standard input (`-`; JSON lines if the first line begins with a brace).

    Raises `InputError`, with the line number, for a file that is missing, unreadable, malformed or without documents,
    and for an `_id` that occurs twice.
    """
    lines = _lines(source)
    name = "standard input" if source == "-" else source
    if _format_of(source, lines, file_format) == "txt":
        documents = [NamedDocument(str(n), line.strip()) for n, line in enumerate(lines, 1) if line.strip()]
    else:
        documents = []
        seen: dict[str, int] = {}
        for n, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{name}, line {n}"
            row = _parse_json_line(line, where)
            identifier = str(row.get("_id", row.get("id", n)))
            if identifier in seen:
                raise InputError(f"{where}: the _id {identifier!r} was already used in line {seen[identifier]}")
            seen[identifier] = n
            documents.append(NamedDocument(identifier, document_text(row, where)))
    if not documents:
        raise InputError(f"{name} holds no documents")
    return documents

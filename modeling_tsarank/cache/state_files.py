"""Reading the documents a user wants ranked: text, JSON lines, tables, a folder of texts, or standard input."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..files.fields import FIELDS, field_list, field_name, optional_id, optional_number, record_title
from ..files.reading import open_stream, parse_json_object, read_text, text_lines
from ..files.tables import read_csv, read_parquet
from ..ranking_errors import InputError
from ..ranking_text import clean_text, document_text


logger = logging.getLogger(__name__)

FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
KINDS = ".txt, .jsonl, .csv, .tsv, .parquet, or a folder of .txt and .md files"
_SUFFIXES = {
    **{f".{name}": name for name in FORMATS},
    ".text": "txt",
    ".ndjson": "jsonl",
}
_TEXTS = (".txt", ".md")
_NO_TEXT = (".pdf", ".html", ".htm", ".docx", ".epub")


@dataclass(frozen=True)
class NamedDocument:
    """One document of a file.

    Attributes:
        id: Its id, else its line number, from 1; in a folder its relative path.
        text: Its text, title included.
        title: Its title alone.
        first_stage_score: The first stage's score, if requested and available.
    """

    id: str
    text: str
    title: str = ""
    first_stage_score: float | None = None


def _format_of(source: str, given: str | None) -> str | None:
    if given is not None:
        if given not in FORMATS:
            raise InputError(f"unknown format {given!r}; expected one of {', '.join(FORMATS)}")
        return given
    if source == "-":
        return None
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
    if suffix in _NO_TEXT:
        raise InputError(f"{source}: extract the text first, for example with pdftotext or pandoc; expected {KINDS}")
    if suffix not in _SUFFIXES and Path(source).exists():
        raise InputError(f"{source}: unknown kind of file {suffix or '(no suffix)'!r}; expected {KINDS}, or --format")
    return _SUFFIXES.get(suffix)


def parse_documents(
    lines: Iterable[tuple[int, str]],
    name: str,
    file_format: str | None = None,
    columns: Mapping[str, str] | None = None,
    scored: bool = False,
) -> list[NamedDocument]:
    """Documents of numbered lines; without `file_format`, JSON lines if the first begins with a brace.

    Raises `InputError`, with the line number, for malformed lines, a repeated id, and no documents.
    """
    filled: Iterator[tuple[int, str]] = ((number, line.strip()) for number, line in lines if line.strip())
    first = next(filled, None)
    if first is None:
        raise InputError(f"{name} has no documents")
    if file_format is None:
        file_format = "jsonl" if first[1].startswith("{") else "txt"
    filled = chain([first], filled)
    if file_format == "txt":
        return [NamedDocument(str(number), line) for number, line in filled]
    places = ((f"{name}, line {number}", line) for number, line in filled)
    return list(_documents(((place, parse_json_object(line, place)) for place, line in places), columns, scored))


def _documents(
    rows: Iterable[tuple[str, dict[str, Any]]], columns: Mapping[str, str] | None, scored: bool
) -> Iterator[NamedDocument]:
    seen: dict[str, str] = {}
    for where, given in rows:
        row = dict(given)
        for meaning, column in (columns or {}).items():
            if column not in row:
                raise InputError(f"{where}: no column {column!r}; fields: {field_list(row)}")
            row[FIELDS[meaning][0]] = given[column]
        if field_name(row, "text") is None:
            hint = "" if columns is None else "; set it with --text-column (and --title-column, --id-column)"
            raise InputError(f"{where}: no field 'text'; fields: {field_list(row)}{hint}")
        at = where.rpartition(", ")[2]
        identifier = optional_id(row, where) or at.rpartition(" ")[2]
        if identifier in seen:
            raise InputError(f"{where}: the id {identifier!r} was already used in {seen[identifier]}")
        seen[identifier] = at
        title = clean_text(record_title(row, where), f"{where}: the title")
        score = optional_number(row, where, "first_stage_score") if scored else None
        yield NamedDocument(identifier, document_text(row, where), title, score)


def _table_rows(source: str, file_format: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if file_format == "parquet":
        yield from read_parquet(source)
        return
    for place, row in read_csv(source, "\t" if file_format == "tsv" else ","):
        # An empty cell means no id, title or score.
        empty = {name for name in ("id", "title", "first_stage_score") for name in FIELDS[name] if not row.get(name)}
        yield place, {name: value for name, value in row.items() if name not in empty}


def _folder(folder: Path) -> list[NamedDocument]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix.lower() in _TEXTS]
    if not texts:
        raise InputError(f"the folder {folder} has no documents: no .txt or .md file")
    if len(texts) < len(files):
        left = len(files) - len(texts)
        logger.warning("%s: %d of %d files are ignored: they are neither .txt nor .md", folder, left, len(files))
    return [NamedDocument(path.relative_to(folder).as_posix(), read_text(path).strip()) for path in texts]


def read_documents(
    source: str, file_format: str | None = None, columns: Mapping[str, str] | None = None, scored: bool = False
) -> list[NamedDocument]:
    """Documents of a file, a folder or standard input.

    Args:
        source: `.txt` (one per line; blank lines are skipped); `.jsonl`, `.csv`, `.tsv` or `.parquet` with `text` and
            optionally `title` and `_id`, or the other names of `files.fields`; all but the last also compressed; a
            folder, with a document in each .txt and .md file; `-` for standard input (JSON lines if the first line
            begins with a brace).
        file_format: One of `FORMATS`, if the name does not tell.
        columns: Names of the columns for `id`, `text` and `title`, if they differ from these.
        scored: Whether to read the first stage's scores as well.

    Raises:
        InputError: with the line number, for a file that is missing, unreadable, malformed or without documents, and
            for an id that occurs twice.
        ResourceError: Parquet without pyarrow.
    """
    if source != "-" and file_format is None and Path(source).is_dir():
        return _folder(Path(source))
    file_format = _format_of(source, file_format)
    if file_format in ("csv", "tsv", "parquet"):
        if source == "-":
            raise InputError(f"standard input must be text or JSON lines; pass {file_format} as a file")
        found = list(_documents(_table_rows(source, file_format), columns, scored))
        if not found:
            raise InputError(f"{source} has no documents")
        return found
    if source == "-":
        lines = text_lines(sys.stdin.buffer, "standard input", allow_nul=True)
        return parse_documents(lines, "standard input", file_format, columns, scored)
    with open_stream(source) as stream:
        return parse_documents(text_lines(stream, source, allow_nul=True), source, file_format, columns, scored)

"""Pairs in files of any size, Parquet, JSON lines or CSV, read in blocks of a fixed size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..files.fields import FIELDS, without_nulls
from ..files.reading import parse_json_object, read_lines
from ..files.tables import arrow, open_parquet, parquet_errors, read_csv
from ..ranking_errors import InputError


SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv")
_KINDS = ".parquet, .jsonl, .csv or .tsv"
_BATCH_ROWS = 4096


@dataclass
class Block:
    """Pairs that are scored together, with one output file.

    Attributes:
        index: from 0, over all files; it names the file of scores.
        start: number of its first pair, counted from 0 over all files.
        rows: how many pairs it has.
        queries, documents: the columns' values, not validated.
        kept: columns copied to the output, as Arrow arrays by name.
    """

    index: int
    start: int
    rows: int
    queries: Sequence[Any] = ()
    documents: Sequence[Any] = ()
    kept: dict[str, Any] | None = None


@dataclass(frozen=True)
class PairFiles:
    """Files of pairs and the names of their columns.

    Attributes:
        paths: Parquet, JSON lines or CSV files, in order.
        query, document: the columns of the two texts; a document may be a string or an object of `text` and `title`.
        keep: further columns to copy to the output.
    """

    paths: tuple[str, ...]
    query: str = "query"
    document: str = "document"
    keep: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys([self.query, self.document, *self.keep]))


def find_files(sources: Sequence[str]) -> tuple[str, ...]:
    """The files of pairs among the given files and folders, sorted by name within a folder.

    Raises `InputError` for a name that is neither, and for a folder without such files.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(
                str(p) for p in path.iterdir() if p.suffix in SUFFIXES and not p.name.startswith((".", "_"))
            )
            if not inside:
                raise InputError(f"the folder {source} has no {_KINDS} file of pairs")
            found += inside
        elif not path.is_file():
            raise InputError(f"no file {source}; expected {_KINDS} files of pairs, or a folder of them")
        elif path.suffix not in SUFFIXES:
            raise InputError(f"{source}: unknown kind of file {path.suffix!r}; expected {_KINDS}")
        else:
            found.append(source)
    return tuple(found)


def _is_parquet(path: str) -> bool:
    return Path(path).suffix == ".parquet"


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """Place and JSON text of each pair of a file that is not Parquet."""
    if Path(path).suffix in (".csv", ".tsv"):
        return ((place, json.dumps(row)) for place, row in read_csv(path))
    return read_lines(path)


def text_columns(path: str, query: str, document: str) -> tuple[str, str]:
    """The columns of the two texts in a file: the given ones, or if one is missing and has its default name, the first
    of `files.fields.FIELDS` that exists; one that is null in the first row counts as absent.

    Raises `InputError` for a file that cannot be read.
    """
    if _is_parquet(path):
        null = arrow().types.is_null
        row = {field.name: None if null(field.type) else field for field in open_parquet(path).schema_arrow}
    else:
        place, first = next(_lines(path), (path, "{}"))
        row = parse_json_object(first, place)
    filled = without_nulls(row)

    def column(given: str, meaning: str) -> str:
        if given in filled or given != meaning:
            return given
        return next((name for there in (filled, row) for name in FIELDS[meaning] if name in there), given)

    return column(query, "query"), column(document, "document")


def count_pairs(files: PairFiles) -> list[int]:
    """How many pairs each file has. Raises `InputError` for one that cannot be read, and if there are none at all."""
    counts = [
        open_parquet(path, files.columns).metadata.num_rows if _is_parquet(path) else sum(1 for _ in _lines(path))
        for path in files.paths
    ]
    if not sum(counts):
        raise InputError(f"no pairs in {', '.join(files.paths)}")
    return counts


def read_blocks(files: PairFiles, size: int, wanted: Callable[[int], bool] = lambda _: True) -> Iterator[Block]:
    """All blocks of at most `size` pairs; none spans two files. Of those not `wanted`, only index and rows are set.

    Raises `InputError` for an unreadable file, a missing column, or a line that is not a JSON object.
    """
    index, start = 0, 0
    for path in files.paths:
        parts = _parquet_parts(path, files, size) if _is_parquet(path) else _line_parts(path, size)
        for part in parts:
            rows = len(part)
            make = _block_of_lines if isinstance(part, list) else _block_of_table
            yield make(index, start, part, files) if wanted(index) else Block(index, start, rows)
            index, start = index + 1, start + rows


def _cut(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """The rows of Arrow batches in tables of exactly `size` rows, except the last."""
    waiting: list[Any] = []
    rows = 0
    table = arrow().Table
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, size - rows)
            batch = batch.slice(part.num_rows)
            waiting.append(part)
            rows += part.num_rows
            if rows == size:
                yield table.from_batches(waiting)
                waiting, rows = [], 0
    if waiting:
        yield table.from_batches(waiting)


def _parquet_parts(path: str, files: PairFiles, size: int) -> Iterator[Any]:
    with open_parquet(path, files.columns) as opened, parquet_errors(path):
        # Group by group: groups before a damaged one can still be read.
        batches = (
            batch
            for group in range(opened.num_row_groups)
            for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=files.columns)
        )
        yield from _cut(batches, size)


def _block_of_table(index: int, start: int, table: Any, files: PairFiles) -> Block:
    """A block from an Arrow table with the columns of `files`."""
    kept = {name: table.column(name).combine_chunks() for name in files.keep}
    queries, documents = (table.column(name).to_pylist() for name in (files.query, files.document))
    return Block(index, start, len(table), queries, documents, kept)


def _line_parts(path: str, size: int) -> Iterator[list[tuple[str, str]]]:
    lines = _lines(path)
    return iter(lambda: list(islice(lines, size)), [])


def _block_of_lines(index: int, start: int, lines: Sequence[tuple[str, str]], files: PairFiles) -> Block:
    objects = []
    for place, line in lines:
        row = parse_json_object(line, place)
        for column in files.columns:
            if column not in row:
                raise InputError(f"{place}: no field {column!r}; fields: {', '.join(row) or 'none'}")
        objects.append(row)
    string = arrow().string()  # one type for all blocks, independent of a block's values
    kept = {name: arrow().array([_as_text(row[name]) for row in objects], string) for name in files.keep}
    queries, documents = ([row[name] for row in objects] for name in (files.query, files.document))
    return Block(index, start, len(objects), queries, documents, kept)


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()

"""Pairs in files of any size: Parquet or JSON lines, divided into shards that can be read one by one."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.reading import parse_json_object
from ..files.tables import arrow, open_parquet, parquet_errors
from ..ranking_errors import InputError, ResourceError


SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_BATCH_ROWS = 4096


@dataclass(frozen=True)
class Shard:
    """A run of pairs inside one file: the unit of output, of resuming and of retrying.

    Attributes:
        index: its number, which names its output file.
        start: the number of its first pair, counted from 0 over all files.
        file: the index of its file.
        first: its first pair inside the file, counted from 0.
        rows: how many pairs it has.
        offset: JSON lines only, the byte where its first line begins.
    """

    index: int
    start: int
    file: int
    first: int
    rows: int
    offset: int = 0


@dataclass
class PairRows:
    """The pairs of one shard.

    Attributes:
        numbers: of each pair, counted from 0 over all files.
        queries, documents: what the columns hold, unchecked.
        kept: columns that the output repeats, as Arrow arrays by name.
    """

    numbers: list[int]
    queries: list[Any]
    documents: list[Any]
    kept: dict[str, Any]


@dataclass(frozen=True)
class PairFiles:
    """Files of pairs and the names of their columns.

    Attributes:
        paths: Parquet or JSON lines files, in order.
        query, document: the columns of the two texts; a document may be a string or an object of `text` and `title`.
        keep: further columns that the output repeats.
        number: the column that holds the pairs' numbers, for files that are no longer in input order.
    """

    paths: tuple[str, ...]
    query: str = "query"
    document: str = "document"
    keep: tuple[str, ...] = ()
    number: str | None = None

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        numbers = [] if self.number is None else [self.number]
        return list(dict.fromkeys([self.query, self.document, *self.keep, *numbers]))


def find_files(sources: Sequence[str]) -> tuple[str, ...]:
    """The Parquet and JSON lines files that are named, or that lie in a folder that is named, in order of name.

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
                raise InputError(f"the folder {source} holds no .parquet or .jsonl file of pairs")
            found += inside
        elif not path.is_file():
            raise InputError(f"no file {source}; expected .parquet or .jsonl files of pairs, or a folder of them")
        elif path.suffix not in SUFFIXES:
            raise InputError(f"{source}: unknown kind of file {path.suffix!r}; expected .parquet or .jsonl")
        else:
            found.append(source)
    return tuple(found)


def plan_shards(files: PairFiles, shard_pairs: int) -> list[Shard]:
    """All shards of at most `shard_pairs` pairs; none spans two files.

    A Parquet file says how many rows it has; JSON lines are counted, blank ones aside. Raises `InputError` for a file
    that cannot be read, lacks a column, or for files without any pair.
    """
    shards: list[Shard] = []
    start = 0
    for number, path in enumerate(files.paths):
        if SUFFIXES[Path(path).suffix] == "parquet":
            rows = open_parquet(path, files.columns).metadata.num_rows
            starts = [(first, 0) for first in range(0, rows, shard_pairs)]
        else:
            rows, starts = _scan_lines(path, shard_pairs)
        for first, offset in starts:
            size = min(shard_pairs, rows - first)
            shards.append(Shard(len(shards), start + first, number, first, size, offset))
        start += rows
    if not shards:
        raise InputError(f"no pairs in {', '.join(files.paths)}")
    return shards


def read_shards(files: PairFiles, shards: Sequence[Shard]) -> Iterator[tuple[Shard, PairRows]]:
    """The pairs of these shards, which must be in order. Only one shard is in memory at a time."""
    for number, path in enumerate(files.paths):
        wanted = [shard for shard in shards if shard.file == number]
        if not wanted:
            continue
        if SUFFIXES[Path(path).suffix] == "parquet":
            yield from _read_parquet(path, files, wanted)
        else:
            yield from _read_lines(path, files, wanted)


# ---- Parquet -----------------------------------------------------------------------------------------


def _read_parquet(path: str, files: PairFiles, shards: Sequence[Shard]) -> Iterator[tuple[Shard, PairRows]]:
    pyarrow = arrow()
    opened = open_parquet(path, files.columns)
    ends: list[int] = []
    for group in range(opened.metadata.num_row_groups):
        ends.append(opened.metadata.row_group(group).num_rows + (ends[-1] if ends else 0))
    needed = [
        group
        for group, end in enumerate(ends)
        if any(s.first < end and s.first + s.rows > (ends[group - 1] if group else 0) for s in shards)
    ]
    waiting = list(shards)
    collected: list[Any] = []
    # Row groups between the needed ones are skipped, so each group says where its rows begin.
    with parquet_errors(path):
        for group in needed:
            at = ends[group - 1] if group else 0
            for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=files.columns):
                while waiting:
                    shard = waiting[0]
                    low = max(shard.first - at, 0)
                    high = min(shard.first + shard.rows - at, batch.num_rows)
                    if low < high:
                        collected.append(batch.slice(low, high - low))
                    if shard.first + shard.rows > at + batch.num_rows:
                        break
                    waiting.pop(0)
                    table = pyarrow.Table.from_batches(collected)
                    collected = []
                    yield shard, _rows_of_table(table, files, shard)
                at += batch.num_rows


def _rows_of_table(table: Any, files: PairFiles, shard: Shard) -> PairRows:
    numbers = list(range(shard.start, shard.start + shard.rows))
    if files.number is not None:
        numbers = table.column(files.number).to_pylist()
    return PairRows(
        numbers,
        table.column(files.query).to_pylist(),
        table.column(files.document).to_pylist(),
        {name: table.column(name).combine_chunks() for name in files.keep},
    )


# ---- JSON lines --------------------------------------------------------------------------------------


def _scan_lines(path: str, shard_pairs: int) -> tuple[int, list[tuple[int, int]]]:
    """How many lines are not blank, and for every `shard_pairs`-th of them its place: (line, byte)."""
    rows, offset = 0, 0
    starts: list[tuple[int, int]] = []
    try:
        with open(path, "rb") as file:
            for line in file:
                if not line.isspace():
                    if rows % shard_pairs == 0:
                        starts.append((rows, offset))
                    rows += 1
                offset += len(line)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return rows, starts


def _read_lines(path: str, files: PairFiles, shards: Sequence[Shard]) -> Iterator[tuple[Shard, PairRows]]:
    try:
        with open(path, "rb") as file:
            for shard in shards:
                file.seek(shard.offset)
                objects: list[dict[str, Any]] = []
                while len(objects) < shard.rows:
                    line = file.readline()
                    if not line:
                        raise InputError(f"{path} has become shorter while it was read")
                    if not line.isspace():
                        objects.append(_parse(line, f"{path}, pair {shard.first + len(objects)}", files))
                yield shard, _rows_of_objects(objects, files, shard)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(line: bytes, place: str, files: PairFiles) -> dict[str, Any]:
    row = parse_json_object(line, f"{place} (counted from 0)")
    for column in files.columns:
        if column not in row:
            raise InputError(f"{place} (counted from 0): no field {column!r}; fields: {', '.join(row) or 'none'}")
    return row


def _rows_of_objects(objects: Sequence[dict[str, Any]], files: PairFiles, shard: Shard) -> PairRows:
    # One type for all shards, whatever a shard's values happen to be.
    kept = {
        name: arrow().array(
            [None if row[name] is None else _as_text(row[name]) for row in objects],
            arrow().string(),
        )
        for name in files.keep
    }
    return PairRows(
        list(range(shard.start, shard.start + shard.rows)),
        [row[files.query] for row in objects],
        [row[files.document] for row in objects],
        kept,
    )


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def writing_error(error: OSError, folder: Path) -> ResourceError:
    """One line about a folder of results that cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full: {folder} has no room for more results; free some space and run the command again, "
            "which goes on after the last finished file"
        )
    return ResourceError(f"cannot write into {folder}: {error.strerror or error}; name another --output")

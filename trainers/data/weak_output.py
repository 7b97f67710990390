"""The finished set on disk: kept pairs wait in one file for each type, then go in random order into parquet shards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from modeling_tsarank.files.extras import require
from modeling_tsarank.trainers.data.weak_types import COLUMNS, Pair


SHARD_ROWS = 50_000
"""Rows of a shard; one shard's rows stand in memory while it is written."""


class Spool:
    """Pairs by type in files, in the order they came.

    Args:
        folder: Folder for the files, made here.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._files: dict[str, IO[str]] = {}

    def add(self, pair: Pair) -> None:
        """Appends a pair."""
        if pair.type not in self._files:
            self._files[pair.type] = (self.folder / f"{pair.type}.jsonl").open("w", encoding="utf-8")
        self._files[pair.type].write(json.dumps(pair.row()) + "\n")
        self.counts[pair.type] += 1

    def rows(self) -> Iterator[tuple[str, int, str]]:
        """Type, number inside the type, and the line of every pair."""
        for file in self._files.values():
            file.flush()
        for name in sorted(self._files):
            with (self.folder / f"{name}.jsonl").open(encoding="utf-8") as lines:
                for number, line in enumerate(lines):
                    yield name, number, line

    def close(self) -> None:
        """Closes and removes the files."""
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def write_shards(
    spool: Spool, places: Mapping[str, np.ndarray], folder: Path, validation: int, shard_rows: int = SHARD_ROWS
) -> dict[str, Any]:
    """Writes the chosen pairs in their order as `data/SPLIT-00000-of-00001.parquet`, shard by shard.

    Two passes, so that memory holds one shard: pairs first go to their shard's file, which is then put in order.

    Args:
        spool: The kept pairs.
        places: Place of each pair in the set by type, -1 for none (`weak_sampling.choose`).
        folder: The set's folder.
        validation: How many of the first places are the validation split.
        shard_rows: Rows of a shard.

    Returns:
        Counts of what was written: `rows` by split, `types`, and `sources` by type, name and licence.
    """
    total = sum(int((one >= 0).sum()) for one in places.values())
    bounds = _bounds(total, min(validation, total), shard_rows)
    starts = np.array([start for start, _, _ in bounds])
    buckets = [(spool.folder / f"shard-{number}.jsonl").open("w", encoding="utf-8") for number in range(len(bounds))]
    counts: dict[str, Any] = {"types": Counter(), "sources": Counter()}
    try:
        for name, number, line in spool.rows():
            place = int(places[name][number])
            if place >= 0:
                bucket = int(np.searchsorted(starts, place, side="right")) - 1
                buckets[bucket].write(f"{place}\t{line}")
    finally:
        for bucket_file in buckets:
            bucket_file.close()
    (folder / "data").mkdir()
    for bucket_file, (_, _, name) in zip(buckets, bounds, strict=True):
        _write_shard(Path(bucket_file.name), folder / "data" / name, counts)
    by_split: Counter[str] = Counter()
    for start, end, name in bounds:
        by_split[name.partition("-")[0]] += end - start
    return {
        "rows": dict(by_split),
        "types": dict(sorted(counts["types"].items())),
        "sources": [
            {"type": type_, "source": source, "licence": licence, "rows": rows}
            for (type_, source, licence), rows in sorted(counts["sources"].items())
        ],
    }


def _bounds(total: int, validation: int, shard_rows: int) -> list[tuple[int, int, str]]:
    """First place, end and name of every shard."""
    bounds = []
    for split, first, last in (("validation", 0, validation), ("train", validation, total)):
        shards = -(-(last - first) // shard_rows)
        for number in range(shards):
            start = first + number * shard_rows
            name = f"{split}-{number:05d}-of-{shards:05d}.parquet"
            bounds.append((start, min(start + shard_rows, last), name))
    return bounds


def _write_shard(bucket: Path, path: Path, counts: dict[str, Any]) -> None:
    pyarrow = require("pyarrow", extra="data", purpose="Writing parquet")
    parquet = require("pyarrow.parquet", extra="data", purpose="Writing parquet")
    rows = []
    with bucket.open(encoding="utf-8") as lines:
        for line in lines:
            place, _, row = line.partition("\t")
            rows.append((int(place), json.loads(row)))
    rows.sort(key=lambda one: one[0])
    for _, row in rows:
        counts["types"][row["type"]] += 1
        counts["sources"][row["type"], row["source"], row["licence"]] += 1
    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    table = pyarrow.Table.from_pylist([row for _, row in rows], schema=schema)
    parquet.write_table(table, path, compression="zstd", row_group_size=10_000)
    bucket.unlink()

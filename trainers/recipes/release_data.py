"""All training files of a release from the raw folders, the development set, and a record of how they came about."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json, write_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.filters_leakage import LeakageCheck
from modeling_tsarank.trainers.data.list_building import SourceQuery
from modeling_tsarank.trainers.data.provenance import COUNTS, package_versions
from modeling_tsarank.trainers.data.query_files import write_queries
from modeling_tsarank.trainers.data.weak_pairs import build_weak_pairs
from modeling_tsarank.trainers.data.weak_recipe import Sampling, build_recipe, choose
from modeling_tsarank.trainers.data.weak_types import COLUMNS, Pair
from modeling_tsarank.trainers.recipes.judged import (
    Judged,
    Pool,
    check_names,
    clean_judged,
    raw_records,
    read_plan,
    read_row,
    write_corpus,
    written,
)
from modeling_tsarank.trainers.recipes.labelled import LabelledSource, choose_dev, cleaned, group_pairs, usable
from modeling_tsarank.trainers.training_sources import read_records


PACKAGES = ("bm25s", "datasketch", "numpy", "PyStemmer", "xxhash")


@dataclass
class Plan:
    """What `data.yaml` says.

    Attributes:
        weak_recipe: Recipe of the weak pairs, beside the plan; its sampling is not used.
        leakage: Test collections that nothing may come from.
        cpt: Sampling of the pairs for CPT, see `Sampling`.
        sources: Labelled queries, see `LabelledSource`.
        sft_rows: Rows of a file for SFT.
        sft_words: Words of a document in these files; training reads fewer.
        mixes: By the file's name, the share of each source in it; sources with fewer rows are repeated.
        dev_depth: Candidates of a development query.
        pools: Sources whose documents become a corpus each, for queries to be generated from.
        distill_queries: Queries for lists that a teacher orders.
        distill_documents: Most documents of the corpus of those lists.
        seed: Of every draw.
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
            build_options(LabelledSource, one, f"source {number}") for number, one in enumerate(self.sources, start=1)
        ]
        names = [one.name for one in self.labelled]
        check_names("sources", names)
        check_names("mixes", list(self.mixes))
        if not self.leakage or not self.sources:
            raise InputError("a plan needs sources, and leakage must name the test collections")
        if self.dev_depth < 2 or self.sft_rows < 1 or self.sft_words < 1:
            raise InputError("dev_depth must be at least 2, sft_rows and sft_words at least 1")
        self.sampling = build_options(Sampling, {"seed": self.seed, **self.cpt}, "cpt")
        for mix, shares in self.mixes.items():
            if not isinstance(shares, Mapping) or not shares or not all(_is_share(one) for one in shares.values()):
                raise InputError(f"the mix {mix} must give shares above 0 by source, got {shares!r:.80}")
        for what, given in {"pools": self.pools, **{f"the mix {mix}": one for mix, one in self.mixes.items()}}.items():
            unknown = next((name for name in given if name not in names), None)
            if unknown is not None:
                raise InputError(f"{what} names {unknown!r}; there are {', '.join(names)}")


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def prepare(plan_file: Path, data: Path, output: Path, limit: int = 0) -> dict[str, Any]:
    """Makes everything that the trainings and the development evaluation read.

    The output folder gets `weak/` (all clean weak pairs), `cpt/`, `sft/MIX.jsonl`, `dev/SOURCE/` (BEIR's layout,
    judged split `dev`, run `candidates`), `held_out/` (development queries and their positives, which no training
    file holds), `pools/SOURCE/` (a corpus), `distill/` (corpus and queries) and `counts.json`. The same plan over
    the same files gives the same bytes.

    Args:
        plan_file: `data.yaml`.
        data: Folder with `weak_pairs`, `supervised` and `beir`.
        output: Folder to fill.
        limit: For rehearsals: only the first so many raw rows of every file; 0 takes all.

    Returns:
        The content of `counts.json`.

    Raises:
        InputError: the plan or a file is wrong.
    """
    plan = build_options(Plan, read_plan(plan_file, data), str(plan_file))
    weak = read_plan((plan_file.parent / plan.weak_recipe).resolve(), data)
    report: dict[str, Any] = {"limit": limit, "seed": plan.seed, "inputs": {}, "sources": {}, "leakage": {}}
    kept = _weak_pairs(weak, output / "weak", limit, report)
    with ExitStack() as stack:
        tests = stack.enter_context(LeakageCheck(plan.leakage, similar_queries=0))
        checks = {"test_collections": tests}
        # Again, whatever the recipe's own filters did: they may have looked before they mended.
        pairs = tests.clean_pairs(kept)
        sources = _Sources(plan, data, pairs, tests, output, limit, report)
        prepared = {source.name: sources.prepare(source) for source in plan.labelled}
        held = _write_held_out(output / "held_out", [one for _, dev, _ in prepared.values() for one in dev])
        if held is not None:
            # Without shared runs of words: answers and abstracts share formulas, and only copies give anything away.
            own = LeakageCheck([str(held)], similar_queries=0, run_words=0)
            checks["held_out"] = stack.enter_context(own)
        training = {name: _passed(rows, list(checks.values())) for name, (rows, _, _) in prepared.items()}
        for name, rows in training.items():
            report["sources"][name]["train"] = len(rows)
        _write_sft(plan, training, output / "sft", report)
        _write_cpt(plan, pairs, checks.get("held_out"), output / "cpt", report)
        _write_distill(plan, training, output / "distill", report)
        for name in plan.pools:
            pool, folder = prepared[name][2], output / "pools" / name
            report["sources"][name]["corpus"] = write_corpus(folder, pool.name, list(pool.ids), checks.get("held_out"))
        report["leakage"] = {name: check.record() for name, check in checks.items()}
    report["files"] = {
        name: {"rows": _lines(output / name), "sha256": hash_file(output / name)}
        for name in written(output, "cpt", "sft", "dev", "held_out", "pools", "distill")
    }
    report["versions"] = package_versions(PACKAGES)
    write_json(output / COUNTS, report)
    return report


def _weak_pairs(content: dict[str, Any], folder: Path, limit: int, report: dict[str, Any]) -> list[Pair]:
    """All clean weak pairs."""
    content = {name: value for name, value in content.items() if name != "sampling"}
    if limit:
        content["sources"] = [{**one, "limit": limit} for one in content["sources"]]
    build_weak_pairs(build_recipe(content), folder, overwrite=folder.exists())
    facts = read_json(folder / "provenance.json")
    report["weak"] = {"read": sum(one["pairs"] for one in facts["inputs"]), "kept_by_type": facts["kept_by_type"]}
    report["inputs"] |= {one["file"]["name"]: one["file"] for one in facts["inputs"]}
    return [
        Pair(**{name: record[name] for name in COLUMNS})
        for path in sorted((folder / "data").glob("*.parquet"))
        for _, record in read_records(path)
    ]


@dataclass
class _Sources:
    """What the labelled sources are read from, and what is noted of them."""

    plan: Plan
    data: Path
    pairs: Sequence[Pair]
    tests: LeakageCheck
    output: Path
    limit: int
    report: dict[str, Any]

    def prepare(self, source: LabelledSource) -> tuple[list[Judged], list[Judged], Pool]:
        """Training and development queries of a source, whose collection is written, and the source's documents."""
        generator = random.Random(f"{self.plan.seed}/{source.name}")
        lost: Counter[str] = Counter()
        own = [pair for pair in self.pairs if source.takes(pair)]
        rows = self._read(source, source.files, lost) if source.files else group_pairs(source, own, lost)
        cache = self.output / ".indexes"
        texts = [text for row in rows for text in row.texts]
        pool = Pool(source.name, [*texts, *(pair.document for pair in own)], cache)
        dev_rows, dev_pool = rows, pool
        if source.dev_files:
            dev_rows = self._read(source, source.dev_files, lost)
            dev_pool = Pool(f"{source.name}-dev", (text for row in dev_rows for text in row.texts), cache)
        dev, run = choose_dev(dev_rows, dev_pool, source.dev, self.plan.dev_depth, source.dev_hard, generator)
        if dev:
            judged = {row.query_id: dict.fromkeys(row.positives, 1) for row in dev}
            queries = {row.query_id: row.query for row in dev}
            dev_pool.write_collection(self.output / "dev" / source.name, queries, judged, run)
        taken = {row.query_id for row in dev}
        rest = [row for row in rows if row.query_id not in taken]
        if source.queries and len(rest) > source.queries:
            rest = generator.sample(rest, source.queries)
        rest = pool.with_negatives(rest, source.mining_options(self.plan.seed), lost) if rest else []
        self.report["sources"][source.name] = {
            "usable": len(rows),
            "pool": len(pool.documents),
            "dev": len(dev),
            "with_negatives": len(rest),
            "left_out": dict(sorted(lost.items())),
        }
        return rest, dev, pool

    def _read(self, source: LabelledSource, names: Sequence[str], lost: Counter[str]) -> list[Judged]:
        """The usable queries of files, cleaned; why others are not goes into `lost`."""
        rows = []
        for name in names:
            records = raw_records(self.data / "supervised", name, self.limit, self.report["inputs"])
            rows += [
                cleaned(source.cleaner, read_row(record, place, f"{name}-{number}"))
                for number, (place, record) in enumerate(records)
            ]
        return _passed(usable(rows, source, lost), [self.tests], needed="positives")


def _passed(rows: Sequence[Judged], checks: Sequence[LeakageCheck], needed: str = "negatives") -> list[Judged]:
    """The rows without what the collections have, as far as they keep a positive, and what is `needed`."""
    left = list(rows)
    for check in checks:
        left = [row for row in clean_judged(left, check, Counter()) if row.positives]
    return [row for row in left if getattr(row, needed)]


# ---- writing ---------------------------------------------------------------------------------------


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _write_held_out(folder: Path, rows: Sequence[Judged]) -> Path | None:
    """Development queries and positives in a form that the filter `leakage` reads."""
    if not rows:
        return None
    texts = dict.fromkeys(text for row in rows for text in row.positives)
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"p{number}", "text": text} for number, text in enumerate(texts)])
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
            while len(order) < wanted:  # every row as often as any other, give or take one
                order += generator.sample(training[name], min(len(training[name]), wanted - len(order)))
            drawn += [_sft_row(row, name, plan.sft_words) for row in order]
            counts[name] = {"rows": wanted, "queries": len({row.query_id for row in order})}
        generator.shuffle(drawn)
        write_jsonl(folder / f"{mix}.jsonl", drawn)
        report["sft"][mix] = counts


def _sft_row(row: Judged, source: str, words: int) -> dict[str, Any]:
    """The row of a training file, documents cut after so many words."""
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
    """The sampled pairs without those held out, in random order; the first ones are for validation."""
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
    """Corpus and queries for `tsarank data lists`: documents of training rows, an even share of each source."""
    generator = random.Random(f"{plan.seed}/distill")
    sources = [rows for rows in training.values() if rows]
    texts: dict[str, None] = {}
    for rows in sources:
        own = list(dict.fromkeys(text for row in rows for text in row.texts))
        generator.shuffle(own)
        texts |= dict.fromkeys(own[: plan.distill_documents // len(sources)])
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"c{number}", "text": text} for number, text in enumerate(texts)])
    seen: set[str] = set()
    queries = []
    for rows in sources:
        order = generator.sample(rows, min(len(rows), plan.distill_queries // len(sources)))
        for row in order:
            if row.query not in seen:
                seen.add(row.query)
                queries.append(SourceQuery(row.query_id, row.query, "labelled"))
    write_queries(folder / "queries.jsonl", queries, {"taken": len(queries)})
    report["distill"] = {"documents": len(texts), "queries": len(queries)}

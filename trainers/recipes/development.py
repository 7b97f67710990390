"""Development collections of sources that no training reads, and the lists that teachers are trained on, held apart.

A model is chosen on the collections. The lists hold no text of theirs and none of the test collections.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.types import Document
from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import parse_yaml, read_text
from modeling_tsarank.files.writing import write_json, write_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.hard_negatives import MiningOptions
from modeling_tsarank.trainers.data.leakage_check import LeakageCheck
from modeling_tsarank.trainers.data.provenance import COUNTS, package_versions
from modeling_tsarank.trainers.data.weak_text import words_of
from modeling_tsarank.trainers.recipes.development_pools import PoolSource, write_pool
from modeling_tsarank.trainers.recipes.development_reading import Judged, passages_of, queries_of, read_judged
from modeling_tsarank.trainers.recipes.release_sources import LabelledQuery, Pool, write_collection


DATA_VARIABLE = "$TSARANK_DATA"
_PACKAGES = ("bm25s", "datasketch", "numpy", "PyStemmer", "xxhash")
_RUN_DEPTH = 1000


@dataclass(frozen=True)
class DevelopmentSource:
    """One development collection.

    Attributes:
        name: Of the collection's folder.
        files: Under the data folder, without their ending; their passages are its corpus.
        origins: Of files of weak pairs: patterns of the sources taken; their documents alone are the corpus.
        queries: At most so many, drawn; 0 takes all.
        candidates: BM25's best documents of a query; 0: the query's own passages, in BM25's order.
        lowest: The grade that counts 0.
        apart_from: Files of which no query is taken.
        words: A passage is cut after so many.
    """

    name: str
    files: tuple[str, ...]
    origins: tuple[str, ...] = ()
    queries: int = 0
    candidates: int = 0
    lowest: int = 0
    apart_from: tuple[str, ...] = ()
    words: int = 500


@dataclass(frozen=True)
class ListSource:
    """Lists of one kind, for training.

    Attributes:
        name: Of the file.
        files: Under the data folder, without their ending.
        pool: Further files whose passages negatives may come from.
        queries: At most so many, drawn; 0 takes all.
        mining: Options of `MiningOptions`; a list with fewer negatives than `count` is filled up. None mines none.
        words: A passage is cut after so many.
    """

    name: str
    files: tuple[str, ...]
    pool: tuple[str, ...] = ()
    queries: int = 0
    mining: dict[str, Any] = field(default_factory=dict)
    words: int = 300


@dataclass
class DevelopmentPlan:
    """What `development.yaml` says: see the sources; `leakage` names the test collections."""

    leakage: tuple[str, ...]
    collections: tuple[Any, ...]
    lists: tuple[Any, ...] = ()
    pools: tuple[Any, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        self.dev = [build_options(DevelopmentSource, one, f"collection {n}") for n, one in enumerate(self.collections)]
        self.training = [build_options(ListSource, one, f"list {n}") for n, one in enumerate(self.lists)]
        self.corpora = [build_options(PoolSource, one, f"pool {n}") for n, one in enumerate(self.pools)]
        names = [one.name for one in (*self.dev, *self.training)]
        if not all(re.fullmatch(r"[\w-]+", name) for name in names) or len(set(names)) < len(names):
            raise InputError(f"collections and lists need different names of letters, digits, - and _, got {names}")
        named = {file for one in self.dev if not one.origins for file in one.files}
        read = {file for one in self.training for file in (*one.files, *one.pool)}
        shared = sorted(named & (read | {file for one in self.corpora for file in (*one.passages, *one.queries)}))
        if shared:
            raise InputError(f"{', '.join(shared)} is for development, and no list may be made of it")


def prepare_development(plan_file: Path, data: Path, output: Path, limit: int = 0) -> dict[str, Any]:
    """Makes development collections, lists, pools and `counts.json`.

    `dev/NAME/` is in BEIR's layout, with the split `dev` and the run `candidates`; `lists/NAME.jsonl` are rows of
    distillation; of `pools/NAME/` `tsarank data lists` makes more.

    Args:
        plan_file: `development.yaml`.
        data: Folder with `marco`, `supervised`, `weak_pairs` and `beir`.
        output: Folder to fill.
        limit: For rehearsals: only the first so many rows of every file; 0 takes all.

    Returns:
        The content of `counts.json`: what was read, kept out and written, with fingerprints.

    Raises:
        InputError: the plan or a file is wrong.
    """
    plan = build_options(DevelopmentPlan, _content(plan_file, data), str(plan_file))
    report: dict[str, Any] = {
        "limit": limit,
        "seed": plan.seed,
        "collections": {},
        "lists": {},
        "pools": {},
        "inputs": {},
    }
    with LeakageCheck(plan.leakage) as check:
        for source in plan.dev:
            report["collections"][source.name] = _write_collection(source, plan, data, output, limit, check, report)
        report["leakage"] = {"development": check.record()}
    with LeakageCheck([*plan.leakage, str(output / "dev")]) as check:
        for one in plan.training:
            report["lists"][one.name] = _write_lists(one, plan, data, output, limit, check, report)
        for pool in plan.corpora:
            passages = (text for name in pool.passages for text in passages_of(data, name, pool.words, limit, report))
            queries = {name: queries_of(data, name, limit, report) for name in pool.queries}
            report["pools"][pool.name] = write_pool(pool, output / "pools" / pool.name, passages, queries, check)
        report["leakage"]["lists and pools"] = check.record()
    report["files"] = {
        str(path.relative_to(output)): hash_file(path)
        for folder in ("dev", "lists", "pools")
        for path in sorted((output / folder).rglob("*.jsonl"))
    }
    report["versions"] = package_versions(_PACKAGES)
    write_json(output / COUNTS, report)
    return report


def is_development_plan(path: Path) -> bool:
    """Whether a plan of `tsarank recipe prepare` is one of these."""
    return "collections" in _content(path, Path())


def _content(path: Path, data: Path) -> dict[str, Any]:
    content = parse_yaml(read_text(path).replace(DATA_VARIABLE, str(data)), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected options by name")
    return content


# ---- development collections -----------------------------------------------------------------------


def _write_collection(
    source: DevelopmentSource,
    plan: DevelopmentPlan,
    data: Path,
    output: Path,
    limit: int,
    check: LeakageCheck,
    report: dict[str, Any],
) -> dict[str, Any]:
    rows = read_judged(data, source.files, source.words, limit, report, source.origins)
    pool = Pool(source.name, (text for row in rows for text in row.texts), output / ".indexes")
    usable = [
        row
        for row in rows
        if max(row.values) > source.lowest and (source.candidates or min(row.values) < max(row.values))
    ]
    taken = {tuple(words_of(one.query)) for one in read_judged(data, source.apart_from, source.words, 0, report)}
    free = [row for row in usable if tuple(words_of(row.query)) not in taken]
    leaks = check.query_leaks([row.query for row in free])
    chosen = [row for row, leak in zip(free, leaks, strict=True) if not leak]
    if source.queries and len(chosen) > source.queries:
        chosen = random.Random(f"{plan.seed}/{source.name}").sample(chosen, source.queries)
    queries = {f"{source.name}-{number}": row for number, row in enumerate(chosen)}
    labelled = [LabelledQuery(name, row.query, row.texts) for name, row in queries.items()]
    found = pool.candidates(labelled, min(source.candidates or _RUN_DEPTH, len(pool.documents)))
    run: dict[str, Mapping[str, float]] = {}
    for name, row in queries.items():
        scores = found.get(name, {})
        own = (pool.ids[text] for text in row.texts)
        run[name] = scores if source.candidates else {one: scores.get(one, 0.0) for one in own}
    judged = {
        name: {text: max(int(value) - source.lowest, 0) for text, value in zip(row.texts, row.values, strict=True)}
        for name, row in queries.items()
    }
    texts = {name: row.query for name, row in queries.items()}
    write_collection(output / "dev" / source.name, pool, texts, judged, run)
    return {
        "rows": len(rows),
        "corpus": len(pool.documents),
        "usable": len(usable),
        "also in apart_from": len(usable) - len(free),
        "queries": len(queries),
        "pairs": sum(map(len, run.values())),
        "judged pairs": sum(len(row.texts) for row in queries.values()),
    }


# ---- training lists --------------------------------------------------------------------------------


def _write_lists(
    source: ListSource,
    plan: DevelopmentPlan,
    data: Path,
    output: Path,
    limit: int,
    check: LeakageCheck,
    report: dict[str, Any],
) -> dict[str, Any]:
    """Lists without the texts that a gate keeps out; one whose query it keeps out goes, and one with nothing left."""
    lost: Counter[str] = Counter()
    rows = read_judged(data, source.files, source.words, limit, report)
    facts = {"rows": len(rows)}
    if source.queries and len(rows) > source.queries:
        rows = random.Random(f"{plan.seed}/{source.name}").sample(rows, source.queries)
    if source.mining:
        rows = _mined(source, plan, data, output, limit, rows, lost, report)
    rows = _passed(rows, check, lost)
    left = [row for row in rows if len(set(row.values)) > 1 or (len(row.texts) > 1 and not any(row.values))]
    lost["nothing to tell apart"] += len(rows) - len(left)
    write_jsonl(
        output / "lists" / f"{source.name}.jsonl",
        [
            {"query_id": f"{source.name}-{number}", "query": row.query, "documents": row.texts, row.target: row.values}
            for number, row in enumerate(left)
        ],
    )
    return {**facts, "lists": len(left), "passages": sum(len(row.texts) for row in left), "lost": dict(lost)}


def _mined(
    source: ListSource,
    plan: DevelopmentPlan,
    data: Path,
    output: Path,
    limit: int,
    rows: Sequence[Judged],
    lost: Counter[str],
    report: dict[str, Any],
) -> list[Judged]:
    """The rows, those with few negatives filled up with BM25's over the passages of the source and its pool."""
    options = build_options(MiningOptions, {"seed": plan.seed, **source.mining}, f"the list {source.name}, mining")
    everything = read_judged(data, source.files, source.words, limit, report)
    texts = [text for row in everything for text in row.texts]
    texts += [text for name in source.pool for text in passages_of(data, name, source.words, limit, report)]
    pool = Pool(source.name, texts, output / ".indexes")
    labelled = [
        LabelledQuery(
            str(number),
            row.query,
            tuple(text for text, value in zip(row.texts, row.values, strict=True) if value > 0),
            tuple(text for text, value in zip(row.texts, row.values, strict=True) if value <= 0),
        )
        for number, row in enumerate(rows)
    ]
    filled = pool.with_negatives([row for row in labelled if row.positives], options, lost)
    return [
        Judged(row.query, (*row.positives, *row.negatives), (1.0,) * len(row.positives) + (0.0,) * len(row.negatives))
        for row in filled
    ]


def _passed(rows: Sequence[Judged], check: LeakageCheck, lost: Counter[str]) -> list[Judged]:
    leaks = check.query_leaks([row.query for row in rows])
    clean = [row for row, leak in zip(rows, leaks, strict=True) if not leak]
    lost["query of a test or development collection"] += len(rows) - len(clean)
    texts = list(dict.fromkeys(text for row in clean for text in row.texts))
    leaked = {
        text
        for text, leak in zip(texts, check.passage_leaks([Document("", one) for one in texts]), strict=True)
        if leak
    }
    left = []
    for row in clean:
        kept = {text: value for text, value in zip(row.texts, row.values, strict=True) if text not in leaked}
        lost["passages of a test or development collection"] += len(row.texts) - len(kept)
        left.append(Judged(row.query, tuple(kept), tuple(kept.values()), row.target))
    return left

"""Development collections from sources without training data, and training lists for teachers, kept disjoint.

Models are selected on the collections. The lists contain no text of these, and none of the test collections.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.beir import read_queries
from modeling_tsarank.files.fields import field_text, record_text
from modeling_tsarank.files.writing import write_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.data_options import MiningOptions
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.filters_leakage import LeakageCheck
from modeling_tsarank.trainers.data.list_building import SourceQuery
from modeling_tsarank.trainers.data.provenance import describe_file
from modeling_tsarank.trainers.data.query_files import write_queries
from modeling_tsarank.trainers.data.weak_text import words_of
from modeling_tsarank.trainers.recipes.judged import (
    Judged,
    Pool,
    Raw,
    check_names,
    checked_record,
    clean_judged,
    read_plan,
    read_row,
    write_corpus,
    write_counts,
)


_RUN_DEPTH = 1000


@dataclass(frozen=True)
class DevelopmentSource:
    """One development collection.

    Attributes:
        name: Name of the collection's folder.
        files: Files in the data folder, without suffix; their passages are the corpus.
        origins: For files of weak pairs: patterns of the sources to use; only their documents are the corpus.
        queries: Maximum number of queries, sampled; 0 for all.
        candidates: Number of BM25 candidates per query; 0: the query's own passages, in BM25's order.
        lowest: The grade that maps to 0.
        apart_from: Files whose queries are excluded.
        words: Passages are truncated to this many words.
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
    """Training lists of one kind.

    Attributes:
        name: Name of the file.
        files: Files in the data folder, without suffix.
        pool: Further files with passages for negatives.
        queries: Maximum number of queries, sampled; 0 for all.
        mining: Options of `MiningOptions`; lists with fewer negatives than `count` are filled up. None: no mining.
        words: Passages are truncated to this many words.
    """

    name: str
    files: tuple[str, ...]
    pool: tuple[str, ...] = ()
    queries: int = 0
    mining: dict[str, Any] = field(default_factory=dict)
    words: int = 300


@dataclass(frozen=True)
class PoolSource:
    """A corpus with queries, from which `tsarank data lists` makes lists at scale.

    Attributes:
        name: Name of the folder.
        passages: Files in the data folder, without suffix, whose passages are the corpus.
        queries: Files with the queries; one with a suffix is read as BEIR's, such as `queries.tsv.gz`.
        words: Passages are truncated to this many words.
        least_words, most_words: Limits of a query's length.
    """

    name: str
    passages: tuple[str, ...]
    queries: tuple[str, ...]
    words: int = 200
    least_words: int = 3
    most_words: int = 30


@dataclass
class DevelopmentPlan:
    """The content of `development.yaml`: see the sources; `leakage` lists the test collections."""

    leakage: tuple[str, ...]
    collections: tuple[Any, ...]
    lists: tuple[Any, ...] = ()
    pools: tuple[Any, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        self.dev = [build_options(DevelopmentSource, one, f"collection {n}") for n, one in enumerate(self.collections)]
        self.training = [build_options(ListSource, one, f"list {n}") for n, one in enumerate(self.lists)]
        self.corpora = [build_options(PoolSource, one, f"pool {n}") for n, one in enumerate(self.pools)]
        check_names("collections and lists", [one.name for one in (*self.dev, *self.training)])
        check_names("pools", [one.name for one in self.corpora])
        named = {file for one in self.dev if not one.origins for file in one.files}
        read = {file for one in self.training for file in (*one.files, *one.pool)}
        shared = sorted(named & (read | {file for one in self.corpora for file in (*one.passages, *one.queries)}))
        if shared:
            raise InputError(f"{', '.join(shared)} is for development and cannot be used for a list")


def prepare_development(plan_file: Path, data: Path, output: Path, limit: int = 0) -> dict[str, Any]:
    """Makes development collections, lists, pools and `counts.json`.

    `dev/NAME/` is in BEIR's layout, with the split `dev` and the run `candidates`; `lists/NAME.jsonl` contains
    distillation rows; from `pools/NAME/`, `tsarank data lists` makes more.

    Args:
        plan_file: `development.yaml`.
        data: Folder with `marco`, `supervised`, `weak_pairs` and `beir`.
        output: Output folder.
        limit: For rehearsals: only the first N rows of every file; 0 for all.

    Returns:
        The content of `counts.json`: what was read, excluded and written, with fingerprints.

    Raises:
        InputError: the plan or a file is invalid.
    """
    plan = build_options(DevelopmentPlan, read_plan(plan_file, data), str(plan_file))
    report: dict[str, Any] = {"limit": limit, "seed": plan.seed, "inputs": {}}
    raw = _Raw(data, limit, report["inputs"])
    with LeakageCheck(plan.leakage) as check:
        report["collections"] = {
            source.name: _write_collection(source, plan.seed, raw, output, check) for source in plan.dev
        }
        report["leakage"] = {"development": check.record()}
    with LeakageCheck([*plan.leakage, str(output / "dev")]) as check:
        report["lists"] = {one.name: _write_lists(one, plan.seed, raw, output, check) for one in plan.training}
        report["pools"] = {one.name: _write_pool(one, raw, output / "pools" / one.name, check) for one in plan.corpora}
        report["leakage"]["lists and pools"] = check.record()
    return write_counts(output, report, "dev", "lists", "pools")


class _Raw(Raw):
    """Rows and queries of the raw files."""

    def rows(self, name: str, words: int, origins: Sequence[str] = ()) -> Iterator[Judged]:
        """The rows of a file with passages truncated to `words` words; rows without a passage are skipped."""
        for place, record in self.records(name):
            source = field_text(checked_record(record, place), "source", place) or "" if origins else ""
            if not origins or any(fnmatchcase(source, one) for one in origins):
                row = read_row(record, place, "")
                pairs = ((" ".join(text.split()[:words]), value) for text, value in row.pairs)
                row = row.with_pairs(pair for pair in pairs if pair[0])
                if row.texts:
                    yield replace(row, query=" ".join(row.query.split()))

    def judged(self, names: Sequence[str], words: int, origins: Sequence[str] = ()) -> list[Judged]:
        """The rows of files, one per query; a passage in two rows gets the higher value."""
        found: dict[tuple[str, ...], Judged] = {}
        for row in (row for name in names for row in self.rows(name, words, origins) if row.query):
            key = tuple(words_of(row.query))
            found[key] = found[key].with_pairs(row.pairs + found[key].pairs) if key in found else row
        return list(found.values())

    def queries(self, name: str) -> list[str]:
        """The queries of a file, unchanged."""
        if not name.endswith(".gz"):
            return [record_text(checked_record(one, place), place, "query") for place, one in self.records(name)]
        path = self.data / name
        self.inputs[name] = describe_file(path)
        return list(read_queries(path).values())[: self.limit or None]


def _write_collection(
    source: DevelopmentSource, seed: int, raw: _Raw, output: Path, check: LeakageCheck
) -> dict[str, Any]:
    rows = raw.judged(source.files, source.words, source.origins)
    pool = Pool(source.name, (text for row in rows for text in row.texts), output / ".indexes")
    usable = [
        row
        for row in rows
        if max(row.values) > source.lowest and (source.candidates or min(row.values) < max(row.values))
    ]
    apart = replace(raw, limit=0)
    taken = {tuple(words_of(one.query)) for one in apart.judged(source.apart_from, source.words)}
    free = [row for row in usable if tuple(words_of(row.query)) not in taken]
    chosen = check.clean_queries(free)
    if source.queries and len(chosen) > source.queries:
        chosen = random.Random(f"{seed}/{source.name}").sample(chosen, source.queries)
    chosen = [replace(row, query_id=f"{source.name}-{number}") for number, row in enumerate(chosen)]
    found = pool.candidates(chosen, min(source.candidates or _RUN_DEPTH, len(pool.documents)))
    run: dict[str, Mapping[str, float]] = {}
    for row in chosen:
        scores = found.get(row.query_id, {})
        own = (pool.ids[text] for text in row.texts)
        run[row.query_id] = scores if source.candidates else {one: scores.get(one, 0.0) for one in own}
    judged = {row.query_id: {text: max(int(value) - source.lowest, 0) for text, value in row.pairs} for row in chosen}
    pool.write_collection(output / "dev" / source.name, {row.query_id: row.query for row in chosen}, judged, run)
    return {
        "rows": len(rows),
        "corpus": len(pool.documents),
        "usable": len(usable),
        "also in apart_from": len(usable) - len(free),
        "queries": len(chosen),
        "pairs": sum(map(len, run.values())),
        "judged pairs": sum(len(row.texts) for row in chosen),
    }


def _write_lists(source: ListSource, seed: int, raw: _Raw, output: Path, check: LeakageCheck) -> dict[str, Any]:
    """Writes lists without texts of test or development collections; lists without distinct values are dropped."""
    lost: Counter[str] = Counter()
    everything = rows = raw.judged(source.files, source.words)
    if source.queries and len(rows) > source.queries:
        rows = random.Random(f"{seed}/{source.name}").sample(rows, source.queries)
    if source.mining:
        options = build_options(MiningOptions, {"seed": seed, **source.mining}, f"the list {source.name}, mining")
        texts = [text for row in everything for text in row.texts]
        texts += [text for name in source.pool for row in raw.rows(name, source.words) for text in row.texts]
        named = [replace(row, query_id=str(number)) for number, row in enumerate(rows) if row.positives]
        rows = Pool(source.name, texts, output / ".indexes").with_negatives(named, options, lost)
    rows = clean_judged(rows, check, lost)
    left = [row for row in rows if len(set(row.values)) > 1 or (len(row.texts) > 1 and not any(row.values))]
    lost["nothing to tell apart"] += len(rows) - len(left)
    write_jsonl(
        output / "lists" / f"{source.name}.jsonl",
        [
            {"query_id": f"{source.name}-{number}", "query": row.query, "documents": row.texts, row.target: row.values}
            for number, row in enumerate(left)
        ],
    )
    passages = sum(len(row.texts) for row in left)
    return {"rows": len(everything), "lists": len(left), "passages": passages, "lost": dict(lost)}


def _write_pool(source: PoolSource, raw: _Raw, folder: Path, check: LeakageCheck) -> dict[str, Any]:
    """Writes `corpus.jsonl` and `queries.jsonl` without texts that the check finds; returns counts."""
    rows = (row for name in source.passages for row in raw.rows(name, source.words))
    texts = list(dict.fromkeys(text for row in rows for text in row.texts))
    passages = write_corpus(folder, f"{source.name}-p", texts, check)
    unique: dict[tuple[str, ...], tuple[str, str]] = {}
    for name in source.queries:
        for query in raw.queries(name):
            words = tuple(words_of(query))
            if source.least_words <= len(words) <= source.most_words:
                unique.setdefault(words, (query, name.rpartition("/")[2]))
    kept = check.clean_queries(list(unique.values()), itemgetter(0))
    counts = {"queries": len(kept), "queries kept out": len(unique) - len(kept)}
    queries = [SourceQuery(f"{source.name}-q{number}", query, kind) for number, (query, kind) in enumerate(kept)]
    write_queries(folder / "queries.jsonl", queries, counts)
    return {"passages": passages, "passages kept out": len(texts) - passages, **counts}

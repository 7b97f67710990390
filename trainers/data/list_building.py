"""Lists to rank: assignment of queries to first stages, the top documents of each, and the split of the result.

Reference: TWOLAR, section 3.2: 10K cropped and 10K generated queries, each half split evenly over four first stages,
the top 30 documents each; 19K for training and 1K, half of each kind, for validation.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.first_stages import CollectionTexts, FirstStageIndex, build_index
from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection, Document, Run
from modeling_tsarank.files.fields import field_text, optional_id, record_id, record_text
from modeling_tsarank.files.reading import read_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.teacher_scores import Scorer


logger = logging.getLogger(__name__)

RERANK_PREFIX = "rerank:"
BASE = "bm25"
"""The first stage of a rerank: stage."""


@dataclass(frozen=True)
class SourceQuery:
    """A query and its origin.

    Attributes:
        query_id: Unique id.
        text: The query.
        query_type: `cropped`, `generated`, or another word.
        source: Id of the passage it was made from, or None.
        generator: The model that generated it; None for a cropped one.
    """

    query_id: str
    text: str
    query_type: str
    source: str | None = None
    generator: str | None = None


@dataclass(frozen=True)
class FirstStage:
    """One first stage.

    Attributes:
        name: Short name, recorded in every row.
        spec: `bm25`, `dense:MODEL`, `splade:MODEL`, or `rerank:MODEL`: a reranker (see `load_scorer`) over the first
            `rerank_depth` documents of BM25.
        rerank_depth: Documents reranked (TWOLAR: 100).
    """

    name: str
    spec: str
    rerank_depth: int = 100

    @property
    def reranks(self) -> bool:
        """Whether it is a reranker over another stage."""
        return self.spec.startswith(RERANK_PREFIX)


def parse_stage(text: str, rerank_depth: int = 100) -> FirstStage:
    """A stage as given on the command line: `SPEC` or `NAME=SPEC`. Raises `InputError` for an empty part."""
    name, equals, spec = text.partition("=")
    if not equals:
        spec = text
        kind, _, rest = spec.partition(":")
        name = f"{BASE}+{rest.rpartition('/')[2]}" if kind == "rerank" else kind
    if not name or not spec or spec == RERANK_PREFIX:
        raise InputError(f"a first stage is SPEC or NAME=SPEC, got {text!r}")
    return FirstStage(name, spec, rerank_depth)


def describe_stage(stage: FirstStage) -> dict[str, Any]:
    """A stage for a card: without the folders of a model's path."""
    kind, colon, model = stage.spec.partition(":")
    described: dict[str, Any] = {"name": stage.name, "stage": kind + colon + model.rstrip("/").rpartition("/")[2]}
    if stage.reranks:
        described |= {"base": BASE, "rerank_depth": stage.rerank_depth}
    return described


def read_queries(paths: Iterable[str | Path]) -> list[SourceQuery]:
    """Queries from one or several files of `tsarank data queries`.

    Raises:
        InputError: a field is missing (with the line number), or an id or a text is repeated.
    """
    queries: dict[str, SourceQuery] = {}
    texts: set[str] = set()
    for path in paths:
        for place, record in read_jsonl(path):
            about = record.get("metadata")
            about = about if isinstance(about, dict) else {}
            query_id, text = record_id(record, place, "query_id"), record_text(record, place, "query_text")
            if not text.strip():
                raise InputError(f"{place}: the query is empty")
            if query_id in queries:
                raise InputError(f"{place}: the query id {query_id!r} appeared before; ids are unique")
            if text in texts:
                raise InputError(f"{place}: the query {text!r:.60} appeared before; leave one out")
            texts.add(text)
            kind, generator = (field_text(about, name, place) for name in ("query_type", "generator"))
            queries[query_id] = SourceQuery(query_id, text, kind or "given", optional_id(about, place), generator)
    if not queries:
        raise InputError("there is no query in the given files")
    return list(queries.values())


def place_of(seed: int, *parts: str) -> str:
    """A sort key for a shuffle that depends only on the seed."""
    return hashlib.sha256("\0".join((str(seed), *parts)).encode("utf-8", "surrogatepass")).hexdigest()


def deal_out(queries: Sequence[SourceQuery], stages: Sequence[FirstStage], seed: int = 0) -> dict[str, FirstStage]:
    """Maps query ids to first stages: each type of queries is split evenly, by a shuffle that depends only on the
    seed.

    Raises:
        InputError: no stage, or two stages of the same name.
    """
    if not stages or len({stage.name for stage in stages}) < len(stages):
        raise InputError(
            f"first stages need distinct names, got {', '.join(stage.name for stage in stages) or 'none'}"
        )
    # Type by type: the remainder of one type goes to the stages that got fewer queries of the types before.
    shuffled = sorted(queries, key=lambda one: (one.query_type, place_of(seed, "stage", one.query_id)))
    return {query.query_id: stages[number % len(stages)] for number, query in enumerate(shuffled)}


class Retriever:
    """Runs first stages over a corpus; each index is built and each reranker loaded only once.

    Args:
        documents: Document id to document.
        cache_dir: Folder of the indexes; see `files.caches.cache_root`.
        make_scorer: Creates the scorer of a `rerank:` stage from its name.
        options: Keyword arguments of `build` by kind of index (`dense`, `splade`, `bm25`).
    """

    def __init__(
        self,
        documents: Mapping[str, Document],
        cache_dir: str | Path | None,
        make_scorer: Callable[[str], Scorer] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.documents = documents
        self._texts = CollectionTexts(Collection("corpus", documents, {}, {}))
        self._cache_dir, self._options = cache_dir, options or {}
        self._index, self._scorer = cache(self._build_index), make_scorer and cache(make_scorer)

    def run(self, stage: FirstStage, queries: Mapping[str, str], depth: int) -> Run:
        """The top `depth` documents of every query (id to text).

        Raises:
            InputError: a reranker that ranks fewer documents than `depth`.
        """
        if not stage.reranks:
            return self._index(stage.spec).search(queries, depth)
        if stage.rerank_depth < depth:
            raise InputError(f"{stage.name} reranks {stage.rerank_depth} documents, fewer than the {depth} of a list")
        candidates = self._index(BASE).search(queries, stage.rerank_depth)
        assert self._scorer is not None
        scorer = self._scorer(stage.spec.removeprefix(RERANK_PREFIX))
        best = {query_id: ranked(found) for query_id, found in candidates.items() if found}
        lists = ((queries[one], [self.documents[name].full_text for name in ids]) for one, ids in best.items())
        run: Run = {query_id: {} for query_id in candidates}
        scored = zip(best.items(), scorer.scores_of(lists), strict=True)
        for (query_id, ids), scores in tqdm(scored, desc=stage.name, total=len(best), unit="query", disable=None):
            places = sorted(range(len(ids)), key=lambda place: -scores[place])[:depth]
            run[query_id] = {ids[place]: scores[place] for place in places}
        return run

    def _build_index(self, spec: str) -> FirstStageIndex:
        options = self._options.get(spec.partition(":")[0], {})
        return build_index(spec, self._texts.ids, self._texts, self._cache_dir, **options)


@dataclass(frozen=True)
class ListTask:
    """A list to rank.

    Attributes:
        query: The query.
        first_stage: Name of the stage that retrieved the documents.
        document_ids: n ids, best first.
    """

    query: SourceQuery
    first_stage: str
    document_ids: tuple[str, ...]


def collect_lists(
    retriever: Retriever,
    queries: Sequence[SourceQuery],
    stages: Sequence[FirstStage],
    list_size: int = 30,
    seed: int = 0,
) -> tuple[list[ListTask], list[ListTask]]:
    """Every query's top documents from its assigned stage.

    Args:
        retriever: Runs the stages.
        queries: All queries.
        stages: All stages.
        list_size: Maximum documents per list, 2 or more.
        seed: Seed of the assignment.

    Returns:
        The lists in the order of `queries`, and those with fewer than 2 documents.
    """
    assigned = deal_out(queries, stages, seed)
    found: dict[str, tuple[str, ...]] = {}
    for stage in stages:
        own = {query.query_id: query.text for query in queries if assigned[query.query_id] == stage}
        if own:
            run = retriever.run(stage, own, list_size)
            found |= {query_id: tuple(ranked(scores, list_size)) for query_id, scores in run.items()}
    tasks = [ListTask(query, assigned[query.query_id].name, found[query.query_id]) for query in queries]
    full = [task for task in tasks if len(task.document_ids) >= 2]
    return full, [task for task in tasks if len(task.document_ids) < 2]


def document_record(name: str, documents: Mapping[str, Document]) -> dict[str, Any]:
    """A document in the format of training rows."""
    return {"docid": name, "title": documents[name].title or None, "text": documents[name].text}


def spread(tasks: Sequence[ListTask], limit: int) -> list[ListTask]:
    """At most `limit` lists, taken round-robin from query types and first stages, in the given order."""
    rounds: Counter[tuple[str, str]] = Counter()
    turns = []
    for place, task in enumerate(tasks):
        key = task.query.query_type, task.first_stage
        turns.append((rounds[key], place))
        rounds[key] += 1
    kept = sorted(place for _, place in sorted(turns)[:limit])
    return [tasks[place] for place in kept]

"""Hard negatives for fine-tuning: high ranks of a first stage that, as far as scores tell, are no positives.

The window, the margins and the sampling mean what they mean in sentence-transformers' `mine_hard_negatives`, here for
every first stage and with ids instead of texts. Reference for the margins: Moreira et al.,
NV-Retriever, 2024 (TopK-PercPos is a relative margin of 0.05). TSARankLLM draws its 48 negatives from the top 1,000.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import repeat
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.data_options import MiningOptions
from modeling_tsarank.trainers.data.list_building import FirstStage, Retriever
from modeling_tsarank.trainers.data.teacher_scores import CachedScorer
from modeling_tsarank.trainers.row_checks import plain_text


@dataclass
class MiningCounts:
    """What became of queries and candidates.

    Attributes:
        queries: Queries with a positive that has a text.
        rows: Queries that got a row.
        lost: Reason to number of queries without a row.
        candidates: Reason to number of candidates dropped.
        negatives: Negatives in all rows.
        short: Rows with fewer negatives than asked for.
    """

    queries: int = 0
    rows: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    candidates: Counter[str] = field(default_factory=Counter)
    negatives: int = 0
    short: int = 0

    def recount(self, rows: Sequence[Mapping[str, Any]], asked: int) -> None:
        """Counts the rows that a leakage check left, of which each should have `asked` negatives."""
        self.lost["in a test collection"] += self.rows - len(rows)
        self.rows = len(rows)
        self.negatives = sum(len(row["negatives"]) for row in rows)
        self.short = sum(len(row["negatives"]) < asked for row in rows)

    def as_dict(self) -> dict[str, Any]:
        """For a report; `queries` is `rows` and all of `lost`."""
        return {**asdict(self), "lost": dict(self.lost), "candidates": dict(self.candidates)}


def positives_of(collection: Collection) -> dict[str, list[str]]:
    """Judged query to its relevant documents that are in the corpus, the highest grade first.

    Raises:
        InputError: there is none.
    """
    found = {}
    for query_id in collection.judged_queries():
        grades = collection.qrels[query_id]
        relevant = [name for name, grade in grades.items() if grade > 0 and name in collection.documents]
        if relevant:
            found[query_id] = sorted(relevant, key=lambda name: -grades[name])
    if not found:
        raise InputError(f"{collection.name} has no query with a relevant document in its corpus")
    return found


def mine_negatives(
    collection: Collection,
    stage: FirstStage,
    retriever: Retriever,
    options: MiningOptions,
    judge: CachedScorer | None = None,
    show_progress: bool | None = None,
) -> tuple[list[dict[str, Any]], MiningCounts]:
    """Rows for `tsarank train sft`: query, positives and mined negatives, with where they come from.

    A candidate is no negative if it is a positive, has a positive's text, was judged relevant to the query, or scores
    above the margin beside the query's lowest-scored positive. Scores are the
    first stage's, or those of `judge`. With margins by the first stage, a query none of whose positives it finds has
    nothing to compare with and is left out ("positive not retrieved").

    Args:
        collection: Queries, judgments and corpus. A query's own document (ArguAna) is never a negative.
        stage: Where candidates come from.
        retriever: Runs it.
        options: Which candidates are taken.
        judge: Scores positives and candidates for the margins.
        show_progress: Progress bar on stderr; None shows it on a terminal only.

    Returns:
        Rows in the order of the queries, and the counts.

    Raises:
        InputError: no query has a positive.
    """
    positives = positives_of(collection)
    texts = {query_id: collection.queries[query_id] for query_id in positives}
    # The positives are among the retrieved documents, and must not cost a window its last places.
    most = max(len(names) for names in positives.values())
    depth = options.depth + most
    run = retriever.run(stage, texts, min(depth, stage.rerank_depth) if stage.reranks else depth)
    counts = MiningCounts(queries=len(positives))
    rows = []
    hidden = None if show_progress is None else not show_progress
    windows = {
        query_id: _candidates(collection, query_id, names, run.get(query_id, {}), options, counts)
        for query_id, names in positives.items()
    }
    judged: Iterable[list[float] | None] = repeat(None)
    if judge is not None and options.has_margin:
        judged = judge.scores_of(
            (
                collection.queries[query_id],
                [collection.documents[name].full_text for name in (*names, *(one[0] for one in windows[query_id]))],
            )
            for query_id, names in positives.items()
        )
    bar = tqdm(positives, desc="mining negatives", unit="query", disable=hidden)
    for query_id, values in zip(bar, judged, strict=False):
        candidates = windows[query_id]
        chosen = _choose(query_id, positives[query_id], candidates, run.get(query_id, {}), options, values, counts)
        if chosen is None:
            continue
        if not chosen:
            counts.lost["too few negatives"] += 1
            continue
        rows.append(_row(collection, query_id, positives[query_id], chosen, stage, options))
        counts.rows += 1
        counts.negatives += len(chosen)
        counts.short += len(chosen) < options.count
    return rows, counts


Candidate = tuple[str, int, float]
"""Document id, rank in the window's list (from 1, positives taken out), score."""


def _candidates(
    collection: Collection,
    query_id: str,
    positives: Sequence[str],
    scores: Mapping[str, float],
    options: MiningOptions,
    counts: MiningCounts,
) -> list[Candidate]:
    """The window, without positives and their copies."""
    own = {plain_text(collection.documents[name].full_text) for name in positives}
    known = {*positives, *([query_id] if collection.self_match else [])}
    rest = []
    for name in ranked(scores):
        if name in known:
            continue
        if plain_text(collection.documents[name].full_text) in own:
            counts.candidates["copy of a positive"] += 1
            continue
        rest.append(name)
    window = list(enumerate(rest, start=1))[options.rank_min : options.depth]
    return [(name, rank, scores[name]) for rank, name in window]


def _choose(
    query_id: str,
    positives: Sequence[str],
    candidates: list[Candidate],
    scores: Mapping[str, float],
    options: MiningOptions,
    values: Sequence[float] | None,
    counts: MiningCounts,
) -> list[Candidate] | None:
    """The negatives, best first; None where there is nothing to compare scores with."""
    generator = random.Random(f"{options.seed}\0{query_id}")
    if not options.has_margin:
        return _sample(candidates, options, generator)
    if values is None:
        found = [scores[name] for name in positives if name in scores]
        if not found:
            counts.lost["positive not retrieved"] += 1
            return None
        limit = options.threshold(found)
        judged = {name: score for name, _, score in candidates}
    else:
        names = [*positives, *(name for name, _, _ in candidates)]
        limit = options.threshold(values[: len(positives)])
        judged = dict(zip(names, values, strict=True))
    kept = [candidate for candidate in candidates if judged[candidate[0]] <= limit]
    counts.candidates["above the margin"] += len(candidates) - len(kept)
    return _sample(kept, options, generator)


def _sample(candidates: list[Candidate], options: MiningOptions, generator: random.Random) -> list[Candidate]:
    if options.sampling == "top" or len(candidates) <= options.count:
        return candidates[: options.count]
    places = sorted(generator.sample(range(len(candidates)), options.count))
    return [candidates[place] for place in places]


def _row(
    collection: Collection,
    query_id: str,
    positives: Sequence[str],
    negatives: Sequence[Candidate],
    stage: FirstStage,
    options: MiningOptions,
) -> dict[str, Any]:
    def document(name: str) -> dict[str, Any]:
        found = collection.documents[name]
        return {"docid": name, "title": found.title or None, "text": found.text}

    margin = f"absolute {options.absolute_margin}, relative {options.relative_margin}"
    return {
        "query_id": query_id,
        "query": collection.queries[query_id],
        "positives": [document(name) for name in positives],
        "negatives": [{**document(name), "rank": rank, "score": float(score)} for name, rank, score in negatives],
        "source": collection.name,
        "first_stage": stage.name,
        "window": f"{options.rank_min + 1}-{options.depth}",
        "margin": margin if options.has_margin else "none",
        "sampling": f"{options.sampling}, seed {options.seed}",
    }

"""Hard negatives for fine-tuning: documents at high ranks of a first stage that, by their scores, are not positives.

The window, the margins and the sampling are those of sentence-transformers' `mine_hard_negatives`, here for
every first stage and with ids instead of texts. Reference for the margins: Moreira et al.,
NV-Retriever, 2024 (TopK-PercPos is a relative margin of 0.05). TSARankLLM samples its 48 negatives from the top 1,000.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.data_options import MiningOptions
from modeling_tsarank.trainers.data.list_building import FirstStage, Retriever, document_record
from modeling_tsarank.trainers.data.teacher_scores import Scorer
from modeling_tsarank.trainers.row_checks import plain_text


@dataclass
class MiningCounts:
    """Counts of queries and candidates.

    Attributes:
        queries: Queries with a positive that has a text.
        lost: Reason to number of queries without a row.
        candidates: Reason to number of candidates dropped.
    """

    queries: int
    lost: Counter[str] = field(default_factory=Counter)
    candidates: Counter[str] = field(default_factory=Counter)

    def report(self, rows: Sequence[Mapping[str, Any]], asked: int) -> dict[str, Any]:
        """The counts together with those of the rows, which should have `asked` negatives each: `queries` is `rows`
        plus all of `lost`; `short` rows have fewer."""
        numbers = [len(row["negatives"]) for row in rows]
        counts = {"queries": self.queries, "rows": len(rows), "lost": dict(self.lost)}
        short = sum(number < asked for number in numbers)
        return {**counts, "candidates": dict(self.candidates), "negatives": sum(numbers), "short": short}


def positives_of(collection: Collection) -> dict[str, list[str]]:
    """Each judged query's relevant documents that are in the corpus, the highest grade first.

    Raises:
        InputError: there are none.
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
    judge: Scorer | None = None,
) -> tuple[list[dict[str, Any]], MiningCounts]:
    """Rows for `tsarank train sft`: query, positives and mined negatives, with their origin.

    A candidate is not used as a negative if it is a positive, has a positive's text, was judged relevant to the query,
    or scores above the margin below the query's lowest-scored positive. Scores are the first stage's, or those of
    `judge`. With margins by the first stage, a query without a retrieved positive has no score to compare with and is
    left out ("positive not retrieved").

    Args:
        collection: Queries, judgments and corpus. A query's own document (ArguAna) is never a negative.
        stage: Source of the candidates.
        retriever: Runs it.
        options: Mining options.
        judge: Scores positives and candidates for the margins.

    Returns:
        Rows in the order of the queries, and the counts.

    Raises:
        InputError: no query has a positive.
    """
    positives = positives_of(collection)
    texts = {query_id: collection.queries[query_id] for query_id in positives}
    rows: list[dict[str, Any]] = []
    record = partial(document_record, documents=collection.documents)
    margin = f"absolute {options.absolute_margin}, relative {options.relative_margin}"
    origin = {
        "source": collection.name,
        "first_stage": stage.name,
        "window": f"{options.rank_min + 1}-{options.depth}",
        "margin": margin if options.has_margin else "none",
        "sampling": f"{options.sampling}, seed {options.seed}",
    }

    def window(query_id: str) -> list[tuple[str, int, float]]:
        """Id, rank (from 1, not counting positives) and score of the candidates except positives and their copies."""
        own = {plain_text(collection.documents[name].full_text) for name in positives[query_id]}
        known = {*positives[query_id], *([query_id] if collection.self_match else [])}
        scores = run.get(query_id, {})
        others = [name for name in ranked(scores) if name not in known]
        rest = [name for name in others if plain_text(collection.documents[name].full_text) not in own]
        counts.candidates.update(["copy of a positive"] * (len(others) - len(rest)))
        ranks = list(enumerate(rest, start=1))[options.rank_min : options.depth]
        return [(name, rank, scores[name]) for rank, name in ranks]

    # Retrieved positives must not shorten the window.
    most = max(len(names) for names in positives.values())
    depth = options.depth + most
    run = retriever.run(stage, texts, min(depth, stage.rerank_depth) if stage.reranks else depth)
    counts = MiningCounts(len(positives))
    windows = {query_id: window(query_id) for query_id in positives}
    judged: Iterable[list[float] | None] = repeat(None)
    if judge is not None and options.has_margin:
        judged = judge.scores_of(
            (
                collection.queries[query_id],
                [collection.documents[name].full_text for name in (*names, *(one[0] for one in windows[query_id]))],
            )
            for query_id, names in positives.items()
        )
    bar = tqdm(positives.items(), desc="mining negatives", unit="query", disable=None)
    for (query_id, names), values in zip(bar, judged, strict=False):
        candidates = windows[query_id]
        if options.has_margin:
            scores = run.get(query_id, {})
            if values is not None:
                scores = dict(zip((*names, *(one[0] for one in candidates)), values, strict=True))
            own = [scores[name] for name in names if name in scores]
            if not own:
                counts.lost["positive not retrieved"] += 1
                continue
            limit, before = options.threshold(own), len(candidates)
            candidates = [one for one in candidates if scores[one[0]] <= limit]
            counts.candidates["above the margin"] += before - len(candidates)
        if options.sampling == "top":
            candidates = candidates[: options.count]
        elif len(candidates) > options.count:
            generator = random.Random(f"{options.seed}\0{query_id}")
            candidates = [candidates[at] for at in sorted(generator.sample(range(len(candidates)), options.count))]
        if not candidates:
            counts.lost["too few negatives"] += 1
            continue
        negatives = [{**record(name), "rank": rank, "score": float(score)} for name, rank, score in candidates]
        found = list(map(record, names))
        rows.append(
            {"query_id": query_id, "query": texts[query_id], "positives": found, "negatives": negatives} | origin
        )
    return rows, counts

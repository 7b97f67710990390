"""Fuses runs and tunes the fusion weight on a development split; see `scores.fusion` for the fused score.

Only the candidates that the reranker scored are fused; the others follow in first-stage order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from modeling_tsarank.eval.metrics import canonical_measure, compute_metrics
from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Qrels, Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number
from modeling_tsarank.scores.fusion import FusionSetting, Normalization, fuse_query, normalize


logger = logging.getLogger(__name__)
FEW_QUERIES = 20


def warn_of_few_queries(count: int, what: str) -> None:
    """Warns once if `what` is fitted on so few judged queries that the result is mostly noise."""
    if count < FEW_QUERIES:
        logger.warning("%s is fitted on %d judged queries; below %d it is mostly noise", what, count, FEW_QUERIES)


@dataclass(frozen=True)
class TunedFusion:
    """The chosen setting and the whole curve: `curve[i]` is the mean of the measure at `weights[i]`."""

    setting: FusionSetting
    weights: list[float]
    curve: list[float]


def hash_qrels(qrels: Qrels) -> str:
    """Digest of relevance judgments, independent of their order and file format."""
    return hash_parts(hash_queries(qrels))


def hash_queries(qrels: Qrels) -> tuple[str, ...]:
    """A short digest of each query id with its judgments, in the order of the ids."""
    return tuple(
        hash_parts([query_id, json.dumps(sorted(qrels[query_id].items()), ensure_ascii=False)])[:16]
        for query_id in sorted(qrels)
    )


def refuse_tuned_split(setting: FusionSetting, qrels: Qrels, name: str) -> None:
    """Raises if results would be reported on queries that the weight was tuned on.

    Raises:
        InputError: `qrels` are the judgments used for tuning, or share a judged query with them.
    """
    if setting.qrels_hash is None:
        return
    reported = hash_queries(qrels)
    shared = len(set(reported) & set(setting.query_hashes))
    if shared or hash_qrels(qrels) == setting.qrels_hash:
        raise InputError(
            f"the fusion weight was tuned on {shared or len(reported)} of the {len(reported)} judged queries "
            f"of {name}: tune it on a different split than the reported one"
        )


def append_tail(head: Mapping[str, float], tail: Sequence[str]) -> dict[str, float]:
    """Appends documents that were not reranked below those that were, in the given order.

    The score steps are large enough for trec_eval's single precision, so that the run file ranks as intended.

    Args:
        head: Scores of the reranked documents, returned unchanged.
        tail: Other documents, best first.
    """
    lowest = min(head.values(), default=0.0)
    step = max(1.0, abs(lowest) * 2.0**-18)
    combined = dict(head)
    combined.update({document_id: lowest - step * rank for rank, document_id in enumerate(tail, start=1)})
    return combined


def fuse_runs(
    reranked: Run,
    first: Run,
    weight: float,
    normalization: Normalization = "minmax",
    top_k: int | None = None,
) -> Run:
    """Fuses two runs, query by query.

    Args:
        reranked: The reranker's run; each query's documents must be among the first stage's.
        first: The first stage's run. Documents that are only in this run follow in its order.
        weight: Weight of the first stage, in [0, 1].
        normalization: `minmax` or `zscore`.
        top_k: Fuse only the first stage's `top_k` best, for a reranked run with an appended tail.

    Raises:
        InputError: A reranked query or document is not in the first stage's run.
    """
    fused: Run = {}
    for query_id, first_scores in first.items():
        scores = dict(reranked.get(query_id, {}))
        order = ranked(first_scores)
        unknown = next((document_id for document_id in scores if document_id not in first_scores), None)
        if unknown is not None:
            raise InputError(
                f"document {unknown!r} of query {query_id!r} is in the reranked run but not in the first stage's run; "
                "give the run that was reranked"
            )
        if top_k is not None:
            scores = {document_id: scores[document_id] for document_id in order[:top_k] if document_id in scores}
        tail = [document_id for document_id in order if document_id not in scores]
        fused[query_id] = append_tail(fuse_query(scores, first_scores, weight, normalization), tail)
    missing = next((query_id for query_id in reranked if query_id not in first), None)
    if missing is not None:
        raise InputError(f"query {missing!r} is in the reranked run but not in the first stage's run")
    return fused


def learned_weight(
    reranked: Run, first: Run, qrels: Qrels, normalization: Normalization, top_k: int | None = None
) -> float:
    """The weight at which the fused score ranks like a logistic regression of relevance on both scores.

    P(relevant) = logistic(a * reranker + b * first stage + c), of normalised scores, ranks like (1 - w) * reranker +
    w * first stage with w = b / (a + b). A negative a or b counts as 0.

    Args:
        reranked, first, normalization, top_k: See `fuse_runs`.
        qrels: Documents with a grade of at least 1 are relevant, those without a judgment are not.

    Raises:
        InputError: No document is relevant, or all are.
    """
    require("sklearn", extra="eval", purpose="Learned fusion")
    from sklearn.linear_model import LogisticRegression

    features, relevant = [], []
    for query_id in sorted(qrels.keys() & reranked.keys() & first.keys()):  # sets iterate differently in each process
        scores, names = first[query_id], [one for one in ranked(first[query_id], top_k) if one in reranked[query_id]]
        both = [reranked[query_id][one] for one in names], [scores[one] for one in names]
        features.append(np.stack([normalize(part, normalization) for part in both], axis=1))
        relevant += [qrels[query_id].get(one, 0) > 0 for one in names]
    if not 0 < sum(relevant) < len(relevant):
        raise InputError(f"{sum(relevant)} of {len(relevant)} reranked documents are relevant; both kinds are needed")
    values = np.concatenate(features)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(values / values.std(), relevant)
    own, other = np.maximum(model.coef_[0], 0)
    return float(other / (own + other)) if own + other > 0 else 0.0


def tune_fusion(
    reranked: Run,
    first: Run,
    qrels: Qrels,
    measure: str = "ndcg@10",
    normalization: Normalization = "minmax",
    steps: int = 20,
    top_k: int | None = None,
    learned: bool = False,
) -> TunedFusion:
    """Grid search for the weight with the best mean of `measure`, over `steps + 1` weights from 0 to 1.

    Among equally good weights the smallest is chosen, which favours the reranker.

    Args:
        reranked: The reranker's run over the development queries.
        first: The first stage's run over them.
        qrels: Judgments of the development split; never those of the reported results.
        measure: A name that `compute_metrics` accepts.
        normalization: `minmax` or `zscore`.
        steps: Number of intervals of the grid.
        top_k: See `fuse_runs`.
        learned: Use the weight of a logistic regression instead of the grid search, see `learned_weight`.

    Raises:
        InputError: `steps` below 1, no query in common, an unknown measure, or runs that do not match.
    """
    steps = whole_number(steps, "the number of steps")
    measure = canonical_measure(measure)
    warn_of_few_queries(len(qrels.keys() & reranked.keys()), "the weight")
    weights = [step / steps for step in range(steps + 1)]
    if learned:
        weights = [learned_weight(reranked, first, qrels, normalization, top_k)]
    curve: list[float] = []
    for weight in weights:
        result = compute_metrics(fuse_runs(reranked, first, weight, normalization, top_k), qrels, measures=(measure,))
        curve.append(result.aggregate[measure])
    best = max(range(len(weights)), key=lambda index: (round(curve[index], 12), -index))
    setting = FusionSetting(
        weight=weights[best],
        normalization=cast(Normalization, normalization),
        measure=measure,
        value=curve[best],
        qrels_hash=hash_qrels(qrels),
        query_hashes=hash_queries(qrels),
    )
    return TunedFusion(setting, weights, curve)

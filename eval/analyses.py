"""The papers' analyses that need no generation: agreement of first stages, and perplexity of queries.

TWOLAR, Table 1 and Eq. 3; TSARankLLM, Figure 5.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection, Run
from modeling_tsarank.rankers.protocols import Scorer, predict
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.ranking_options import whole_number


logger = logging.getLogger(__name__)

TextPair = tuple[str, str]


def intersection_rates(runs: Sequence[Run], depth: int = 30) -> list[list[float]]:
    """How much the candidates of any two first stages agree (TWOLAR, Eq. 3).

    `rate(1, 2) = 1/|Q| * sum over q of |S_q^1 ∩ S_q^2| / N`, with S_q the top N documents and Q the queries of at
    least one run. As in the equation, N divides even where a run has fewer documents, so a run's rate with itself is
    below 1 there.

    Args:
        runs: At least two runs.
        depth: N.

    Returns:
        Symmetric rates between 0 and 1, shape `(len(runs), len(runs))`.

    Raises:
        InputError: fewer than two runs, `depth` below 1, or two runs without a query in common.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run was given; the intersection needs at least 2")
    depth = whole_number(depth, "the depth")
    query_ids = sorted(set().union(*runs))
    tops = [{query_id: set(ranked(scores, depth)) for query_id, scores in run.items()} for run in runs]
    for first in range(len(runs)):
        for second in range(first):
            if not tops[first].keys() & tops[second].keys():
                raise InputError(
                    f"runs {second + 1} and {first + 1} have no query in common; give runs of one query set"
                )

    def rate(first: dict[str, set[str]], second: dict[str, set[str]]) -> float:
        shared = sum(len(first.get(query_id, set()) & second.get(query_id, set())) for query_id in query_ids)
        return shared / depth / len(query_ids)

    return [[rate(first, second) for second in tops] for first in tops]


@dataclass(frozen=True)
class PerplexityGap:
    """Perplexities of positive and negative queries of one model.

    Attributes:
        positive: Perplexity of each positive pair, shape `(n,)`.
        negative: Perplexity of each negative pair, shape `(n,)`.
    """

    positive: np.ndarray
    negative: np.ndarray

    def summary(self) -> dict[str, tuple[float, float, float]]:
        """(positive, negative, negative − positive) by way of averaging.

        `geometric` is exp of the mean negative log-probability, `mean` the mean of the perplexities, which a few very
        unlikely queries dominate, and `median` their middle.
        """
        ways = {
            "geometric": lambda values: float(np.exp(np.log(values).mean())),
            "mean": lambda values: float(values.mean()),
            "median": lambda values: float(np.median(values)),
        }
        pairs = {name: (way(self.positive), way(self.negative)) for name, way in ways.items()}
        return {name: (positive, negative, negative - positive) for name, (positive, negative) in pairs.items()}


def sample_query_pairs(
    collection: Collection, count: int = 5000, seed: int = 0, negatives: Run | None = None
) -> tuple[list[TextPair], list[TextPair]]:
    """Draws positive pairs and one negative pair for each (TSARankLLM, Section 3.4).

    A positive pair is a query with a document judged relevant to it. Its negative is the same document with a query to
    which it is not judged relevant, drawn at random; or, given a run, the same query with one of the run's documents
    that is not judged relevant to it (a hard negative).

    Args:
        collection: Where to draw from.
        count: How many positive pairs; all there are where there are fewer.
        seed: Seeds the drawing.
        negatives: A run to draw hard negatives from.

    Returns:
        Positive and negative (query, document) texts, equally many, in corresponding order.

    Raises:
        InputError: `count` below 1, or no positive that has a negative.
    """
    count = whole_number(count, "the number of pairs")
    generator = random.Random(seed)
    query_ids = collection.judged_queries()
    relevant = [
        (query_id, document_id)
        for query_id in query_ids
        for document_id, grade in collection.qrels[query_id].items()
        if grade > 0 and document_id in collection.documents
    ]
    generator.shuffle(relevant)
    positive: list[TextPair] = []
    negative: list[TextPair] = []
    for query_id, document_id in relevant:
        if len(positive) == count:
            break
        other = _draw_negative(collection, query_ids, query_id, document_id, negatives, generator)
        if other is not None:
            positive.append((collection.queries[query_id], collection.documents[document_id].full_text))
            negative.append((collection.queries[other[0]], collection.documents[other[1]].full_text))
    if not positive:
        raise InputError(
            f"{collection.name} has no relevant document with a negative beside it ({len(relevant)} positive pairs, "
            f"{len(query_ids)} queries)"
        )
    return positive, negative


def _draw_negative(
    collection: Collection,
    query_ids: Sequence[str],
    query_id: str,
    document_id: str,
    negatives: Run | None,
    generator: random.Random,
) -> tuple[str, str] | None:
    if negatives is not None:
        grades = collection.qrels[query_id]
        candidates = [
            candidate
            for candidate in ranked(negatives.get(query_id, {}))
            if grades.get(candidate, 0) <= 0 and candidate in collection.documents
        ]
        return (query_id, generator.choice(candidates)) if candidates else None
    # A few draws nearly always suffice; the whole list is searched only where nearly all queries share the document.
    for other in generator.choices(query_ids, k=20):
        if collection.qrels[other].get(document_id, 0) <= 0:
            return other, document_id
    others = [other for other in query_ids if collection.qrels[other].get(document_id, 0) <= 0]
    return (generator.choice(others), document_id) if others else None


def measure_perplexity(
    scorer: Scorer,
    positive: Sequence[TextPair],
    negative: Sequence[TextPair],
    batch_tokens: int | None = None,
    show: bool = False,
) -> PerplexityGap:
    """Perplexity `exp(−mean log p(query token))` of queries given documents.

    Args:
        scorer: A model whose scores are mean log-probabilities: a `TSARankModel` with `aggregation` "mean".
        positive: (query, document) texts that belong together.
        negative: Pairs that do not.
        batch_tokens: Token budget of a batch.
        show: Whether to show a progress bar.

    Raises:
        ModelError: the scores are no mean log-probabilities: another kind of model, another aggregation, or a
            positive score.
    """
    aggregation = getattr(getattr(scorer, "options", None), "aggregation", None)
    if aggregation != "mean":
        raise ModelError(
            f"perplexity needs a query-likelihood model whose aggregation is 'mean', and {type(scorer).__name__} has "
            f"{aggregation!r}; give a TSARankModel, its aggregation set to 'mean'"
        )
    scores = predict(scorer, [*positive, *negative], batch_tokens, show).astype(np.float64)
    if (scores > 1e-4).any():
        raise ModelError(f"a mean log-probability cannot be positive, and {scores.max():.4f} was returned")
    values = np.exp(-scores)
    return PerplexityGap(values[: len(positive)], values[len(positive) :])

"""Several scorers as one teacher: each list's scores are brought to one scale and averaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from modeling_tsarank.eval.fusion import normalize
from modeling_tsarank.jobs.pools import Pool
from modeling_tsarank.rankers.endpoint import Usage
from modeling_tsarank.rankers.pointwise import scorer_identity
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_scores import CachedScorer, Texts


class MixedScorer:
    """The weighted mean of several scorers, whose scores are z-scores within each list.

    A reranker's log-likelihoods and a bi-encoder's cosines have no common scale, so of each scorer's scores of a list
    its mean is subtracted, and the rest divided by its (population) standard deviation. A scorer that gives all
    documents of a list one score has no say in it. How sure a scorer is of the whole list is lost: of two documents
    each scorer gives one 1 and the other -1, however far apart it holds them.

    Args:
        scorers: Two or more.
        weights: One a scorer, 0 or more; they are divided by their sum. None: all alike.

    Raises:
        InputError: not as many weights as scorers, one that is negative or not finite, or only zeros.
    """

    def __init__(self, scorers: Sequence[CachedScorer], weights: Sequence[float] | None = None) -> None:
        self._scorers = list(scorers)
        given = [1.0] * len(self._scorers) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(self._scorers):
            raise InputError(f"every teacher needs a weight: {len(self._scorers)} teachers, {len(given)} weights")
        if not all(weight >= 0 and math.isfinite(weight) for weight in given) or not sum(given):
            raise InputError(f"teachers' weights are 0 or more, and not all 0, got {', '.join(map(str, given))}")
        self.weights = [weight / sum(given) for weight in given]
        self.name = "+".join(scorer.full_name for scorer in self._scorers)

    def describe(self) -> dict[str, Any]:
        """For a card."""
        shared = self._scorers[0].describe()
        return {**shared, "model": self.name, "weights": ", ".join(f"{weight:.4g}" for weight in self.weights)}

    def scores_of(self, lists: Iterable[Texts]) -> Iterator[list[float]]:
        """The mixed scores of each list, in the given order, shape `(n,)` each; no unit, a list's mean is 0.

        Raises:
            NonFiniteScoreError, ModelError: as `CachedScorer.scores_of`.
        """
        lists = list(lists)
        for parts in zip(*(scorer.scores_of(lists) for scorer in self._scorers), strict=True):
            yield np.average([normalize(part, "zscore") for part in parts], axis=0, weights=self.weights).tolist()


def teacher_scorer(
    names: Sequence[str],
    weights: Sequence[float] | None,
    cache: RequestCache,
    usage: Usage | None = None,
    batch_tokens: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    pool: Pool | None = None,
    **options: Any,
) -> CachedScorer | MixedScorer:
    """The scorer of one name as it is, or the mixture of several.

    Args:
        names: One or more; see `load_scorer`.
        weights: Of the mixture; None for equal ones.
        cache, usage, batch_tokens, device, dtype, pool, **options: See `CachedScorer`.

    Raises:
        InputError: weights without a mixture, one teacher twice, or wrong weights (see `MixedScorer`).
    """
    if len({json.dumps(scorer_identity(name), sort_keys=True) for name in names}) < len(names):
        raise InputError(f"one teacher is given twice: {', '.join(names)}; give it a larger weight instead")
    # Lists are counted once, by the first.
    counts = [usage, *(None for _ in names[1:])]
    scorers = [
        CachedScorer(name, cache, count, batch_tokens, device, dtype, pool, **options)
        for name, count in zip(names, counts, strict=True)
    ]
    if len(scorers) > 1:
        return MixedScorer(scorers, weights)
    if weights is not None:
        raise InputError("weights are for several teachers; one has nothing to be mixed with")
    return scorers[0]

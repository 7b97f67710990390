"""Rerankers as teachers: they give every document a score, and the scores give the order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from modeling_tsarank.eval.checkpoint_sources import display_name
from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.models.resolver import resolve
from modeling_tsarank.rankers.endpoint import Usage
from modeling_tsarank.rankers.listwise import Ordering
from modeling_tsarank.rankers.pointwise import load_scorer, prefix_of, scorer_identity
from modeling_tsarank.rankers.protocols import Scorer, predict
from modeling_tsarank.ranking_errors import InputError, NonFiniteScoreError
from modeling_tsarank.trainers.data.teacher_cache import RequestCache


CHUNK_PAIRS = 1024
"""Lists are scored together until they have so many pairs: batches are full then, and a document that several lists
share is read once, while a killed run loses no more than these."""

Texts = tuple[str, Sequence[str]]
"""A query and its documents."""


class CachedScorer:
    """Scores of (query, documents) from the cache, else of a scorer that is loaded when first needed.

    Args:
        name: See `load_scorer`.
        cache: Where scores are kept, a list at a time.
        usage: Counts the lists.
        batch_tokens: Token budget of a batch.
        device: Torch device.
        dtype: Number format.
        **options: See `load_scorer`.
    """

    def __init__(
        self,
        name: str,
        cache: RequestCache,
        usage: Usage | None = None,
        batch_tokens: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        kind = prefix_of(resolve(name))
        self.name = display_name(name)
        self.full_name = kind + self.name
        self.usage = usage or Usage()
        if kind:
            options = {key: value for key, value in options.items() if key != "max_query_length"}
        self._given, self._cache, self._batch_tokens = name, cache, batch_tokens
        self._load_options = {"device": device, "dtype": dtype, **options}
        self._identity = {**scorer_identity(name), "dtype": dtype, "options": options}
        self._scorer: Scorer | None = None

    def describe(self) -> dict[str, Any]:
        """For a card."""
        return {"kind": "scores", "model": self.name, **{k: v for k, v in self._load_options.items() if v is not None}}

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score a document, shape `(n,)`; higher is more relevant. See `scores_of`."""
        return next(self.scores_of([(query, documents)]))

    def scores_of(self, lists: Iterable[Texts]) -> Iterator[list[float]]:
        """The scores of each list, in the given order; about `CHUNK_PAIRS` pairs at a time are scored in one call.

        Raises:
            NonFiniteScoreError: the model returned NaN or an infinity.
            ModelError: it did not return one number a document.
        """
        chunk: list[Texts] = []
        for texts in lists:
            chunk.append(texts)
            if sum(len(documents) for _, documents in chunk) >= CHUNK_PAIRS:
                yield from self._score(chunk)
                chunk = []
        if chunk:
            yield from self._score(chunk)

    def _score(self, lists: Sequence[Texts]) -> list[list[float]]:
        requests = [self._request(query, documents) for query, documents in lists]
        cached = [self._cache.get(request) for request in requests]
        lacking = [place for place, scores in enumerate(cached) if scores is None]
        kept: list[list[float]] = [[] if scores is None else [float(score) for score in scores] for scores in cached]
        if lacking:
            if self._scorer is None:
                self._scorer = load_scorer(self._given, **self._load_options)
            pairs = [(lists[place][0], document) for place in lacking for document in lists[place][1]]
            values = iter(float(score) for score in predict(self._scorer, pairs, self._batch_tokens))
            for place in lacking:
                query, documents = lists[place]
                kept[place] = [next(values) for _ in documents]
                if not all(math.isfinite(score) for score in kept[place]):
                    raise NonFiniteScoreError(
                        f"{self.name} gave a score that is not finite for the query {query[:60]!r}"
                    )
                self._cache.put(requests[place], kept[place])
        self.usage.add(requests=len(lacking), answers=len(lacking), cached=len(lists) - len(lacking))
        return kept

    def _request(self, query: str, documents: Sequence[str]) -> dict[str, Any]:
        return {"scorer": self._identity, "query": query, "documents": hash_parts(documents)}


class ListScorer(Protocol):
    """What gives the documents of many lists their scores."""

    name: str

    def scores_of(self, lists: Iterable[Texts]) -> Iterator[list[float]]:
        """The scores of each list, in the given order."""


class ScoringTeacher:
    """Orders lists by a scorer; equal scores keep the first stage's order.

    Args:
        scorer: The scorer, or a mixture of several (`MixedScorer`).
    """

    def __init__(self, scorer: ListScorer) -> None:
        self._scorer = scorer
        self.name = scorer.name

    def order(self, query: str, documents: Sequence[str]) -> Ordering:
        """The order of n documents, with the scores; always `clean`.

        Raises:
            InputError: fewer than two documents.
        """
        return next(self.order_many([(query, documents)]))

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """The order of each list, as `order` gives it; many are scored together.

        Raises:
            InputError: fewer than two documents in a list.
        """
        for _, documents in lists:
            if len(documents) < 2:
                raise InputError(f"a teacher orders at least two documents, got {len(documents)}")
        for scores in self._scorer.scores_of(lists):
            order = np.argsort(-np.asarray(scores), kind="stable")
            yield Ordering("clean", [int(index) for index in order], scores=scores)

"""Rerankers as teachers: they give every document a score, and the scores give the order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from modeling_tsarank.eval.checkpoint_sources import display_name
from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.jobs.pools import LocalPool, Pool
from modeling_tsarank.models.resolver import resolve
from modeling_tsarank.rankers.endpoint import Usage
from modeling_tsarank.rankers.listwise import Ordering
from modeling_tsarank.rankers.pointwise import load_scorer, prefix_of, scorer_identity
from modeling_tsarank.rankers.protocols import Scorer, predict
from modeling_tsarank.ranking_errors import InputError, NonFiniteScoreError
from modeling_tsarank.trainers.data.teacher_cache import RequestCache, request_key


CHUNK_PAIRS = 1024
"""Lists are scored together until they have so many pairs: batches are full then, and a document that several lists
share is read once. They are kept together, so that a run that was killed scores the rest in the same batches, to the
same bits."""
CHUNKS_AHEAD = 128
"""So many chunks are in memory at a time."""

Texts = tuple[str, Sequence[str]]
"""A query and its documents."""


class ScorerWorker:
    """Scores lists with the scorer that a task names; each is loaded once."""

    def __init__(self) -> None:
        self._scorers: dict[str, Scorer] = {}

    def __call__(self, task: tuple[str, dict[str, Any], int | None, list[Texts]]) -> list[list[float]]:
        """The scores of each list.

        Args:
            task: Name and options of `load_scorer`, token budget of a batch, lists.

        Raises:
            ModelError: the scorer did not return one number a document.
        """
        name, options, batch_tokens, lists = task
        key = repr((name, options))
        if key not in self._scorers:
            self._scorers[key] = load_scorer(name, **options)
        pairs = [(query, document) for query, documents in lists for document in documents]
        values = iter(predict(self._scorers[key], pairs, batch_tokens).tolist())
        return [[float(value) for value in islice(values, len(documents))] for _, documents in lists]


def _chunks(lists: Iterable[Texts]) -> Iterator[list[Texts]]:
    chunk: list[Texts] = []
    pairs = 0
    for texts in lists:
        chunk.append(texts)
        pairs += len(texts[1])
        if pairs >= CHUNK_PAIRS:
            yield chunk
            chunk, pairs = [], 0
    if chunk:
        yield chunk


class CachedScorer:
    """Scores of (query, documents) from the cache, else of a scorer that is loaded when first needed.

    Args:
        name: See `load_scorer`.
        cache: Where scores are kept, a list at a time.
        usage: Counts the lists.
        batch_tokens: Token budget of a batch.
        device: Torch device.
        dtype: Number format.
        pool: Does the work with a `ScorerWorker`; None works in this process.
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
        pool: Pool | None = None,
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
        self._pool = pool or LocalPool(ScorerWorker())

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
        chunks = _chunks(lists)
        while ahead := list(islice(chunks, CHUNKS_AHEAD)):
            yield from self._score(ahead)

    def _score(self, chunks: Sequence[Sequence[Texts]]) -> Iterator[list[float]]:
        keys = [[request_key(self._request(*texts)) for texts in chunk] for chunk in chunks]
        asked: set[str] = set()

        def tasks() -> Iterator[tuple[list[str], Any]]:
            for own, chunk in zip(keys, chunks, strict=True):
                lacking = {
                    key: texts
                    for key, texts in zip(own, chunk, strict=True)
                    if key not in self._cache and key not in asked
                }
                asked.update(lacking)
                self.usage.add(cached=len(own) - len(lacking))
                if lacking:
                    yield list(lacking), (self._given, self._load_options, self._batch_tokens, list(lacking.values()))

        done = 0
        for lacking, values in self._pool.map(tasks()):
            if not np.isfinite(np.concatenate(values)).all():
                raise NonFiniteScoreError(f"{self.name} gave a score that is not finite")
            self._cache.add(dict(zip(lacking, values, strict=True)))  # all or none: see `CHUNK_PAIRS`
            self.usage.add(requests=len(lacking), answers=len(lacking))
            while done < len(keys) and all(key in self._cache for key in keys[done]):
                yield from (self._cache[key] for key in keys[done])
                done += 1
        yield from (self._cache[key] for own in keys[done:] for key in own)

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

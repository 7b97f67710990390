"""Teachers whose work is shared by the processes of a job: rerankers, which rank by scores, and language models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np

from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.jobs.pools import Pool, RanksPool
from modeling_tsarank.models.resolver import resolve
from modeling_tsarank.rankers.chat_local import LocalChat
from modeling_tsarank.rankers.endpoint import Usage
from modeling_tsarank.rankers.listwise import ListwiseOptions, ListwiseRanker, Ordering
from modeling_tsarank.rankers.listwise_answers import ReadAnswer
from modeling_tsarank.rankers.pointwise import load_scorer, prefix_of, scorer_identity
from modeling_tsarank.rankers.protocols import predict
from modeling_tsarank.ranking_errors import InputError, NonFiniteScoreError
from modeling_tsarank.scores.fusion import normalize
from modeling_tsarank.trainers.data.teacher_cache import RequestCache, request_key


CHUNK_PAIRS = 1024
"""Lists are scored together in chunks of this many pairs: then batches are full, and a document shared by several
lists is encoded once. A chunk is cached as a whole, so that an interrupted run scores the rest in the same batches, to
the same bits."""
CHUNKS_AHEAD = 128
"""Number of chunks in memory at a time."""

Texts = tuple[str, Sequence[str]]
"""A query and its documents."""
Scorer: TypeAlias = "CachedScorer | MixedScorer"


class TeacherWorker:
    """Processes the lists of a task with its model; each model is loaded once."""

    def __init__(self) -> None:
        self._models: dict[str, Any] = {}

    def __call__(self, task: tuple[str, str, dict[str, Any], Any, list[Texts]]) -> list[Any]:
        """For each list the scores, or a language model's ranking (see `LocalTeacher`).

        Args:
            task: `score` or `order`, name and options of the model, token budget of a batch or options of the listwise
                prompt, lists.

        Raises:
            ModelError: the scorer did not return one number per document.
        """
        kind, name, options, how, lists = task
        key, load = repr((kind, name, options)), load_scorer if kind == "score" else LocalChat
        if key not in self._models:
            self._models[key] = load(name, **options)
        if kind == "order":
            return [_answered(self._models[key], how, *one) for one in lists]
        pairs = [(query, document) for query, documents in lists for document in documents]
        values = iter(predict(self._models[key], pairs, how).tolist())
        return [[float(value) for value in islice(values, len(documents))] for _, documents in lists]


def _answered(chat: LocalChat, how: ListwiseOptions, query: str, documents: Sequence[str]) -> dict[str, Any]:
    """A ranking and its cost, as JSON values."""
    chat.usage = Usage()
    ordering = asdict(ListwiseRanker(chat, how).order(query, documents))
    return {"ordering": ordering, "usage": {name: value for name, value in chat.usage.as_dict().items() if value}}


def _chunks(lists: Iterable[Texts], most: int) -> Iterator[list[Texts]]:
    chunk: list[Texts] = []
    pairs = 0
    for texts in lists:
        chunk.append(texts)
        pairs += len(texts[1])
        if pairs >= most:
            yield chunk
            chunk, pairs = [], 0
    if chunk:
        yield chunk


@dataclass
class _SharedWork:
    """Results for lists, from the cache or computed by the pool.

    Attributes:
        identity: Everything that the results depend on besides the lists.
        task: Makes a task of the pool from lists.
        cache: Cache of the results, one entry per list.
        pool: Runs a `TeacherWorker`; None uses this process.
        chunk_pairs: Minimum number of pairs per task.
        check: Validates the results of a task before they are cached.
    """

    identity: dict[str, Any]
    task: Callable[[list[Texts]], Any]
    cache: RequestCache
    pool: Pool | None
    chunk_pairs: int
    check: Callable[[list[Any]], None] = lambda values: None

    def __post_init__(self) -> None:
        self._pool = self.pool or RanksPool(TeacherWorker())

    def results(self, lists: Iterable[Texts]) -> Iterator[tuple[Any, bool]]:
        """The result of each list in the given order, and whether it was cached."""
        chunks = _chunks(lists, self.chunk_pairs)
        while ahead := list(islice(chunks, CHUNKS_AHEAD)):
            yield from self._work(ahead)

    def _work(self, chunks: Sequence[Sequence[Texts]]) -> Iterator[tuple[Any, bool]]:
        keys = [[self._key(*texts) for texts in chunk] for chunk in chunks]
        asked: set[str] = set()
        fresh: list[list[bool]] = []

        def tasks() -> Iterator[tuple[list[str], Any]]:
            for own, chunk in zip(keys, chunks, strict=True):
                lacking: dict[str, Texts] = {}
                fresh.append([])
                for key, texts in zip(own, chunk, strict=True):
                    fresh[-1].append(key not in self.cache and key not in asked)
                    if fresh[-1][-1]:
                        asked.add(key)
                        lacking[key] = texts
                if lacking:
                    yield list(lacking), self.task(list(lacking.values()))

        done = 0
        for lacking, values in self._pool.map(tasks()):
            self.check(values)
            self.cache.add(dict(zip(lacking, values, strict=True)))  # all or none: see `CHUNK_PAIRS`
            while done < len(fresh) and all(key in self.cache for key in keys[done]):
                yield from ((self.cache[key], not new) for key, new in zip(keys[done], fresh[done], strict=True))
                done += 1
        for own, new_ones in zip(keys[done:], fresh[done:], strict=True):
            yield from ((self.cache[key], not new) for key, new in zip(own, new_ones, strict=True))

    def _key(self, query: str, documents: Sequence[str]) -> str:
        return request_key({**self.identity, "query": query, "documents": hash_parts(documents)})


class CachedScorer:
    """Scores of (query, documents) from the cache, or from a scorer that is loaded on first use.

    Args:
        name: See `load_scorer`.
        cache: Cache of the scores, one entry per list.
        usage: Counts the lists.
        pool: Runs a `TeacherWorker`; None uses this process.
        **options: See `load_scorer`; and `batch_tokens`, the token budget of a batch.
    """

    def __init__(
        self, name: str, cache: RequestCache, usage: Usage | None = None, pool: Pool | None = None, **options: Any
    ) -> None:
        kind = prefix_of(resolve(name))
        self.name = resolve(name).label
        self.full_name = kind + self.name
        self.usage = usage or Usage()
        if kind:
            options.pop("max_query_length", None)
        tokens, device, dtype = (options.pop(key, None) for key in ("batch_tokens", "device", "dtype"))
        load = self._load_options = {"device": device, "dtype": dtype, **options}
        identity = {"scorer": {**scorer_identity(name), "dtype": dtype, "options": options}}
        self._work = _SharedWork(
            identity, lambda lists: ("score", name, load, tokens, lists), cache, pool, CHUNK_PAIRS, self._check
        )

    def _check(self, values: list[Any]) -> None:
        if not np.isfinite(np.concatenate(values)).all():
            raise NonFiniteScoreError(f"{self.name} returned a score that is not finite")

    def describe(self) -> dict[str, Any]:
        """For a card."""
        return {"kind": "scores", "model": self.name, **{k: v for k, v in self._load_options.items() if v is not None}}

    def scores_of(self, lists: Iterable[Texts]) -> Iterator[list[float]]:
        """The scores of each list, in the given order; about `CHUNK_PAIRS` pairs are scored in one call.

        Raises:
            NonFiniteScoreError: the model returned NaN or an infinity.
            ModelError: it did not return one number per document.
        """
        for scores, kept in self._work.results(lists):
            self.usage.add(**({"cached": 1} if kept else {"requests": 1, "answers": 1}))
            yield scores


class LocalTeacher:
    """Ranks lists with a causal language model on the machines of the pool.

    Args:
        name: See `LocalChat`.
        how: Options of the listwise prompt.
        cache: Cache of the outcome of each list.
        usage: Counts requests and tokens, and cached lists separately.
        pool: Runs a `TeacherWorker`; None uses this process.
        options: Options of `LocalChat`.
    """

    def __init__(
        self, name: str, how: ListwiseOptions, cache: RequestCache, usage: Usage, pool: Pool | None, **options: Any
    ) -> None:
        chat = LocalChat(name, **options)  # loads nothing yet
        self.name, self.usage = chat.name, usage
        self.description = {**chat.describe(), **how.describe()}
        identity = {"order": chat.request([]), "how": asdict(how)}
        self._work = _SharedWork(identity, lambda lists: ("order", name, options, how, lists), cache, pool, 1)

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """The outcome of each list, in the given order."""
        for found, kept in self._work.results(lists):
            ordering = Ordering(**found["ordering"])
            ordering.reading = [
                ReadAnswer(**{**one, "permutation": tuple(one["permutation"])}) for one in found["ordering"]["reading"]
            ]
            self.usage.add(**({"cached": len(ordering.answers)} if kept else found["usage"]))
            yield ordering


class ScoringTeacher:
    """Ranks lists by a scorer; equal scores keep the first stage's order.

    Args:
        scorer: The scorer, or the mean of several (`MixedScorer`).
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.name = scorer.name

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """The ranking of each list with its scores, always `clean`; many lists are scored together."""
        for scores in self._scorer.scores_of(lists):
            order = np.argsort(-np.asarray(scores), kind="stable")
            yield Ordering("clean", [int(index) for index in order], scores=scores)


# ---- several scorers as one teacher --------------------------------------------------------------------


class MixedScorer:
    """The weighted mean of several scorers' z-scores within each list.

    A reranker's log-likelihoods and a bi-encoder's cosines have no common scale, so each scorer's scores of a list are
    shifted by their mean and divided by their (population) standard deviation. A scorer that gives all documents of a
    list the same score has no influence. How confident a scorer is about the whole list is lost: of two documents,
    every scorer gives one 1 and the other -1, whatever their difference.

    Args:
        scorers: Two or more.
        weights: One per scorer, 0 or more; normalized to sum to 1. None: equal weights.

    Raises:
        InputError: not one weight per scorer, a negative or non-finite weight, or only zeros.
    """

    def __init__(self, scorers: Sequence[CachedScorer], weights: Sequence[float] | None = None) -> None:
        self._scorers = list(scorers)
        given = [1.0] * len(self._scorers) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(self._scorers):
            raise InputError(f"every teacher needs a weight: {len(self._scorers)} teachers, {len(given)} weights")
        if not all(weight >= 0 and math.isfinite(weight) for weight in given) or not sum(given):
            raise InputError(f"teachers' weights must be 0 or more, and not all 0, got {', '.join(map(str, given))}")
        self.weights = [weight / sum(given) for weight in given]
        self.name = "+".join(scorer.full_name for scorer in self._scorers)

    def describe(self) -> dict[str, Any]:
        """For a card."""
        shared = self._scorers[0].describe()
        return {**shared, "model": self.name, "weights": ", ".join(f"{weight:.4g}" for weight in self.weights)}

    def scores_of(self, lists: Iterable[Texts]) -> Iterator[list[float]]:
        """The mean z-scores of each list, in the given order, shape `(n,)` each; without a unit, each list's mean is
        0.

        Raises:
            NonFiniteScoreError, ModelError: see `CachedScorer.scores_of`.
        """
        lists = list(lists)
        for parts in zip(*(scorer.scores_of(lists) for scorer in self._scorers), strict=True):
            yield np.average([normalize(part, "zscore") for part in parts], axis=0, weights=self.weights).tolist()


def teacher_scorer(
    names: Sequence[str],
    weights: Sequence[float] | None,
    cache: RequestCache,
    usage: Usage | None = None,
    pool: Pool | None = None,
    **options: Any,
) -> Scorer:
    """The scorer of one name, or the weighted mean of several.

    Args:
        names: One or more; see `load_scorer`.
        weights: Weights of the mean; None for equal ones.
        cache, usage, pool, **options: See `CachedScorer`.

    Raises:
        InputError: weights for a single teacher, a repeated teacher, or invalid weights (see `MixedScorer`).
    """
    if len({json.dumps(scorer_identity(name), sort_keys=True) for name in names}) < len(names):
        raise InputError(f"a teacher is given twice: {', '.join(names)}; give it a larger weight instead")
    # Lists are counted once, by the first scorer.
    counts = [usage, *(None for _ in names[1:])]
    scorers = [CachedScorer(name, cache, count, pool, **options) for name, count in zip(names, counts, strict=True)]
    if len(scorers) > 1:
        return MixedScorer(scorers, weights)
    if weights is not None:
        raise InputError("weights are for several teachers; with one, leave them out")
    return scorers[0]

"""Continuous batching of a model's requests: pairs of several requests are scored in one call.

One thread owns the model. While it scores, requests queue; its next call has pairs of all of them, up to a token
budget, so a long request delays a short one by at most one call. The engine then sorts and batches the pairs.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..files.log_records import cuts_reported
from ..ranking_text import clean_pairs
from ..scores.passages import PassageRanker


T = TypeVar("T")
Pair = tuple[str, str]


class OverloadedError(Exception):
    """The queue is full; try again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__("too many pairs are waiting")
        self.seconds = seconds


class ClosedError(Exception):
    """The service is shutting down."""


class _Request:
    """Waiting pairs, and the scores of finished ones."""

    def __init__(self, pairs: Sequence[Pair], lengths: Sequence[int]) -> None:
        self.pairs, self.lengths = list(pairs), list(lengths)
        self.scores = np.full(len(pairs), np.nan, dtype=np.float32)
        self.taken = 0
        self.done = 0
        self.future: Future[np.ndarray] = Future()

    def take(self, budget: int) -> range:
        """The next pairs whose tokens fit into the budget; at least one."""
        start = self.taken
        while self.taken < len(self.pairs) and (self.taken == start or self.lengths[self.taken] <= budget):
            budget -= self.lengths[self.taken]
            self.taken += 1
        return range(start, self.taken)

    def fill(self, part: range, scores: np.ndarray) -> None:
        self.scores[part.start : part.stop] = scores
        self.done += len(part)
        if self.done == len(self.pairs):
            with contextlib.suppress(InvalidStateError):  # the client has disconnected
                self.future.set_result(self.scores)

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Batcher:
    """Scores the pairs of concurrent requests together.

    Args:
        model: Has `predict` of pairs; used only by this object's thread.
        batch_tokens: Token budget of a forward pass, as in `predict`.
        call_tokens: Tokens of one call of `predict`, several batches.
        queue_pairs: Pairs that may wait; further requests raise `OverloadedError`.
        observe: Called with the requests of every call, for metrics.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_tokens: int | None = None,
        call_tokens: int = 8192,
        queue_pairs: int = 4096,
        observe: Callable[[int], None] = lambda requests: None,
    ) -> None:
        self.model = model
        self._batch_tokens, self._call_tokens, self._queue_pairs = batch_tokens, call_tokens, queue_pairs
        self._observe = observe
        self._requests: deque[_Request] = deque()
        self._lock = threading.RLock()
        self._closed = self._scheduled = False
        self._seconds_per_pair = 0.05
        self._thread = ThreadPoolExecutor(1, "scoring")

    @property
    def waiting(self) -> int:
        """Pairs that are not in a call yet."""
        with self._lock:
            return sum(len(request.pairs) - request.taken for request in self._requests)

    async def score(self, pairs: Sequence[Pair], lengths: Sequence[int]) -> np.ndarray:
        """Scores `(pairs,)` float32. Cancelling it drops the pairs that are not in a call yet.

        Args:
            lengths: Tokens of each pair.

        Raises:
            OverloadedError: Too many pairs are waiting.
            ClosedError: The service is shutting down.
            TSARankError: The error of `predict` for these pairs.
        """
        request = _Request(pairs, lengths)
        with self._lock:
            self._check_open()
            waiting = self.waiting
            if waiting and waiting + len(pairs) > self._queue_pairs:
                raise OverloadedError(max(1.0, waiting * self._seconds_per_pair))
            self._requests.append(request)
            self._schedule()
        return await asyncio.wrap_future(request.future)

    async def run(self, job: Callable[[], T]) -> T:
        """Runs `job` in the model's thread, between two calls. Raises its error, or `ClosedError`."""
        with self._lock:
            self._check_open()
            future = self._thread.submit(cuts_reported()(job))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Accepts no more requests and waits for the current ones."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            rest = self._thread.submit(self._finish)
        rest.result()
        self._thread.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the service is shutting down")

    def _schedule(self) -> None:
        """Queues a call in the model's thread."""
        if self._requests and not self._scheduled:
            self._scheduled = True
            self._thread.submit(self._call)

    @cuts_reported()  # responses have the number of truncated documents, not the log
    def _call(self) -> None:
        with self._lock:
            self._scheduled = False
            parts = self._next_parts()
        try:
            if parts:
                self._score(parts)
        finally:
            with self._lock:
                self._schedule()

    def _finish(self) -> None:
        """The remaining calls; the executor accepts none during its shutdown."""
        while self._requests:
            self._call()

    def _next_parts(self) -> list[tuple[_Request, range]]:
        """Pairs of every waiting request, first come first served, each at most its share of the token budget."""
        waiting = [request for request in self._requests if not request.future.cancelled()]
        share = max(self._call_tokens // max(len(waiting), 1), 1)
        left, parts = self._call_tokens, []
        for request in waiting:
            if left <= 0:
                break
            part = request.take(min(share, left))
            left -= sum(request.lengths[i] for i in part)
            parts.append((request, part))
        self._requests = deque(request for request in waiting if request.taken < len(request.pairs))
        return parts

    def _score(self, parts: Sequence[tuple[_Request, range]]) -> None:
        pairs = [request.pairs[i] for request, part in parts for i in part]
        start = time.perf_counter()
        try:
            found = self.model.predict(pairs, batch_tokens=self._batch_tokens, show_progress=False)
            scores = np.asarray(found, dtype=np.float32)
        except Exception as error:
            if len(parts) == 1:
                failed = parts[0][0]
                failed.fail(error)
                with self._lock:
                    self._requests = deque(other for other in self._requests if other is not failed)
                return
            # An error of one request must not fail the others.
            for alone in parts:
                self._score([alone])
            return
        seconds = (time.perf_counter() - start) / len(pairs)
        self._seconds_per_pair += 0.2 * (seconds - self._seconds_per_pair)
        place = 0
        for request, part in parts:
            request.fill(part, scores[place : place + len(part)])
            place += len(part)
        self._observe(len(parts))


@dataclass(frozen=True)
class Scored:
    """The result for one query's documents.

    Attributes:
        scores: Shape `(documents,)`, in the given order.
        tokens: Of all prompts.
        cut_documents: Number of truncated documents.
        passages: The best passage of each document, `{"start", "end", "text"}`, if passages were scored.
    """

    scores: np.ndarray
    tokens: int
    cut_documents: int
    passages: list[dict[str, Any]] | None = None


class ServedModel:
    """A model of the service."""

    def __init__(self, name: str, batcher: Batcher) -> None:
        self.name, self.batcher, self.model = name, batcher, batcher.model
        self.calibration = getattr(self.model, "calibration", None)

    def warm_up(self) -> None:
        """Runs a first call, which takes longer than later ones."""
        self.model.predict([("warm", "up"), ("warm", "up and running")], show_progress=False)

    async def score(
        self, query: str, documents: Sequence[Any], *, truncate: bool = True, by_passages: PassageRanker | None = None
    ) -> Scored | None:
        """Scores of one query's documents, `None` if one is too long and must not be truncated.

        Raises the errors of `Batcher.score`, and `InputError` for invalid texts.
        """
        if by_passages is None:
            parts, asked = [], [(query, document) for document in documents]
        else:
            parts = await asyncio.to_thread(lambda: [by_passages.split(document) for document in documents])
            asked = [pair for part in parts for pair in part.pairs(query)]
        pairs = clean_pairs(asked)
        lengths, cut = await asyncio.to_thread(self._lengths, pairs)
        if cut and not truncate:
            return None
        scores = await self.batcher.score(pairs, lengths)
        if by_passages is None:
            return Scored(scores, sum(lengths), cut)
        ends = np.cumsum([len(part.passages) for part in parts])[:-1]
        rows = [by_passages.row(part, own) for part, own in zip(parts, np.split(scores, ends), strict=True)]
        values = np.array([row["score"] for row in rows], dtype=np.float32)
        return Scored(values, sum(lengths), cut, [row["passage"] for row in rows])

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[int], int]:
        encoded = self.model.encoder.pairs(pairs)
        cut = {document for (_, document), pair in zip(pairs, encoded, strict=True) if pair.cut}
        return [len(pair.prompt) + len(pair.query) for pair in encoded], len(cut)

    def shorten(self, text: str, tokens: int) -> str:
        """The first `tokens` tokens of a text, as text."""
        offsets = self.model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = offsets["offset_mapping"]
        return text if len(ends) <= tokens else text[: ends[tokens - 1][1]]

    async def index(self, documents: Sequence[Any]) -> int:
        """Caches the documents' states; returns how many were computed. Without a store nothing is cached."""
        store = self.model.document_store
        if store is None:
            return 0
        encoded: int = await self.batcher.run(lambda: self.model.index(documents, store, show_progress=False))
        return encoded

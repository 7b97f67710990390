"""Scoring blocks of (query, document) pairs with any model that has `predict`, and logging each block."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.eval.candidates import Candidates
from modeling_tsarank.eval.score_log import BlockRecord, ScoreLog
from modeling_tsarank.ranking_errors import ModelError, NonFiniteScoreError
from modeling_tsarank.ranking_text import cuts_reported


class Scorer(Protocol):
    """A reranker: a `TSARankModel`, a `TwolarModel`, a sentence-transformers CrossEncoder, or the like."""

    def predict(self, pairs: list[tuple[str, str]]) -> Any:
        """Scores of (query, document) pairs, shape `(len(pairs),)`; higher is better."""


@dataclass
class ScorerSource:
    """A scorer that is loaded when the first pair needs it: a finished evaluation is reported again without it.

    Attributes:
        name: What tables and plots call it.
        load: Makes the scorer; called at most once.
        settings: Everything that changes its scores (checkpoint, number format, length limits), as JSON values; a
            resumed evaluation with other settings is refused.
        batch_tokens: Token budget of a batch, for a scorer that takes one.
    """

    name: str
    load: Callable[[], Scorer]
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch_tokens: int | None = None
    _scorer: Scorer | None = field(default=None, init=False, repr=False)

    def get(self) -> Scorer:
        """The scorer, loaded by the first call."""
        if self._scorer is None:
            self._scorer = self.load()
        return self._scorer


def score_blocks(
    source: ScorerSource, candidates: Candidates, blocks: Sequence[int], log: ScoreLog, done_pairs: int, show: bool
) -> None:
    """Scores some blocks and appends each to the log as soon as it is complete.

    Args:
        source: The scorer.
        candidates: The pairs.
        blocks: Indexes of the blocks to score.
        log: Where records go.
        done_pairs: Pairs scored earlier, where the progress bar starts.
        show: Whether to show the bar: pairs done, pairs per second, time left.

    Raises:
        ModelError: the scorer returned another number of scores than there are pairs.
        NonFiniteScoreError: it returned NaN or an infinity.
    """
    sizes = [candidates.block_size(block) for block in blocks]
    if sum(sizes):
        source.get()  # before the bar starts: loading is not scoring, and would spoil the rate
    bar = tqdm(
        total=done_pairs + sum(sizes),
        initial=done_pairs,
        desc=f"reranking {candidates.collection.name}",
        unit="pair",
        disable=not show,
        # The true mean rate of this run: blocks are few and long, so that a moving average would only waver.
        smoothing=0,
    )
    with bar:
        for block, size in zip(blocks, sizes, strict=True):
            log.append(_score_block(source, candidates, block, log.digest, show))
            bar.update(size)


def _score_block(source: ScorerSource, candidates: Candidates, block: int, digest: str, show: bool) -> BlockRecord:
    scorer = source.get()
    started = time.perf_counter()
    with cuts_reported():  # for all blocks together, in the results
        values = predict(scorer, candidates.block_texts(block), source.batch_tokens, show)
    seconds = time.perf_counter() - started
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        query_id, document_id = candidates.block_pairs_of(block)[int(bad[0])]
        raise NonFiniteScoreError(
            f"{source.name} scored document {document_id!r} of query {query_id!r} as {values[bad[0]]}: "
            "try --dtype float32, and look at the document's text"
        )
    scores = [float(score) for score in values]
    return BlockRecord(
        digest,
        block,
        scores,
        seconds,
        _last_count(scorer, "tokens"),
        _describe(scorer, "device"),
        _describe(scorer, "number_format", "dtype"),
        _last_count(scorer, "cut_documents"),
    )


def predict(
    scorer: Scorer, pairs: list[tuple[str, str]], batch_tokens: int | None = None, show: bool = False
) -> np.ndarray:
    """Calls `scorer.predict` with those of our options that it takes, and checks the shape of what it returns.

    Returns:
        Shape `(len(pairs),)`, as the scorer's own float type.

    Raises:
        ModelError: not one number for each pair.
    """
    parameters = inspect.signature(scorer.predict).parameters
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "show_progress": None if show else False}
    options["show_progress_bar"] = False
    values = np.asarray(scorer.predict(pairs, **{key: options[key] for key in options if key in parameters}))
    if values.shape != (len(pairs),):
        raise ModelError(
            f"{type(scorer).__name__}.predict returned shape {values.shape} for {len(pairs)} pairs; "
            f"expected ({len(pairs)},), one score a pair"
        )
    return values


def _last_count(scorer: Scorer, name: str) -> int | None:
    """A count of the last call, such as `tokens`, where the scorer keeps `last_stats` (a mapping or an object)."""
    stats = getattr(scorer, "last_stats", None)
    count = stats.get(name) if isinstance(stats, Mapping) else getattr(stats, name, None)
    return None if count is None else int(count)


def _describe(scorer: Scorer, *attributes: str) -> str:
    """The first of these attributes that the scorer has."""
    found = (getattr(scorer, name, None) for name in attributes)
    return str(next((value for value in found if value is not None), "unknown")).removeprefix("torch.")

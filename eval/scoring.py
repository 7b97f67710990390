"""Scoring blocks of (query, document) pairs, or whole lists of a query, with any ranker, and logging each block."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.eval.candidates import Candidates
from modeling_tsarank.eval.score_log import BlockRecord, ScoreLog
from modeling_tsarank.rankers.protocols import ListRanker, last_counts, predict, rank_scores
from modeling_tsarank.ranking_errors import NonFiniteScoreError
from modeling_tsarank.ranking_text import cuts_reported


@dataclass
class ScorerSource:
    """A scorer that is loaded when the first pair needs it: a finished evaluation is reported again without it.

    Attributes:
        name: What tables and plots call it.
        load: Makes the scorer; called at most once.
        settings: Everything that changes its scores (checkpoint, number format, length limits), as JSON values; a
            resumed evaluation with other settings is refused.
        batch_tokens: Token budget of a batch, for a scorer that takes one.
        whole_lists: Whether it orders all documents of a query together (`ListRanker.rank`), and not pair by pair
            (`Scorer.predict`).
    """

    name: str
    load: Callable[[], Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch_tokens: int | None = None
    whole_lists: bool = False
    _scorer: Any = field(default=None, init=False, repr=False)

    def get(self) -> Any:
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
        if source.whole_lists:
            values, counts = _rank_lists(scorer, candidates.block_lists(block), source.batch_tokens)
        else:
            values = predict(scorer, candidates.block_texts(block), source.batch_tokens, show)
            counts = last_counts(scorer)
    seconds = time.perf_counter() - started
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        query_id, document_id = candidates.block_pairs_of(block)[int(bad[0])]
        raise NonFiniteScoreError(
            f"{source.name} scored document {document_id!r} of query {query_id!r} as {values[bad[0]]}: "
            "try --dtype float32, and look at the document's text"
        )
    scores = [float(score) for score in values]
    device, dtype = _describe(scorer, "device"), _describe(scorer, "number_format", "dtype")
    return BlockRecord(digest, block, scores, seconds, device=device, dtype=dtype, **counts)


def _rank_lists(
    ranker: ListRanker, lists: Sequence[tuple[str, list[str]]], batch_tokens: int | None
) -> tuple[np.ndarray, dict[str, int]]:
    """The scores of all documents of some lists, and what the ranker tells of all of them together."""
    scores: list[float] = []
    counts: list[dict[str, int]] = []
    for query, documents in lists:
        scores += rank_scores(ranker, query, documents, batch_tokens)
        counts.append(last_counts(ranker))
    return np.array(scores), {name: sum(one.get(name, 0) for one in counts) for name in set().union(*counts)}


def _describe(scorer: Any, *attributes: str) -> str:
    """The first of these attributes that the scorer has."""
    found = (getattr(scorer, name, None) for name in attributes)
    return str(next((value for value in found if value is not None), "unknown")).removeprefix("torch.")

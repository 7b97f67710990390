"""Scores blocks of (query, document) pairs, or whole lists of a query, with any ranker, and logs the blocks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.eval.candidates import Candidates
from modeling_tsarank.files.log_records import cuts_reported
from modeling_tsarank.files.result_log import ResultLog
from modeling_tsarank.jobs.pools import Pool
from modeling_tsarank.rankers.protocols import ListRanker, last_counts, predict, rank_scores
from modeling_tsarank.ranking_errors import NonFiniteScoreError


logger = logging.getLogger(__name__)


@dataclass
class ScorerSource:
    """A scorer that is loaded lazily: a finished evaluation is reported again without loading it.

    Attributes:
        name: Its name in tables and plots.
        load: Creates the scorer; called at most once.
        settings: Everything that changes its scores (checkpoint, dtype, length limits), as JSON values; resuming with
            other settings raises.
        batch_tokens: Token budget of a batch, if the scorer supports one.
        whole_lists: Whether it ranks all documents of a query together (`ListRanker.rank`) instead of pair by pair
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


def score_blocks(pool: Pool, candidates: Candidates, log: ResultLog, show: bool) -> list[dict[str, Any]]:
    """Scores the blocks that are not logged yet; each is logged as soon as it is complete.

    Args:
        pool: Runs a `BlockScorer`.
        candidates: The pairs.
        log: Maps each block to the record that `BlockScorer` returns.
        show: Whether to show a progress bar: pairs done, pairs per second, time left.

    Returns:
        The records of all blocks in order.

    Raises:
        ModelError: The scorer returned another number of scores than there are pairs.
        NonFiniteScoreError: It returned NaN or an infinity.
    """
    name, blocks = candidates.collection.name, range(len(candidates.blocks))
    left = [block for block in blocks if str(block) not in log]
    pairs = len(candidates.pairs)
    done = pairs - sum(len(candidates.blocks[block]) for block in left)
    if done:
        logger.info("%s: %d of %d pairs are already scored", name, done, pairs)
    if left:
        next(pool.map([(None, None)]))  # load before the bar starts, as loading time would distort its rate
    bar = tqdm(
        total=pairs,
        initial=done,
        desc=f"reranking {name}",
        unit="pair",
        disable=not show,
        # The true mean rate of this run: blocks are few and long, so a moving average would fluctuate.
        smoothing=0,
    )
    with bar:
        for block, record in pool.map((block, candidates.block_texts(block)) for block in left):
            bad = np.flatnonzero(~np.isfinite(record["scores"]))
            if len(bad):
                query_id, document_id = candidates.block_pairs_of(block)[int(bad[0])]
                raise NonFiniteScoreError(
                    f"the model scored document {document_id!r} of query {query_id!r} as {record['scores'][bad[0]]}: "
                    "try --dtype float32, and check the document's text"
                )
            log.add({str(block): record})
            bar.update(len(candidates.blocks[block]))
    return [log[str(block)] for block in blocks]


@dataclass
class BlockScorer:
    """Scores a block of pairs or of whole lists.

    Attributes:
        source: The scorer.
        show: Whether the scorer may show its own progress bar.
    """

    source: ScorerSource
    show: bool = False

    def __call__(self, block: Any) -> dict[str, Any] | None:
        """The record of a block: its scores in order, seconds, device, dtype, and what the model reports.

        Args:
            block: (query, document) texts, for a listwise ranker (query, documents); None only loads the scorer.

        Raises:
            ModelError: The number of scores differs from the number of pairs.
        """
        scorer = self.source.get()
        if block is None:
            return None
        started = time.perf_counter()
        with cuts_reported():  # reported once for all blocks, with the results
            if self.source.whole_lists:
                values, counts = _rank_lists(scorer, block, self.source.batch_tokens)
            else:
                values, counts = predict(scorer, block, self.source.batch_tokens, self.show), last_counts(scorer)
        return {
            "scores": [float(value) for value in values],
            "seconds": time.perf_counter() - started,
            "device": _describe(scorer, "device"),
            "dtype": _describe(scorer, "number_format", "dtype"),
            **counts,
        }


def _rank_lists(
    ranker: ListRanker, lists: Sequence[tuple[str, list[str]]], batch_tokens: int | None
) -> tuple[np.ndarray, dict[str, int]]:
    """The scores of all documents of some lists, and what the ranker reports about them in total."""
    scores: list[float] = []
    counts: list[dict[str, int]] = []
    for query, documents in lists:
        scores += rank_scores(ranker, query, documents, batch_tokens)
        counts.append(last_counts(ranker))
    return np.array(scores), {name: sum(one.get(name, 0) for one in counts) for name in set().union(*counts)}


def _describe(scorer: Any, *attributes: str) -> str:
    """The value of the first of these attributes that the scorer has."""
    found = (getattr(scorer, name, None) for name in attributes)
    return str(next((value for value in found if value is not None), "unknown")).removeprefix("torch.")

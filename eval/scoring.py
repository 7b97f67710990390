"""Scoring blocks of (query, document) pairs, or whole lists of a query, with any ranker, and the log of blocks."""

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


def score_blocks(pool: Pool, candidates: Candidates, log: ResultLog, show: bool) -> list[dict[str, Any]]:
    """Scores the blocks that are not in the log yet, each of which is logged as soon as it is complete.

    Args:
        pool: Does the work with a `BlockScorer`.
        candidates: The pairs.
        log: Where records go: block to what `BlockScorer` returns.
        show: Whether to show a bar: pairs done, pairs per second, time left.

    Returns:
        The records of all blocks in order.

    Raises:
        ModelError: the scorer returned another number of scores than there are pairs.
        NonFiniteScoreError: it returned NaN or an infinity.
    """
    name, blocks = candidates.collection.name, range(len(candidates.blocks))
    left = [block for block in blocks if str(block) not in log]
    pairs = len(candidates.pairs)
    done = pairs - sum(len(candidates.blocks[block]) for block in left)
    if done:
        logger.info("%s: %d of %d pairs are scored already", name, done, pairs)
    if left:
        next(pool.map([(None, None)]))  # before the bar starts: loading is not scoring, and would spoil the rate
    bar = tqdm(
        total=pairs,
        initial=done,
        desc=f"reranking {name}",
        unit="pair",
        disable=not show,
        # The true mean rate of this run: blocks are few and long, so that a moving average would only waver.
        smoothing=0,
    )
    with bar:
        for block, record in pool.map((block, candidates.block_texts(block)) for block in left):
            bad = np.flatnonzero(~np.isfinite(record["scores"]))
            if len(bad):
                query_id, document_id = candidates.block_pairs_of(block)[int(bad[0])]
                raise NonFiniteScoreError(
                    f"the model scored document {document_id!r} of query {query_id!r} as {record['scores'][bad[0]]}: "
                    "try --dtype float32, and look at the document's text"
                )
            log.add({str(block): record})
            bar.update(len(candidates.blocks[block]))
    return [log[str(block)] for block in blocks]


@dataclass
class BlockScorer:
    """Scores a block of pairs or of whole lists.

    Attributes:
        source: The scorer.
        show: Whether the scorer may show a progress bar of its own.
    """

    source: ScorerSource
    show: bool = False

    def __call__(self, block: Any) -> dict[str, Any] | None:
        """What is logged of a block: its scores in order, seconds, device, number format, and what the model tells.

        Args:
            block: (query, document) texts, of a ranker of lists (query, documents); None only loads the scorer.

        Raises:
            ModelError: not one score a pair.
        """
        scorer = self.source.get()
        if block is None:
            return None
        started = time.perf_counter()
        with cuts_reported():  # for all blocks together, in the results
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

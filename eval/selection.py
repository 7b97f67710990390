"""The best documents out of many scores, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TopSelector:
    """Picks the highest scores of a corpus; ties go as trec_eval breaks them, by document id descending.

    Args:
        ids: Document ids, in the order of the score arrays.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids
        descending = sorted(range(len(ids)), key=ids.__getitem__, reverse=True)
        self._tie_rank = np.empty(len(ids), dtype=np.int64)
        self._tie_rank[descending] = np.arange(len(ids))

    def select(self, scores: np.ndarray, depth: int, positions: np.ndarray | None = None) -> dict[str, float]:
        """The `depth` best documents, best first.

        Args:
            scores: Float array, one score a document.
            depth: How many at most.
            positions: Integer array of the documents that `scores` belongs to; all in order by default.

        Returns:
            Document id to score.
        """
        if positions is None:
            positions = np.arange(len(scores))
        if depth < len(scores):
            # Everything at or above the depth-th best score: a partition alone would cut ties at random.
            threshold = np.partition(scores, len(scores) - depth)[len(scores) - depth]
            kept = np.flatnonzero(scores >= threshold)
            scores, positions = scores[kept], positions[kept]
        order = np.lexsort((self._tie_rank[positions], -scores))[:depth]
        return {self.ids[positions[index]]: float(scores[index]) for index in order}

"""Deterministic selection of the best documents by score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TopSelector:
    """Selects the highest scores of a corpus; ties are broken as in trec_eval, by document id descending.

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
            scores: Float array, one score per document.
            depth: Maximum number of documents.
            positions: Integer array with the document index of each score; all documents in order by default.

        Returns:
            Document id to score.
        """
        if positions is None:
            positions = np.arange(len(scores))
        if depth < len(scores):
            # Everything at or above the depth-th best score: a partition alone would break ties arbitrarily.
            threshold = np.partition(scores, len(scores) - depth)[len(scores) - depth]
            kept = np.flatnonzero(scores >= threshold)
            scores, positions = scores[kept], positions[kept]
        order = np.lexsort((self._tie_rank[positions], -scores))[:depth]
        return {self.ids[positions[index]]: float(scores[index]) for index in order}

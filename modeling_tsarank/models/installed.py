"""What a checkpoint's own code asks of the installed package (`ranking_engine.installed_engine`).

That code may be of another version: only ids, numbers, tensors and the plain backbone go in and out.
"""

from __future__ import annotations

from ..engine import ENGINE_API, OLDEST_API, check_cacheable, index_documents, read, readable_length, with_own_lengths
from ..scores.ranking import RANK_OPTIONS, predict, rank
from .checkpoints import make_ranker


__all__ = [
    "ENGINE_API",
    "OLDEST_API",
    "RANK_OPTIONS",
    "check_cacheable",
    "index_documents",
    "make_ranker",
    "predict",
    "rank",
    "read",
    "readable_length",
    "with_own_lengths",
]

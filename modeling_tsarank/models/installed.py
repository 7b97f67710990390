"""What a checkpoint's own code uses of the installed package (`ranking_engine.installed_engine`).

That code may be of another version: only ids, numbers, tensors and the plain backbone are passed in and out.
"""

from __future__ import annotations

from ..engine import (  # noqa: F401
    ENGINE_API,
    OLDEST_API,
    check_cacheable,
    index_documents,
    read,
    readable_length,
    with_own_lengths,
)
from ..scores.ranking import RANK_OPTIONS, predict, rank  # noqa: F401
from .checkpoints import make_ranker  # noqa: F401

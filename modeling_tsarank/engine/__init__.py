"""The scoring engine: prefixes that several tasks share, or that a store has cached, are encoded only once.

A checkpoint's own code calls these functions (through `models.installed`); code of the package uses `PrefixReader`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from .indexing import check_cacheable, index_documents
from .prefix_reader import PrefixReader, StateStore
from .read_outs import named_read_out
from .rope_regimes import readable_length, with_own_lengths
from .tasks import Task


__all__ = [
    "ENGINE_API",
    "OLDEST_API",
    "check_cacheable",
    "index_documents",
    "read",
    "readable_length",
    "with_own_lengths",
]

# The version of these functions' signatures and results. Callers of any version from the oldest on are supported.
ENGINE_API, OLDEST_API = 3, 2
# ids, at, targets, cached, length: see `Task`.
TaskFields = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def read(
    backbone: PreTrainedModel,
    tasks: Sequence[TaskFields],
    read_out: tuple[str, Sequence[int]],
    store: StateStore | None,
    pad_id: int,
    batch_tokens: int,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[list[torch.Tensor], int]:
    """For each task the values `(positions, values)` at its wanted positions, and the number of encoded tokens.

    Args:
        read_out: Name and token ids, see `named_read_out`.
        store, pad_id: See `PrefixReader`.
        batch_tokens, show_progress, stop: See `PrefixReader.read`.
    """
    reader = PrefixReader(backbone, named_read_out(*read_out), store, pad_id=pad_id)
    values = reader.read([Task(*task) for task in tasks], batch_tokens, show_progress, stop)
    return values, reader.tokens

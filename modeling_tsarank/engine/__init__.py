"""How prompts are read fast: prefixes that several tasks share, or that a store holds, are read once.

The functions here are what a checkpoint's own code calls (`ranking_scoring.installed_engine`), perhaps code of another
version: only ids, numbers, tensors and the plain backbone go in and out. Within the package, `PrefixReader` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from .prefix_reader import PrefixReader, StateStore
from .read_outs import AnswerLogits, ReadOut, TokenLogProbs
from .tasks import Task


# What these functions take and give; raised when that changes. Code of any version from the oldest on is served.
ENGINE_API, OLDEST_API = 1, 1
# ids, at, targets, cached, length: see `Task`.
TaskFields = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def _read_out(named: tuple[str, Sequence[int]]) -> ReadOut:
    kind, tokens = named
    return AnswerLogits(tokens) if kind == "answer_logits" else TokenLogProbs()


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
    """For each task the values `(positions, values)` at its wanted positions, and how many tokens were read.

    Args:
        read_out: `token_log_probs`, or `answer_logits` and the ids of the tokens.
        store, pad_id: As in `PrefixReader`.
        batch_tokens, show_progress, stop: As in `PrefixReader.read`.
    """
    reader = PrefixReader(backbone, _read_out(read_out), store, pad_id=pad_id)
    values = reader.read([Task(*task) for task in tasks], batch_tokens, show_progress, stop)
    return values, reader.tokens


def index(
    backbone: PreTrainedModel,
    prefixes: Sequence[tuple[tuple[int, ...], int]],
    store: StateStore,
    pad_id: int,
    batch_tokens: int,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[int, int]:
    """Puts states into a store, as `PrefixReader.index`; how many prefixes it lacked, how many tokens were read."""
    reader = PrefixReader(backbone, TokenLogProbs(), store, pad_id=pad_id)
    return reader.index(prefixes, batch_tokens, show_progress, stop), reader.tokens


def check_store(backbone: PreTrainedModel, longest: int) -> None:
    """Raises `ModelError` if a store cannot hold states for texts of up to `longest` tokens."""
    with torch.inference_mode():
        reader = PrefixReader(backbone, TokenLogProbs())
        reader.check_store(longest)
        reader.close()

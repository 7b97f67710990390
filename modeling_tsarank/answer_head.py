"""The few rows of a model's output head that a true/false ranker asks for, in float32.

Between 8 and 16 the numbers of bfloat16 are 1/16 apart, so a hundred documents' logits, and the differences of two of
them, would fall on a few dozen values and half of the documents would tie. The hidden states are as exact as the model
computes them; only the last product is made exactly, and for the rows that are asked for alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch


_ASKED: ContextVar[Sequence[int] | None] = ContextVar("asked", default=None)
_HALF = (torch.bfloat16, torch.float16)


def _asked_rows(head: torch.nn.Linear, inputs: tuple[Any, ...], _: Any) -> torch.Tensor | None:
    """A forward hook: the logits of the asked tokens in place of those of all, where any are asked for."""
    asked = _ASKED.get()
    if asked is None:
        return None
    (hidden,) = inputs
    rows = torch.tensor(asked, device=head.weight.device)
    bias = None if head.bias is None else head.bias.index_select(0, rows).float()
    weight = head.weight.index_select(0, rows).float()
    # No matrix product: which kernel that takes, and so its last digits, depends on how many positions there are.
    logits = (hidden.float()[..., None, :] * weight).sum(-1)
    return logits if bias is None else logits + bias


@contextmanager
def answer_rows(backbone: Any, tokens: Sequence[int]) -> Iterator[bool]:
    """While it is open, this thread's passes through `backbone` give the logits of `tokens` alone, in float32.

    Yields whether they do: where the head computes in float32 anyway, or is no plain linear layer, all logits come as
    they always do. What a model does to its logits one by one (scaling, capping) it does to these too.
    """
    head = backbone.get_output_embeddings()
    linear = isinstance(head, torch.nn.Linear)
    if not linear or not (head.weight.dtype in _HALF or torch.is_autocast_enabled(head.weight.device.type)):
        yield False
        return
    # The hook stays: taking it away could take it from another thread that is in the middle of a pass.
    if _asked_rows not in head._forward_hooks.values():
        head.register_forward_hook(_asked_rows)
    before = _ASKED.set(tuple(tokens))
    try:
        yield True
    finally:
        _ASKED.reset(before)

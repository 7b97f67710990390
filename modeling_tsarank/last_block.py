"""The last block of a model works at the positions whose logits are wanted, and at no others.

A block's positions serve those behind them through keys and values, and its own output serves the next block. Behind
the last one nothing comes: queries, what leaves the attention, and the feed-forward layer are needed only where the
output head reads. Of a block of SmolLM2-135M these are 94 % of the weights.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


# Architectures whose blocks have these parts, each working on every position by itself, added to the hidden states.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
# Where more of the positions are wanted, picking them would cost more than it spares.
LARGEST_SHARE = 0.5


class _Wanted(threading.local):
    """What this thread's forward pass wants.

    Attributes:
        positions: Boolean `(rows, length)`; `None`: all.
        picked: For each part that is at work, whether its input was picked; a part may wrap another (LoRA).
    """

    def __init__(self) -> None:
        self.positions: torch.Tensor | None = None
        self.picked: list[bool] = []


_wanted = _Wanted()
_hooking = threading.Lock()


def _pick(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The wanted positions of the input, `(positions, in)`."""
    positions = _wanted.positions
    if positions is None:
        return None
    _wanted.picked.append(inputs[0].shape[:-1] == positions.shape)
    return (inputs[0][positions], *inputs[1:]) if _wanted.picked[-1] else None


def _put_back(_module: torch.nn.Module, _inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    """The output at its positions, `(rows, length, out)`, zeros elsewhere."""
    positions = _wanted.positions
    if positions is None or not _wanted.picked.pop():
        return None
    whole = output.new_zeros(*positions.shape, output.shape[-1])
    whole[positions] = output
    return whole


def _make_ready(backbone: Any) -> bool:
    """Readies the parts of the last block to work at some positions only; false for an unknown architecture."""
    if getattr(backbone.config, "model_type", None) not in ARCHITECTURES:
        return False
    block = backbone.model.layers[-1]
    # Together: a thread that finds one of a part's hooks must find the other.
    with _hooking:
        for part in map(block.get_submodule, PARTS):
            if _pick not in part._forward_pre_hooks.values():
                part.register_forward_pre_hook(_pick)
                part.register_forward_hook(_put_back)
    return True


@contextmanager
def last_block_at(backbone: Any, positions: torch.Tensor) -> Iterator[None]:
    """Within, this thread's forward passes of `backbone` are right at `positions` and undefined elsewhere.

    Without effect outside of inference mode (in training, two passes that ought to be equal must be so to the last
    digit), where the architecture is not known, and where most positions are wanted. Keys and values, kept ones too,
    are those of all positions.

    Parameters:
        positions: boolean `(rows, length)`, of the input ids.
    """
    few = torch.is_inference_mode_enabled() and int(positions.sum()) <= LARGEST_SHARE * positions.numel()
    if not few or not _make_ready(backbone):
        yield
        return
    _wanted.positions = positions
    try:
        yield
    finally:
        _wanted.positions = None
        _wanted.picked.clear()  # an error has left some

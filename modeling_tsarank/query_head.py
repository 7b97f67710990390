"""Log-probabilities of given tokens from a model's output head, some positions at a time.

Positions × vocabulary is the largest thing that ranking by query likelihood could write: 115 MB for fifty queries of
twelve tokens and a vocabulary of 49,152. Of a position's logits two numbers are wanted, the token's own and the
normaliser, so the head works on some positions at a time, and on a CPU every time in the same memory: touching new
memory takes longer than the products.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .batch_invariance import RowInvariantLinear, agreeing_rows, invariant_product, takes
from .document_blocks import Workspace
from .modeling_ranker import accepts
from .ranking_engine import gathered_log_probs


# Architectures whose logits are what the head gives, neither scaled nor capped behind it.
ARCHITECTURES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "smollm3"),
    *("gpt2", "gpt_neox", "opt", "bloom"),
)
# Logits that are held at a time, in bytes.
LOGITS_BYTES = 64 << 20
_FEWEST_ROWS = 32
_ACCELERATOR_ROWS = 2048
_HOOKING = threading.Lock()


class Asked:
    """The tokens whose log-probabilities a pass is asked for, in the order of the positions that reach the head.

    Attributes:
        targets: `(positions,)`.
        answered: whether the pass gave log-probabilities `(positions, 1)` in place of logits.
    """

    def __init__(self, targets: torch.Tensor, workspace: Workspace) -> None:
        self.targets, self.answered = targets, False
        self._workspace = workspace
        self._rows: torch.Tensor | None = None

    def take(self, head: Any, hidden: torch.Tensor) -> torch.Tensor | None:
        """What the head is to read in place of `hidden`: nothing, or the first part; `None` if all of it."""
        if hidden.shape[:-1].numel() != len(self.targets) or not len(self.targets):
            return None
        self._rows = hidden.reshape(-1, hidden.shape[-1])
        return self._rows[: 0 if _writes_anywhere(head, hidden) else _rows_at_a_time(head, hidden)]

    def answer(self, head: Any, first: torch.Tensor) -> torch.Tensor | None:
        """Log-probabilities `(positions, 1)`, float32; `first` holds the logits of what the head has read."""
        rows, self._rows = self._rows, None
        if rows is None:
            return None
        count, memory = _rows_at_a_time(head, rows), None
        if _writes_anywhere(head, rows):
            shape = min(count, len(rows)), head.weight.shape[0]
            self._workspace.reserve(shape[0] * shape[1] * rows.dtype.itemsize, rows.device)
            memory = self._workspace.take(shape, rows.dtype)
        values = [gathered_log_probs(first, self.targets[: len(first)])]
        for start in range(len(first), len(rows), count):
            part = rows[start : start + count]
            logits = head.forward(part) if memory is None else _product(head, part, memory)
            values.append(gathered_log_probs(logits, self.targets[start : start + count]))
        self.answered = True
        return torch.cat(values)[:, None]


_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


def _writes_anywhere(head: Any, rows: torch.Tensor) -> bool:
    """Whether the head's product can be written into memory that is there already."""
    plain = type(head) in (torch.nn.Linear, RowInvariantLinear) and type(head.weight) is torch.nn.Parameter
    return plain and head.bias is None and head.weight.dtype == rows.dtype and rows.device.type == "cpu"


def _rows_at_a_time(head: Any, rows: torch.Tensor) -> int:
    if rows.device.type != "cpu":
        return _ACCELERATOR_ROWS
    count = max(_FEWEST_ROWS, 1 << max(LOGITS_BYTES // (head.out_features * rows.dtype.itemsize), 1).bit_length() - 1)
    if type(head) is RowInvariantLinear and takes(rows):
        # Fewer would be filled up with zeros.
        count = max(count, agreeing_rows(rows.shape[1], head.out_features, torch.get_num_threads())[-1])
    return count


def _product(head: Any, rows: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    if type(head) is RowInvariantLinear and takes(rows):
        return invariant_product(rows, head.weight, memory)
    return torch.mm(rows, head.weight.t(), out=memory[: len(rows)])


def _take(head: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """A forward pre-hook: the head reads little, or nothing, of what it is given."""
    asked = _ASKED.get()
    part = None if asked is None else asked.take(head, inputs[0])
    return None if part is None else (part, *inputs[1:])


def _answer(head: torch.nn.Module, _inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
    """A forward hook: log-probabilities in place of logits."""
    asked = _ASKED.get()
    return None if asked is None else asked.answer(head, output)


@contextmanager
def log_probs_of(backbone: Any, targets: torch.Tensor, workspace: Workspace) -> Iterator[Asked]:
    """While it is open, this thread's pass through `backbone` gives log p of `targets`, `(positions, 1)`, not logits.

    What it yields says afterwards whether it was so: logits come as they always do where something may stand behind
    the head, or the head is not known, or in training.

    Parameters:
        targets: `(positions,)`, the token at each of the positions whose logits are asked for.
        workspace: memory that is used again by the next pass.
    """
    head, asked = backbone.get_output_embeddings(), Asked(targets, workspace)
    known = getattr(backbone.config, "model_type", None) in ARCHITECTURES
    # By its name, because that module does not travel with checkpoints, as this one does.
    known = known and (isinstance(head, torch.nn.Linear) or type(head).__name__ == "Int8Linear")
    known = known and accepts(backbone.forward, "logits_to_keep")  # else the head reads all positions
    if not known or not torch.is_inference_mode_enabled() or torch.is_autocast_enabled(targets.device.type):
        yield asked
        return
    # The hooks stay: taking them away could take them from another thread that is in the middle of a pass.
    with _HOOKING:
        if _take not in head._forward_pre_hooks.values():
            head.register_forward_pre_hook(_take)
            head.register_forward_hook(_answer)
    before = _ASKED.set(asked)
    try:
        yield asked
    finally:
        _ASKED.reset(before)

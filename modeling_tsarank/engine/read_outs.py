"""What is computed at the wanted positions, each by a module that replaces the output head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..ranking_scoring import AnswerHead, gathered_log_probs, has_plain_rows
from .batch_invariance import RowInvariantLinear, agreeing_rows, invariant_product, takes
from .state_blocks import Workspace


# Bytes of logits held at a time: positions × vocabulary for all positions would be the largest tensor of all.
LOGITS_BYTES = 64 << 20
_FEWEST_ROWS = 32
_ACCELERATOR_ROWS = 2048


class ReadOut(Protocol):
    """One kind of output at single positions.

    Other kinds, such as attention from some positions to others, are other classes with these methods.
    """

    def head(self, plain: torch.nn.Module, exact: bool, workspace: Workspace) -> torch.nn.Module | None:
        """A module that replaces the output head and returns `(positions, values)`; `None` to use all logits.

        Its `targets`, `(positions,)`, are set before each forward pass; `answered` is false if it returned logits
        nevertheless.

        Args:
            plain: The model's own head.
            exact: The model's logits are known to be the head's output, neither scaled nor capped afterwards.
            workspace: Memory that the next forward pass reuses.
        """

    def of_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same values `(positions, values)` from logits `(positions, vocabulary)`."""


class TokenLogProbs:
    """log p of one given token at each position, float32 `(positions, 1)`: query likelihood."""

    def head(self, plain: torch.nn.Module, exact: bool, workspace: Workspace) -> torch.nn.Module | None:
        size = getattr(plain, "out_features", None)
        return LogProbHead(plain, workspace) if exact and size is not None else None

    def of_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return gathered_log_probs(logits, targets)[:, None]


class AnswerLogits:
    """Logits of a few tokens, `(positions, tokens)`."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)

    def head(self, plain: torch.nn.Module, exact: bool, workspace: Workspace) -> torch.nn.Module | None:
        # Elementwise scaling or capping of logits by the model applies to these too.
        return AnswerHead(plain, self.tokens) if has_plain_rows(plain) else None

    def of_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits[:, self.tokens]


class ClassLogits:
    """Logits of a decoder's sequence-classification head, `(positions, labels)`; all that `ScoreHead` returns."""

    def head(self, plain: torch.nn.Module, exact: bool, workspace: Workspace) -> torch.nn.Module | None:
        return None

    def of_logits(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return logits


class PairLogits(ClassLogits):
    """Logits of a sequence-classification model with bidirectional attention, `(1, labels)`.

    Args:
        separator: See `modeling_cross_encoder.pair_logits`.
    """

    def __init__(self, separator: Sequence[int]) -> None:
        self.separator = list(separator)


def named_read_out(kind: str, tokens: Sequence[int]) -> ReadOut:
    """The read-out of a family, by name.

    Args:
        kind: `token_log_probs`, `answer_logits`, `class_logits` or `pair_logits`.
        tokens: Token ids of the answers, or the separator of `pair_logits`.
    """
    if kind == "answer_logits":
        return AnswerLogits(tokens)
    if kind == "pair_logits":
        return PairLogits(tokens)
    return ClassLogits() if kind == "class_logits" else TokenLogProbs()


class LogProbHead(torch.nn.Module):
    """The output head applied to a chunk of positions at a time, of whose logits only two numbers each are kept.

    On a CPU, all products use the same memory: page faults of new memory take longer than the products.
    """

    targets: torch.Tensor
    answered: bool

    def __init__(self, plain: Any, workspace: Workspace) -> None:
        super().__init__()
        self.plain = plain
        self._workspace = workspace

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `(positions, 1)` of the targets, or all logits if the numbers of positions differ."""
        rows, targets = hidden.reshape(-1, hidden.shape[-1]), self.targets
        self.answered = len(targets) == len(rows)
        if not self.answered:
            logits: torch.Tensor = self.plain(hidden)
            return logits
        count = self._rows_at_a_time(rows)
        memory = self._memory(rows, min(count, len(rows)))
        values = [
            gathered_log_probs(self._product(rows[start : start + count], memory), targets[start : start + count])
            for start in range(0, len(rows), count)
        ]
        return torch.cat(values)[:, None]

    def _memory(self, rows: torch.Tensor, count: int) -> torch.Tensor | None:
        """Memory for the logits of `count` positions, if the product can be written to existing memory."""
        head = self.plain
        plain = type(head) in (torch.nn.Linear, RowInvariantLinear) and type(head.weight) is torch.nn.Parameter
        if not plain or head.bias is not None or head.weight.dtype != rows.dtype or rows.device.type != "cpu":
            return None
        if torch.is_autocast_enabled("cpu"):
            return None
        shape = count, head.weight.shape[0]
        self._workspace.reserve(shape[0] * shape[1] * rows.dtype.itemsize, rows.device)
        return self._workspace.take(shape, rows.dtype)

    def _rows_at_a_time(self, rows: torch.Tensor) -> int:
        if rows.device.type != "cpu":
            return _ACCELERATOR_ROWS
        size = self.plain.out_features
        count = max(_FEWEST_ROWS, 1 << max(LOGITS_BYTES // (size * rows.dtype.itemsize), 1).bit_length() - 1)
        if type(self.plain) is RowInvariantLinear and takes(rows):
            # Fewer would be padded with zeros.
            count = max(count, agreeing_rows(rows.shape[1], size, torch.get_num_threads())[-1])
        return count

    def _product(self, rows: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        if memory is None:
            logits: torch.Tensor = self.plain(rows)
            return logits
        if type(self.plain) is RowInvariantLinear and takes(rows):
            return invariant_product(rows, self.plain.weight, memory)
        return torch.mm(rows, self.plain.weight.t(), out=memory[: len(rows)])

"""The interface between the planner and a backend that runs a model: torch's here, others elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .state_blocks import Groups, Shape, StateBlocks
from .tasks import Task


# Token ids whose states are wanted, and the rotary regime of the tasks that use them.
Prefix = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Sharing:
    """How rows may be processed with cached states.

    Attributes:
        shapes: Shapes of the states.
        unequal: Whether prefixes of unequal lengths may be in one batch.
    """

    shapes: list[Shape]
    unequal: bool


class Forward(ABC):
    """A model with a read-out. A backend without prefix sharing implements `read` only.

    Attributes:
        device, dtype: Of the computation.
        invariant: Whether a row's values are bitwise independent of the other rows.
    """

    device: torch.device
    dtype: torch.dtype
    invariant = False

    @abstractmethod
    def read(self, tasks: Sequence[Task]) -> list[torch.Tensor]:
        """For each task the values `(positions, values)` at its wanted positions; on the CPU."""

    def close(self) -> None:  # noqa: B027 - most backends have nothing to release
        """Returns memory for reuse by the next call."""

    def shares(self, longest: int) -> Sharing | None:
        """How tasks of up to `longest` tokens may continue from the states of a prefix; `None` if they may not."""
        return None

    def describe(self, longest: int) -> str:
        """Why `shares` returns `None`."""
        return "this backend has no states"

    def regime(self, length: int) -> int:
        """The rotary regime of a text's length (`rope_regimes`); states are valid within one regime."""
        return 0

    # ---- called only if the backend shares prefixes ------------------------------------------------

    def states(self, batches: Sequence[Sequence[Prefix]]) -> list[Groups]:
        """Keys and values of every prefix, batch by batch; valid until the next call."""
        raise NotImplementedError

    def blocks(self, counts: Sequence[int], room: int) -> StateBlocks:
        """Room for the states of a batch of rows, to be filled and passed to `read_behind`."""
        raise NotImplementedError

    def read_behind(self, tasks: Sequence[Task], blocks: StateBlocks) -> list[torch.Tensor]:
        """Like `read`, with each task continuing from the states of its first tokens."""
        raise NotImplementedError

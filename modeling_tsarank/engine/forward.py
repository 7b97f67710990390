"""What the planner asks of a backend that runs a model: torch's here, another one's elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .state_blocks import Groups, Shape, StateBlocks
from .tasks import Task


# Token ids whose states are wanted, and the regime of the tasks that read them.
Prefix = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Sharing:
    """How rows may be read behind states.

    Attributes:
        shapes: Of the states.
        unequal: Whether prefixes of unequal lengths may stand in one batch.
    """

    shapes: list[Shape]
    unequal: bool


class Forward(ABC):
    """A model and what is read off it. One that shares nothing has `read` alone.

    Attributes:
        device, dtype: Of the computation.
        invariant: Whether a row's values do not depend on the other rows, to the last bit.
    """

    device: torch.device
    dtype: torch.dtype
    invariant = False

    @abstractmethod
    def read(self, tasks: Sequence[Task]) -> list[torch.Tensor]:
        """For each task the values `(positions, values)` at its wanted positions; on the CPU."""

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Returns memory for the next call to use again."""

    def shares(self, longest: int) -> Sharing | None:
        """How tasks of up to `longest` tokens may be read behind the states of a prefix; `None` if they may not."""
        return None

    def describe(self, longest: int) -> str:
        """Why `shares` says `None`."""
        return "this backend has no states"

    def regime(self, length: int) -> int:
        """What a text's rotary embedding depends on (`rope_regimes`); states serve texts of one regime."""
        return 0

    # ---- asked only of a backend that shares -------------------------------------------------------

    def states(self, batches: Sequence[Sequence[Prefix]]) -> list[Groups]:
        """Keys and values of every prefix, batch by batch; valid until the next call."""
        raise NotImplementedError

    def blocks(self, counts: Sequence[int], room: int) -> StateBlocks:
        """Room for the states of a batch of rows, to be filled and given to `read_behind`."""
        raise NotImplementedError

    def read_behind(self, tasks: Sequence[Task], blocks: StateBlocks) -> list[torch.Tensor]:
        """As `read`, each task behind the states of its first tokens."""
        raise NotImplementedError

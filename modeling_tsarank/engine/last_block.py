"""The last block of a model is computed only at the positions whose output is wanted.

Other positions attend to a block's positions through keys and values, and its output is the next block's input. No
block follows the last one, so queries, the attention's output and the feed-forward layer are needed only at the
positions where the output head is applied. In a block of SmolLM2-135M these are 94 % of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .private_view import hooked


# Architectures whose blocks have these parts, each applied per position and added to the hidden states.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
PARTS = ("self_attn.q_proj", "self_attn.o_proj", "mlp")
# With a larger share of wanted positions, selecting them would cost more than it saves.
LARGEST_SHARE = 0.5


@dataclass
class Wanted:
    """Positions `(rows, length)` wanted by the current forward pass; `None`: all."""

    positions: torch.Tensor | None = None

    def set(self, positions: torch.Tensor) -> None:
        """Sets the boolean positions of a forward pass, if few enough."""
        few = int(positions.sum()) <= LARGEST_SHARE * positions.numel()
        self.positions = positions if few else None


class AtPositions(torch.nn.Module):
    """Applies a part of a block at the wanted positions; zeros elsewhere."""

    def __init__(self, part: torch.nn.Module, wanted: Wanted) -> None:
        super().__init__()
        self.part, self._wanted = part, wanted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(rows, length, in)` to `(rows, length, out)`."""
        positions = self._wanted.positions
        if positions is None:
            found: torch.Tensor = self.part(x)
            return found
        found = self.part(x[positions])
        whole = found.new_zeros(*positions.shape, found.shape[-1])
        whole[positions] = found
        return whole


def pick_positions(view: Any, wanted: Wanted) -> None:
    """Computes the last block of a private view at the wanted positions only, if its architecture is known.

    The output is then correct at these positions and undefined elsewhere. Keys and values are complete.
    """
    if getattr(view.config, "model_type", None) not in ARCHITECTURES:
        return
    block = view.model.layers[-1]
    if hooked(*block.modules()):
        return
    for name in PARTS:
        owner, _, part = name.rpartition(".")
        parent = block.get_submodule(owner)
        parent._modules[part] = AtPositions(parent._modules[part], wanted)

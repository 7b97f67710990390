"""Keys and values of document states, stored where attention uses them: written once, never concatenated.

Query likelihood puts the document before the query, and so do true/false rankers on a decoder with a document-first
template: the KV cache of the tokens before the query serves every query. `StateBlocks` allocates memory for the states
of a batch of documents and of the tokens that follow them, and the model uses it as an ordinary cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .batch_invariance import whole_tiles


# For every layer its keys and values, each (1, heads, tokens, dimension), keys rotated to their positions.
Layers = list[tuple[torch.Tensor, torch.Tensor]]
# The same with consecutive layers of equal shape stacked: keys and values, each (layers, heads, tokens, dimension).
Groups = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Shape:
    """Consecutive layers of one shape: their number, heads, tokens, and the dimensions of a key and a value."""

    layers: int
    heads: int
    tokens: int
    key_dim: int
    value_dim: int


def shapes_of(layers: Layers) -> list[Shape]:
    """The layers' shapes, consecutive equal ones merged."""
    shapes: list[Shape] = []
    for keys, values in layers:
        one = Shape(1, keys.shape[1], keys.shape[2], keys.shape[3], values.shape[3])
        if shapes and (*one.__dict__.values(),)[1:] == (*shapes[-1].__dict__.values(),)[1:]:
            shapes[-1] = Shape(shapes[-1].layers + 1, *(*one.__dict__.values(),)[1:])
        else:
            shapes.append(one)
    return shapes


def stack_layers(layers: Layers) -> Groups:
    """Copies of the layers, consecutive ones of equal shape stacked."""
    groups, at = [], 0
    for shape in shapes_of(layers):
        group = layers[at : at + shape.layers]
        groups.append((torch.cat([keys for keys, _ in group]), torch.cat([values for _, values in group])))
        at += shape.layers
    return groups


def split_layers(groups: Groups) -> Layers:
    """The layers one by one, as views."""
    return [(keys[i : i + 1], values[i : i + 1]) for keys, values in groups for i in range(len(keys))]


def fill_groups(groups: Groups, targets: Groups) -> None:
    """Copies the first tokens of `groups` into `targets`, as many as fit."""
    for group, target in zip(groups, targets, strict=True):
        for part, wanted in zip(group, target, strict=True):
            wanted.copy_(part[:, :, : wanted.shape[2]])


class _FilledLayer(DynamicLayer):
    """A cache layer on preallocated memory, with space after the states for the tokens of one forward pass.

    Args:
        keys, values: `(rows, heads, tokens, dimension)`, including that space.
        used: Tokens before that space.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self._blocks = keys, values
        self.keys: torch.Tensor = keys[:, :, :used]
        self.values: torch.Tensor = values[:, :, :used]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        used, (keys, values) = self.keys.shape[2], self._blocks
        end = used + key_states.shape[2]
        keys[:, :, used:end] = key_states
        values[:, :, used:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values


class PlacedLayer(DynamicLayer):
    """A cache layer whose rows continue at places of their own, each directly after its document.

    Args:
        keys, values: `(rows, heads, tokens, dimension)`, returned whole.
        places: where the next tokens are written, `(rows x heads x read,)`, counted in tokens.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys: torch.Tensor = keys
        self.values: torch.Tensor = values
        self._places = places
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for block, states in ((self.keys, key_states), (self.values, value_states)):
            width = block.shape[-1]
            block.view(-1, width).index_copy_(0, self._places, states.reshape(-1, width))
        return self.keys, self.values


class Workspace:
    """Memory for the blocks of a batch, reused by the next batch and the next call.

    New memory costs a page fault for every 4 KiB, which for hundreds of megabytes is a good part of the time of
    ranking from cached states.
    """

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._used = 0

    def reserve(self, size: int, device: torch.device) -> None:
        """Reserves `size` bytes in total; tensors taken before become invalid."""
        self._used = 0
        if self._buffer is None or self._buffer.device != device or len(self._buffer) < size:
            self._buffer = None
            # An inference tensor cannot be written outside of inference mode.
            with torch.inference_mode(False):
                self._buffer = torch.empty(size, dtype=torch.uint8, device=device)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized tensor in the reserved memory."""
        assert self._buffer is not None
        start, self._used = self._used, self._used + aligned_bytes(shape, dtype)
        return self._buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(*shape)


def aligned_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor, rounded up to a multiple of 64, an alignment that suits vector instructions."""
    return -(-math.prod(shape) * dtype.itemsize // 64) * 64


class StateBlocks:
    """Keys and values of a batch of documents, left-padded with zeros.

    Args:
        shapes: of the model's layers (their `tokens` does not matter).
        counts: how many of each document's first tokens are wanted; zeros if there is nothing to fill in.
        room: how many more tokens will follow in the forward pass.
        dtype: the model's.
        placed: Right-padded instead: exactly `room` tokens follow each document directly, so that every key is at its
            own position; whole tiles, with zeros on the right.

    Reserve `size` bytes of memory before calling `allocate`.
    """

    def __init__(
        self, shapes: Sequence[Shape], counts: Sequence[int], room: int, dtype: torch.dtype, placed: bool = False
    ) -> None:
        self.counts = list(counts)
        self.width = max(self.counts)
        self.placed = placed
        self._room, self._dtype = room, dtype
        self._sizes = []
        tokens = whole_tiles(self.width + room) if placed else self.width + room
        for shape in shapes:
            sizes = shape.layers, len(self.counts), shape.heads, tokens
            self._sizes.append(((*sizes, shape.key_dim), (*sizes, shape.value_dim)))
        self._groups: Groups = []

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(aligned_bytes(shape, self._dtype) for pair in self._sizes for shape in pair)

    def allocate(self, workspace: Workspace) -> None:
        """Takes the memory from the workspace."""
        for key_shape, value_shape in self._sizes:
            keys, values = workspace.take(key_shape, self._dtype), workspace.take(value_shape, self._dtype)
            for row, count in enumerate(self.counts):
                # Masked, but zero times uninitialized memory might not be zero (NaN).
                hidden = slice(count + self._room, None) if self.placed else slice(self.width - count)
                keys[:, row, :, hidden] = 0
                values[:, row, :, hidden] = 0
            self._groups.append((keys, values))

    def targets(self, row: int) -> Groups:
        """Targets of one document's states: keys and values `(layers, heads, tokens, dimension)` per layer group."""
        end = self.counts[row] if self.placed else self.width
        return self.tokens(row, end - self.counts[row], end)

    def tokens(self, row: int, start: int, end: int) -> Groups:
        """Views of a row's tokens from `start` to before `end`, shaped as in `targets`."""
        return [(keys[:, row, :, start:end], values[:, row, :, start:end]) for keys, values in self._groups]

    def cache(self) -> DynamicCache:
        """The blocks as a cache of `width` tokens for one forward pass, which writes after the documents."""
        cache = DynamicCache()
        if self.placed:
            for keys, values in self._groups:
                places = self._places(keys[0])
                cache.layers += [PlacedLayer(keys[i], values[i], places) for i in range(len(keys))]
            return cache
        cache.layers = [
            _FilledLayer(keys[i], values[i], self.width) for keys, values in self._groups for i in range(len(keys))
        ]
        return cache

    def _places(self, layer: torch.Tensor) -> torch.Tensor:
        rows, heads, tokens, _ = layer.shape
        first = torch.arange(rows * heads).view(rows, heads, 1) * tokens + torch.tensor(self.counts)[:, None, None]
        return (first + torch.arange(self._room)).reshape(-1).to(layer.device)

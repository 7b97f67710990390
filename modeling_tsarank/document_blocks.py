"""Kept document states in the place where attention reads them: written once, never copied, concatenated or repeated.

`StateBlocks` makes room for the states of a batch of documents and for the tokens that are read behind them; a store
fills it (`StateStore.fill`), and a model reads it as an ordinary cache. `grouped_heads` lets several query heads read
one head of keys and values without repeating that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .document_encoding import Groups, Shape


GROUPED = "sdpa_grouped"


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`sdpa` for masked grouped-query attention: query heads that share keys and values become rows of one head.

    Parameters:
        query: `(batch, heads, read, dimension)`.
        key, value: `(batch, groups, seen + read, dimension)`, `heads` being a multiple of `groups`.
        attention_mask: `(batch, 1, read, seen + read)`, true or 0 where a token sees another. Without one, and with
            whatever else an architecture asks for, this is plain `sdpa`.

    Returns:
        `(batch, read, heads, dimension)`, and no weights.
    """
    batch, heads, read, _ = query.shape
    groups = key.shape[1]
    special = dropout or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    if special or heads == groups or attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    share = heads // groups
    mask = attention_mask[:, :, None].expand(-1, -1, share, -1, -1).reshape(len(attention_mask), 1, share * read, -1)
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, groups, share * read, -1), key, value, attn_mask=mask, scale=scaling
    )
    return output.reshape(batch, heads, read, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


@contextmanager
def grouped_heads(backbone: Any) -> Iterator[None]:
    """Uses `grouped_attention` where the backbone uses `sdpa`.

    Both take the same masks and give the same results, so another thread may switch in the middle of a pass.
    """
    config = backbone.config.get_text_config()
    if config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


class _FilledLayer(DynamicLayer):
    """A layer of a cache whose states lie in place, with room behind them for those of the tokens read next."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self._blocks: tuple[torch.Tensor, torch.Tensor] | None = (keys, values)
        self.keys: torch.Tensor = keys[:, :, :used]
        self.values: torch.Tensor = values[:, :, :used]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        used = self.keys.shape[2]
        end = used + key_states.shape[2]
        if self._blocks is None or end > self._blocks[0].shape[2]:
            self._blocks = None
            return super().update(key_states, value_states, *args, **kwargs)
        keys, values = self._blocks
        keys[:, :, used:end] = key_states
        values[:, :, used:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._blocks = None
        super().batch_repeat_interleave(repeats)


class Workspace:
    """Memory that the blocks of a batch are cut out of, used again for the next batch and the next call.

    Memory that was never touched costs a page fault for every 4 KiB, which for hundreds of megabytes is a good part of
    the time that ranking from kept states takes.
    """

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._used = 0

    def reserve(self, size: int, device: torch.device) -> None:
        """Makes room for `size` bytes in all; what was cut out before is no longer valid."""
        self._used = 0
        if self._buffer is None or self._buffer.device != device or len(self._buffer) < size:
            self._buffer = None
            # An inference tensor could not be written outside of inference mode.
            with torch.inference_mode(False):
                self._buffer = torch.empty(size, dtype=torch.uint8, device=device)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the reserved memory, its content undefined."""
        assert self._buffer is not None
        start, self._used = self._used, self._used + aligned_bytes(shape, dtype)
        return self._buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(*shape)

    def __deepcopy__(self, memo: Any) -> Workspace:
        return Workspace()

    def __reduce__(self) -> Any:
        return Workspace, ()


def aligned_bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor, up to the next multiple of 64, where vector instructions like to begin."""
    return -(-math.prod(shape) * dtype.itemsize // 64) * 64


class StateBlocks:
    """Keys and values of a batch of documents, aligned on the right, zeros on the left.

    Parameters:
        shapes: of the model's layers (their `tokens` does not matter).
        counts: how many of each document's first tokens are wanted; not all zero.
        room: how many more tokens will be read behind them.
        dtype: the model's.

    `size` bytes of memory must be reserved before `allocate` takes them.
    """

    def __init__(self, shapes: Sequence[Shape], counts: Sequence[int], room: int, dtype: torch.dtype) -> None:
        self.counts = list(counts)
        self.width = max(self.counts)
        self._dtype = dtype
        self._sizes = []
        for shape in shapes:
            sizes = shape.layers, len(self.counts), shape.heads, self.width + room
            self._sizes.append(((*sizes, shape.key_dim), (*sizes, shape.value_dim)))
        self._groups: Groups = []

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return sum(aligned_bytes(shape, self._dtype) for pair in self._sizes for shape in pair)

    def allocate(self, workspace: Workspace) -> None:
        """Takes the memory."""
        for key_shape, value_shape in self._sizes:
            keys, values = workspace.take(key_shape, self._dtype), workspace.take(value_shape, self._dtype)
            for row, count in enumerate(self.counts):
                # Hidden by the mask, but zero times whatever lay in memory might not be zero.
                keys[:, row, :, : self.width - count] = 0
                values[:, row, :, : self.width - count] = 0
            self._groups.append((keys, values))

    def targets(self, row: int) -> Groups:
        """Where one document's states go: for each run of equal layers `(layers, heads, tokens, dimension)`, twice."""
        place = slice(self.width - self.counts[row], self.width)
        return [(keys[:, row, :, place], values[:, row, :, place]) for keys, values in self._groups]

    def cache(self) -> DynamicCache:
        """The blocks as a cache of `width` tokens, to be read once: reading writes behind the documents."""
        cache = DynamicCache()
        cache.layers = [
            _FilledLayer(keys[i], values[i], self.width) for keys, values in self._groups for i in range(len(keys))
        ]
        return cache

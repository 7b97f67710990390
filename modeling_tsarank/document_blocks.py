"""Kept document states in the place where attention reads them: written once, never copied, concatenated or repeated.

`StateBlocks` makes room for the states of a batch of documents and for the tokens that are read behind them; a store
fills it (`StateStore.fill`), and a model reads it as an ordinary cache. `grouped_heads` lets several query heads read
one head of keys and values without repeating that, and bfloat16 attend in whole tiles (`batch_invariance`).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .batch_invariance import causal_agrees, make_linears_invariant, takes, whole_keys, whole_tiles
from .document_encoding import Groups, Shape


# transformers knows attention by a name, for all models of a process. A saved folder may bring other code than this.
GROUPED = f"sdpa_grouped_{zlib.crc32(__name__.encode()):08x}"


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

    bfloat16 on a CPU is padded to whole tiles of positions and dimensions, so that a position's result does not depend
    on the lengths.

    Parameters:
        query: `(batch, heads, read, dimension)`.
        key, value: `(batch, groups, seen + read, dimension)`, `heads` being a multiple of `groups`.
        attention_mask: `(batch, 1, read, seen + read)`, true or 0 where a token sees another. Without one, and with
            whatever else an architecture asks for, and in training, this is plain `sdpa`. It is not changed later.

    Returns:
        `(batch, read, heads, dimension)`, and no weights.
    """
    batch, heads, read, size = query.shape
    groups, width = key.shape[1], value.shape[3]
    special = dropout or kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    special = special or kwargs.get("is_causal") is False or not getattr(module, "is_causal", True)
    special = special or query.requires_grad or key.requires_grad
    tiled = takes(query) and not special
    alone = tiled and attention_mask is None and 1 < read == key.shape[2]
    grouped = (tiled or heads != groups) and attention_mask is not None and attention_mask.shape[1] == 1
    if special or not (alone or grouped):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    mask: torch.Tensor | None = None
    rows, wide = read, whole_tiles(max(size, width))
    keys = whole_keys(key.shape[2], wide) if tiled else key.shape[2]
    if attention_mask is not None:
        rows = heads // groups * read
        query = query.reshape(batch, groups, rows, size)
        mask = _grouped_mask(attention_mask, heads // groups, keys, tiled)
    elif not causal_agrees(keys, wide):
        mask = _causal_mask(whole_tiles(rows), keys)
    if tiled:
        scaling = size**-0.5 if scaling is None else scaling
        behind = keys - key.shape[2]
        query = _padded(query, whole_tiles(rows) - rows, wide - size)
        key, value = _padded(key, behind, wide - size), _padded(value, behind, wide - width)
    output = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != groups,
    )
    return output[:, :, :rows, :width].reshape(batch, heads, read, width).transpose(1, 2).contiguous(), None


def _padded(part: torch.Tensor, positions: int, dimensions: int) -> torch.Tensor:
    """Zeros behind the last positions and dimensions, which are the tensor's last two."""
    return torch.nn.functional.pad(part, (0, dimensions, 0, positions)) if positions or dimensions else part


@functools.lru_cache(maxsize=16)
def _causal_mask(rows: int, keys: int) -> torch.Tensor:
    hidden = torch.full((rows, keys), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    return hidden.triu_(1)[None, None]


def _grouped_mask(mask: torch.Tensor, share: int, keys: int, tiled: bool) -> torch.Tensor:
    """The mask for `share` heads as rows of one, if wanted with hidden positions up to whole tiles and `keys`.

    All layers ask the same of one mask, so it is made once and kept with it.
    """
    made: dict[tuple[int, int, bool], torch.Tensor] = mask.__dict__.setdefault("_grouped", {})
    if (share, keys, tiled) not in made:
        batch, _, read, seen = mask.shape
        grouped = mask[:, :, None].expand(-1, -1, share, -1, -1).reshape(batch, 1, share * read, seen)
        if tiled:
            if grouped.dtype == torch.bool:
                # What the kernel would make of it, in every layer.
                grouped = torch.zeros_like(grouped, dtype=torch.bfloat16).masked_fill_(
                    ~grouped, torch.finfo(torch.bfloat16).min
                )
            hidden = torch.finfo(grouped.dtype).min
            grouped = torch.nn.functional.pad(grouped, (0, keys - seen), value=hidden)
            grouped = torch.nn.functional.pad(grouped, (0, 0, 0, whole_tiles(share * read) - share * read))
        made[share, keys, tiled] = grouped
    return made[share, keys, tiled]


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)


def takes_grouped(backbone: Any) -> bool:
    """Whether a backbone uses `sdpa` and looks attention up by its name.

    One that does not, such as Falcon, asks whether the name is `sdpa` and would else take its masks for other ones.
    """
    named = backbone.config.get_text_config()._attn_implementation in ("sdpa", GROUPED)
    return named and bool(getattr(backbone, "_supports_attention_backend", False))


@contextmanager
def grouped_heads(backbone: Any) -> Iterator[None]:
    """Uses `grouped_attention` where the backbone uses `sdpa`, if it can (`takes_grouped`).

    Both take the same masks and give the same results, so another thread may switch in the middle of a pass.
    """
    config = backbone.config.get_text_config()
    if config._attn_implementation != "sdpa" or not takes_grouped(backbone):
        yield
        return
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def make_invariant(backbone: Any) -> None:
    """Lets a bfloat16 model on a CPU read every row as if it were alone (`batch_invariance`), from now on.

    Its linear layers stay what they are for other dtypes, for other devices and in training. Its attention becomes
    `grouped_attention` and is not switched back: another thread may be in the middle of a pass.
    """
    make_linears_invariant(backbone)
    config = backbone.config.get_text_config()
    if config._attn_implementation == "sdpa":
        config._attn_implementation = GROUPED


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


class PlacedLayer(DynamicLayer):
    """A layer of a cache whose rows are read on at places of their own, each right behind its document.

    Parameters:
        keys, values: `(rows, heads, tokens, dimension)`, handed out whole.
        places: where the tokens that are read next go, `(rows x heads x read,)`, counted in tokens.
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
        placed: Documents are aligned on the left, and exactly `room` tokens will be read right behind each, so that
            every key stands at its own position; whole tiles, zeros on the right.

    `size` bytes of memory must be reserved before `allocate` takes them.
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
        """Takes the memory."""
        for key_shape, value_shape in self._sizes:
            keys, values = workspace.take(key_shape, self._dtype), workspace.take(value_shape, self._dtype)
            for row, count in enumerate(self.counts):
                # Hidden by the mask, but zero times whatever lay in memory might not be zero.
                hidden = slice(count + self._room, None) if self.placed else slice(self.width - count)
                keys[:, row, :, hidden] = 0
                values[:, row, :, hidden] = 0
            self._groups.append((keys, values))

    def targets(self, row: int) -> Groups:
        """Where one document's states go: for each run of equal layers `(layers, heads, tokens, dimension)`, twice."""
        end = self.counts[row] if self.placed else self.width
        place = slice(end - self.counts[row], end)
        return [(keys[:, row, :, place], values[:, row, :, place]) for keys, values in self._groups]

    def cache(self) -> DynamicCache:
        """The blocks as a cache of `width` tokens, to be read once: reading writes behind the documents."""
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

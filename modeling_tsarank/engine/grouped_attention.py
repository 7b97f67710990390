"""Attention as `sdpa`: query heads that share keys and values become rows of one head; bfloat16 is padded to tiles."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .batch_invariance import causal_agrees, takes, whole_keys, whole_tiles


# transformers registers attention functions by name, process-wide. Folders saved by older versions bring their own
# code, under other names.
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

    bfloat16 on a CPU is padded to whole tiles of positions and dimensions, so that a position's result does not depend
    on the lengths.

    Parameters:
        query: `(batch, heads, read, dimension)`.
        key, value: `(batch, groups, seen + read, dimension)`, `heads` a multiple of `groups`.
        attention_mask: `(batch, 1, read, seen + read)`, true or 0 where a token attends to another. Without a mask, in
            training, or with other arguments of an architecture, this is plain `sdpa`. It must not be changed later.

    Returns:
        `(batch, read, heads, dimension)`, and no attention weights.
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
    """Zero padding at the end of the positions and dimensions, the tensor's last two axes."""
    return torch.nn.functional.pad(part, (0, dimensions, 0, positions)) if positions or dimensions else part


@functools.lru_cache(maxsize=16)
def _causal_mask(rows: int, keys: int) -> torch.Tensor:
    hidden = torch.full((rows, keys), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)
    return hidden.triu_(1)[None, None]


def _grouped_mask(mask: torch.Tensor, share: int, keys: int, tiled: bool) -> torch.Tensor:
    """The mask for `share` heads as rows of one; with `tiled`, masked positions up to whole tiles and `keys` follow.

    All layers use the same mask, so the result is computed once and stored with it.
    """
    made: dict[tuple[int, int, bool], torch.Tensor] = mask.__dict__.setdefault("_grouped", {})
    if (share, keys, tiled) not in made:
        batch, _, read, seen = mask.shape
        grouped = mask[:, :, None].expand(-1, -1, share, -1, -1).reshape(batch, 1, share * read, seen)
        if tiled:
            if grouped.dtype == torch.bool:
                # The kernel would convert it so, in every layer.
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

    Others, such as Falcon, compare the name with `sdpa`, and would misinterpret the masks under another name.
    """
    named = backbone.config.get_text_config()._attn_implementation == "sdpa"
    return named and bool(getattr(backbone, "_supports_attention_backend", False))

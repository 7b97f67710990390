"""Attention of the last tokens of a text to the tokens before them, by layer: what attention rankers score with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..ranking_errors import ModelError
from ..ranking_scoring import accepts
from .private_view import private_view
from .rope_regimes import rope_limits
from .state_blocks import Layers


WATCHED = "sdpa_watched"
_WATCH = "_tsarank_watch"


class _Watch:
    """What one pass records: of each layer the attention of the wanted tokens, `(wanted, keys)`, mean of all heads."""

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self.found: list[torch.Tensor] = []


def watched_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`sdpa` for one row; softmax(q k^T) of the wanted tokens is recorded. Shapes are those of `grouped_attention`."""
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ModelError("this architecture's attention has a soft cap, sinks or a position bias, and is not recorded")
    watch: _Watch = getattr(module, _WATCH)
    if watch.wanted:
        watch.found.append(_weights(query, key, attention_mask, scaling, watch.wanted))
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output, None


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    wanted: Sequence[int],
) -> torch.Tensor:
    (_, heads, read, size), (groups, seen) = query.shape, key.shape[1:3]
    chosen = query[0, :, wanted].float().reshape(groups, -1, size)
    with torch.autocast(query.device.type, enabled=False):
        scores = (chosen @ key[0].float().transpose(1, 2)).reshape(heads, len(wanted), seen)
    scores *= size**-0.5 if scaling is None else scaling
    if mask is not None:
        own = mask[0, :, wanted, :seen]
        scores = scores.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else scores + own.float()
    else:  # every token sees what stands before it, and itself
        ends = torch.tensor(wanted, device=key.device)[:, None] + seen - read
        scores = scores.masked_fill(torch.arange(seen, device=key.device) > ends, -torch.inf)
    return scores.softmax(-1).mean(0)


AttentionInterface.register(WATCHED, watched_attention)
AttentionMaskInterface.register(WATCHED, sdpa_mask)


class AttentionReader:
    """Passes over one text at a time on a private view of a decoder-only model; its attention is recorded.

    Args:
        backbone: It is left as it is, and read in evaluation mode.
        layers: How many of the first layers are computed; all by default.
        keep_mode: Read it in the mode that it is in.

    Raises:
        ModelError: its attention cannot be recorded.
    """

    def __init__(self, backbone: PreTrainedModel, layers: int | None = None, keep_mode: bool = False) -> None:
        view = private_view(backbone, keep_mode)
        if (
            view is None
            or backbone.config.is_encoder_decoder
            or not getattr(view, "_supports_attention_backend", False)
        ):
            raise ModelError(
                f"the attention of {backbone.config.model_type} cannot be recorded: a decoder-only model is needed "
                "that takes other attention functions, neither compiled nor spread over devices"
            )
        self.device = backbone.device
        view.config.get_text_config()._attn_implementation = WATCHED
        self._watch = _Watch()
        for part in view.modules():
            if hasattr(part, "layer_idx"):
                setattr(part, _WATCH, self._watch)
        self._model = view
        self._few_logits = {"logits_to_keep": 1} if accepts(backbone.forward, "logits_to_keep") else {}
        self.layers: int = backbone.config.get_text_config().num_hidden_layers
        if layers is not None:
            self._keep_layers(layers)

    def _keep_layers(self, count: int) -> None:
        for owner in self._model.modules():
            for name, part in owner._modules.items():
                if isinstance(part, torch.nn.ModuleList) and len(part) == self.layers:
                    owner._modules[name] = part[:count]
        self.layers = count

    def states(self, ids: Sequence[int]) -> DynamicCache:
        """Keys and values of a text's tokens."""
        cache = DynamicCache()
        self._watch.wanted = []
        self._pass(ids, cache, **self._few_logits)
        return cache

    def states_of_rows(self, rows: torch.Tensor, positions: torch.Tensor) -> Layers:
        """Keys and values of each layer, `(texts, heads, tokens, dimension)`, of texts padded on the right.

        Args:
            rows, positions: `(texts, tokens)`.
        """
        cache = DynamicCache()
        self._watch.wanted = []
        # Without the head: its product with one token of each row copies the vocabulary's weights for every row.
        self._model.base_model(input_ids=rows, position_ids=positions, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cast(Any, cache.layers)]

    def read(
        self,
        ids: Sequence[int],
        cache: DynamicCache,
        wanted: Sequence[int],
        start: int | None = None,
        hidden: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens behind a cache, which is left as it was.

        Args:
            ids: The tokens.
            cache: What stands before them, `seen` tokens.
            wanted: Places in `ids` whose attention is wanted.
            start: Position of the first of them; `seen` by default.
            hidden: `(seen,)`, true where the cache is not attended to.

        Returns:
            Attention `(layers, wanted, seen + read)`, float32, mean of all heads, and logits `(read, vocabulary)`.
        """
        inputs: dict[str, Any] = {}
        if start is not None:
            inputs["position_ids"] = torch.arange(start, start + len(ids), device=self.device)[None]
        if hidden is not None:
            causal = torch.ones(len(ids), len(ids), dtype=torch.bool, device=self.device).tril()
            inputs["attention_mask"] = torch.cat([~hidden.expand(len(ids), -1), causal], dim=1)[None, None]
        self._watch.wanted, self._watch.found = list(wanted), []
        logits = self._pass(ids, cache, **inputs)
        cache.crop(-len(ids))
        return torch.stack(self._watch.found), logits

    def _pass(self, ids: Sequence[int], cache: DynamicCache, **inputs: Any) -> torch.Tensor:
        row = torch.tensor([list(ids)], device=self.device)
        logits: torch.Tensor = self._model(input_ids=row, past_key_values=cache, use_cache=True, **inputs).logits
        return logits[0]


class KeyRotation:
    """Moves cached keys of rotary embeddings to later positions.

    Args:
        backbone: A decoder-only model.

    Raises:
        ModelError: its keys do not depend on positions by one rotation alone.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        config = backbone.config.get_text_config()
        found = [part for part in backbone.modules() if hasattr(part, "inv_freq") and hasattr(part, "rope_type")]
        if len(found) != 1 or rope_limits(config) or getattr(config, "alibi", False):
            raise ModelError(
                f"{config.model_type} has no rotary embedding with fixed frequencies, which is needed here"
            )
        self._frequencies = cast(torch.Tensor, found[0].inv_freq).float()
        self._check(backbone)

    def turn(self, layers: Layers, by: int) -> Layers:
        """The layers with keys `(1, heads, tokens, dimension)` `by` positions later; values are the same tensors."""
        angles = by * self._frequencies
        cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)

        def turned(keys: torch.Tensor) -> torch.Tensor:
            part, rest = keys[..., : len(cos)].float(), keys[..., len(cos) :]
            first, second = part.chunk(2, dim=-1)
            moved = part * cos + torch.cat([-second, first], dim=-1) * sin
            return torch.cat([moved.to(keys.dtype), rest], dim=-1)

        return [(turned(keys), values) for keys, values in layers]

    def _check(self, backbone: PreTrainedModel) -> None:
        """Compares turned keys with those of the same texts at later positions.

        Texts of one token: it attends to itself alone, so that what goes into a layer is the same at all positions,
        and half precision's rounding does not add up from layer to layer.
        """
        ids = torch.arange(5, 11, device=backbone.device)[:, None] % backbone.config.get_text_config().vocab_size
        layers: list[Layers] = []
        for start in (0, 7):
            cache = DynamicCache()
            positions = torch.arange(start, start + len(ids), device=backbone.device)[:, None]
            backbone(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
            layers.append([(layer.keys, layer.values) for layer in cast(Any, cache.layers)])
        for (expected, _), (found, _) in zip(layers[1], self.turn(layers[0], 7), strict=True):
            if (found - expected).abs().max() > (0.02 if expected.dtype.itemsize < 4 else 1e-3) * expected.abs().max():
                raise ModelError(
                    f"keys of {backbone.config.model_type} cannot be moved to other positions by rotation"
                )

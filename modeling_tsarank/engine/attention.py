"""Attention from the last tokens of a text to all tokens before them, by layer: the signal of attention rankers."""

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
    """Records of one forward pass: per layer, the wanted tokens' attention `(wanted, keys)`, averaged over heads."""

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
    """`sdpa` for one row that records softmax(q k^T) of the wanted tokens. Shapes are those of `grouped_attention`."""
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise ModelError("cannot record attention that has a soft cap, attention sinks or a position bias")
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
    else:  # causal: every token attends to the tokens before it and to itself
        ends = torch.tensor(wanted, device=key.device)[:, None] + seen - read
        scores = scores.masked_fill(torch.arange(seen, device=key.device) > ends, -torch.inf)
    return scores.softmax(-1).mean(0)


AttentionInterface.register(WATCHED, watched_attention)
AttentionMaskInterface.register(WATCHED, sdpa_mask)


class AttentionReader:
    """Forward passes over one text at a time, with recorded attention, on a private view of a decoder-only model.

    Args:
        backbone: The model; it is not changed, and it runs in evaluation mode.
        layers: Number of layers to compute, from the first; all by default.
        keep_mode: Do not switch to evaluation mode.

    Raises:
        ModelError: the model's attention cannot be recorded.
    """

    def __init__(self, backbone: PreTrainedModel, layers: int | None = None, keep_mode: bool = False) -> None:
        view = private_view(backbone, keep_mode)
        if (
            view is None
            or backbone.config.is_encoder_decoder
            or not getattr(view, "_supports_attention_backend", False)
        ):
            raise ModelError(
                f"the attention of {backbone.config.model_type} cannot be recorded: this needs a decoder-only model "
                "with exchangeable attention functions that is neither compiled nor distributed over devices"
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
        """The KV cache of a text."""
        cache = DynamicCache()
        self._watch.wanted = []
        self._pass(ids, cache, **self._few_logits)
        return cache

    def states_of_rows(self, rows: torch.Tensor, positions: torch.Tensor) -> Layers:
        """Keys and values of each layer, `(texts, heads, tokens, dimension)`, of right-padded texts.

        Args:
            rows, positions: `(texts, tokens)`.
        """
        cache = DynamicCache()
        self._watch.wanted = []
        # Without the output head: for one token of each row, its product copies the vocabulary's weights per row.
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
        """Forward pass of tokens that follow a KV cache; the cache is unchanged afterwards.

        Args:
            ids: The tokens.
            cache: States of the `seen` tokens before them.
            wanted: Indexes into `ids` of the tokens whose attention is returned.
            start: Position of the first token of `ids`; `seen` by default.
            hidden: `(seen,)`, true where the cache is not attended to.

        Returns:
            Attention `(layers, wanted, seen + read)`, float32, averaged over heads, and logits `(read, vocabulary)`.
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
        ModelError: keys depend on positions by more than one rotation.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        config = backbone.config.get_text_config()
        found = [part for part in backbone.modules() if hasattr(part, "inv_freq") and hasattr(part, "rope_type")]
        if len(found) != 1 or rope_limits(config) or getattr(config, "alibi", False):
            raise ModelError(
                f"{config.model_type} has no rotary embedding with fixed frequencies, which this ranker needs"
            )
        self._frequencies = cast(torch.Tensor, found[0].inv_freq).float()
        self._check(backbone)

    def turn(self, layers: Layers, by: int) -> Layers:
        """Layers with keys `(1, heads, tokens, dimension)` shifted by `by` positions; values are the same tensors."""
        angles = by * self._frequencies
        cos, sin = angles.cos().repeat(2), angles.sin().repeat(2)

        def turned(keys: torch.Tensor) -> torch.Tensor:
            part, rest = keys[..., : len(cos)].float(), keys[..., len(cos) :]
            first, second = part.chunk(2, dim=-1)
            moved = part * cos + torch.cat([-second, first], dim=-1) * sin
            return torch.cat([moved.to(keys.dtype), rest], dim=-1)

        return [(turned(keys), values) for keys, values in layers]

    def _check(self, backbone: PreTrainedModel) -> None:
        """Compares rotated keys with the keys of the same texts at later positions.

        The texts have one token: it attends only to itself, so a layer's input is the same at every position and
        half-precision rounding errors do not accumulate over layers.
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
                    f"the keys of {backbone.config.model_type} cannot be shifted to other positions by a rotation"
                )

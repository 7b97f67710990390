"""Rotary embeddings whose frequencies depend on the text's length: chosen per task, by its own length.

LongRoPE (Phi-3 and similar models) has one set of frequencies for texts up to the pre-training length and another for
longer ones; dynamic NTK scaling has different ones for every length beyond that. transformers uses the longest row of
the batch, or the current position: a score would depend on the rest of the batch, and a document's keys would be
rotated by other angles than its query's. Here each task has one regime, used in every forward pass over a part of it
and included in the key of its document's states.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .private_view import private_view


ORIGINAL_FREQUENCIES = "original_inv_freq"


def context_length(config: Any) -> int | None:
    """Maximum number of tokens of a text, `None` if the configuration has no limit."""
    config = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    return next((limit for name in names if (limit := getattr(config, name, None) or 0) > 0), None)  # XLNet has -1


def rope_limit(config: Any, parameters: dict[str, Any]) -> tuple[int, bool] | None:
    """Length up to which frequencies are constant, and whether they vary beyond; `None` if they never change."""
    kind = parameters.get("rope_type") or ""
    if kind == "longrope":
        return parameters["original_max_position_embeddings"], False
    return (config.max_position_embeddings, True) if "dynamic" in kind else None


def rope_limits(config: Any) -> list[tuple[int, bool]]:
    """`rope_limit` of each kind of layer that has one."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    return [limit for part in parts if (limit := rope_limit(config, part)) is not None]


def rotary_modules(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """Names and modules of transformers' rotary embeddings with a `rope_limit`."""
    config: Any = model.config
    if not rope_limits(config.get_text_config()):
        return []
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "rope_type")
        and any(buffer.endswith(ORIGINAL_FREQUENCIES) for buffer, _ in module.named_buffers())
    ]


def rope_regime(config: Any, length: int) -> int:
    """A length that represents all lengths with the frequencies of `length`; 0 for the default ones."""
    beyond = [length if grows else limit + 1 for limit, grows in rope_limits(config) if length > limit]
    return max(beyond, default=0)


def derived_buffers(backbone: torch.nn.Module) -> set[str]:
    """Names of buffers that a forward pass may overwrite and that follow from the configuration."""
    return {
        f"{name}.{buffer}"
        for name, module in rotary_modules(backbone)
        for buffer, _ in module.named_buffers()
        if not buffer.endswith(ORIGINAL_FREQUENCIES)
    }


class RegimeRotary(torch.nn.Module):
    """A rotary embedding with one regime per row; the wrapped embedding is not changed.

    Attributes:
        regimes: Of each row of a forward pass, or one for all rows.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.plain = plain
        self.regimes: Sequence[int] = [0]

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """Cosines and sines `(rows, length, dimension)`."""
        given = inspect.signature(type(self.plain).forward).bind(self.plain, *args, **kwargs).arguments
        x, positions, layer_type = given["x"], given["position_ids"], given.get("layer_type")
        if len(set(self.regimes)) == 1:
            return _angles(self.plain, x, positions, layer_type, self.regimes[0])
        rows = torch.tensor(self.regimes, device=positions.device)
        positions = positions.expand(len(rows), -1)
        parts: list[torch.Tensor] = []
        for regime in sorted(set(self.regimes)):
            chosen = (rows == regime).nonzero().squeeze(-1)
            found = _angles(self.plain, x, positions[chosen], layer_type, regime)
            parts = parts or [part.new_empty(len(rows), *part.shape[1:]) for part in found]
            for whole, part in zip(parts, found, strict=True):
                whole[chosen] = part
        return tuple(parts)


def use_regimes(view: torch.nn.Module) -> list[RegimeRotary]:
    """Replaces each length-dependent rotary embedding of a private view by a `RegimeRotary`."""
    made = []
    for name, module in rotary_modules(view):
        owner, _, part = name.rpartition(".")
        made.append(RegimeRotary(module))
        view.get_submodule(owner)._modules[part] = made[-1]
    return made


class _Frequencies:
    """A rotary embedding with other frequencies."""

    def __init__(self, module: Any, name: str, frequencies: torch.Tensor) -> None:
        self.__dict__.update({"_module": module, name: frequencies})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _angles(
    module: Any, x: torch.Tensor, positions: torch.Tensor, layer_type: str | None, regime: int
) -> tuple[torch.Tensor, ...]:
    config = module.config
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    prefix = "" if layer_type is None else f"{layer_type}_"
    limit = rope_limit(config, config.rope_parameters if layer_type is None else config.rope_parameters[layer_type])
    more = {} if layer_type is None else {"layer_type": layer_type}
    frequencies: torch.Tensor = getattr(module, f"{prefix}{ORIGINAL_FREQUENCIES}")
    if limit is not None:
        if regime > limit[0]:
            length = torch.tensor(regime, device=x.device)
            frequencies = ROPE_INIT_FUNCTIONS[kind](config, x.device, seq_len=length, **more)[0]
            # Some also scale by the largest position in their input: this one makes it the same in every batch.
            positions = torch.cat([positions, positions.new_full((len(positions), 1), regime - 1)], dim=1)
        else:
            # Only padding has higher positions.
            positions = positions.clamp(max=limit[0] - 1)
    changed = _Frequencies(module, f"{prefix}inv_freq", frequencies.to(x.device))
    cos, sin = inspect.unwrap(type(module).forward)(changed, x, positions, **more)
    return (cos[:, :-1], sin[:, :-1]) if limit is not None and regime > limit[0] else (cos, sin)


def readable_length(backbone: Any) -> int | None:
    """Maximum number of tokens of a text, `None` if the configuration has no limit.

    If a model's own code rotates keys in a way unknown here, this is the length that is right in every batch.
    """
    limits = rope_limits(backbone.config.get_text_config())
    if not limits or rotary_modules(backbone):
        return context_length(backbone.config)
    return min(limit for limit, _ in limits)


def with_own_lengths(backbone: Any, lengths: torch.Tensor) -> Any:
    """The model for one forward pass with each row's keys rotated by the row's own length; also for training."""
    if not rope_limits(backbone.config.get_text_config()):
        return backbone
    view = private_view(backbone, keep_mode=True)
    rotary = [] if view is None else use_regimes(view)
    if not rotary:
        return backbone
    regimes = [rope_regime(backbone.config.get_text_config(), length) for length in lengths.tolist()]
    for one in rotary:
        one.regimes = regimes
    return view

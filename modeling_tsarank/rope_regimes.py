"""Rotary embeddings whose frequencies depend on the length of what is read: decided for each pair, by its own length.

LongRoPE (Phi-3 and kin) has one set of frequencies for texts up to the length of its pre-training and another for
longer ones; dynamic NTK scaling has others for every length beyond that. transformers takes the longest row of a
batch, or the position that is just being read: a pair's score would depend on the pairs beside it, and a document's
keys would be turned by other angles than its query's. Here a pair has one regime, which belongs to all passes that
read a part of it and to the key of its document's states.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


# The regime of each row of a pass, or one for all rows.
_REGIMES: ContextVar[Sequence[int] | None] = ContextVar("regimes", default=None)
_HOOKING = threading.Lock()
_ORIGINAL = "original_inv_freq"


def _rope_limit(config: Any, parameters: dict[str, Any]) -> tuple[int, bool] | None:
    """Up to which length the frequencies stay the same, and whether they depend on the length beyond; if they do."""
    kind = parameters.get("rope_type") or ""
    if kind == "longrope":
        return parameters["original_max_position_embeddings"], False
    return (config.max_position_embeddings, True) if "dynamic" in kind else None


def _rope_limits(config: Any) -> list[tuple[int, bool]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    # Some architectures have them for each kind of layer.
    parts = [part for part in parameters.values() if isinstance(part, dict)] or [parameters]
    return [limit for part in parts if (limit := _rope_limit(config, part)) is not None]


def rope_regime(config: Any, length: int) -> int:
    """A length that stands for all that have a pair of `length` tokens' frequencies; 0 for the usual ones."""
    beyond = [length if grows else limit + 1 for limit, grows in _rope_limits(config) if length > limit]
    return max(beyond, default=0)


def depends_on_length(backbone: Any) -> bool:
    """Whether a model has frequencies that depend on the length of what it reads."""
    return bool(_rope_limits(backbone.config.get_text_config()))


def readable_length(backbone: Any) -> int | None:
    """How many tokens a pair may have, `None` if the configuration does not say.

    Where a model's own code turns keys in a way that is not known here, no longer ones than are right in every batch.
    """
    context = getattr(backbone.config, "max_position_embeddings", None)
    if not depends_on_length(backbone) or _rotary_modules(backbone):
        return context
    return min(limit for limit, _ in _rope_limits(backbone.config.get_text_config()))


def derived_buffers(backbone: Any) -> set[str]:
    """Names of buffers that a pass may overwrite, and that the configuration gives again."""
    return {
        f"{name}.{buffer}"
        for name, module in _rotary_modules(backbone)
        for buffer, _ in module.named_buffers()
        if not buffer.endswith(_ORIGINAL)
    }


def _rotary_modules(backbone: Any) -> list[tuple[str, torch.nn.Module]]:
    if not depends_on_length(backbone):
        return []
    return [
        (name, module)
        for name, module in backbone.named_modules()
        if hasattr(module, "rope_type") and any(buffer.endswith(_ORIGINAL) for buffer, _ in module.named_buffers())
    ]


@contextmanager
def in_regimes(backbone: Any, regimes: Sequence[int]) -> Iterator[None]:
    """Within, this thread's passes of `backbone` turn each row's keys as its regime says.

    Parameters:
        regimes: of each row (`rope_regime`), or one for all rows.
    """
    if not depends_on_length(backbone):
        yield
        return
    with _HOOKING:
        for _, module in _rotary_modules(backbone):
            if _turn not in module._forward_hooks.values():
                module.register_forward_hook(_turn, with_kwargs=True)
    before = _REGIMES.set(regimes if len(set(regimes)) > 1 else regimes[:1])
    try:
        yield
    finally:
        _REGIMES.reset(before)


def regimes_are_set() -> bool:
    """Whether the regimes of this thread's passes are already decided."""
    return _REGIMES.get() is not None


class _View:
    """A rotary embedding with other frequencies; the module itself, which threads share, stays as it is."""

    def __init__(self, module: Any, name: str, frequencies: torch.Tensor) -> None:
        self.__dict__.update({"_module": module, name: frequencies})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _turn(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Any:
    """A forward hook: cosines and sines `(rows, length, dimension)` of each row's regime."""
    regimes = _REGIMES.get()
    if regimes is None:
        return None
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    x, positions, layer_type = given["x"], given["position_ids"], given.get("layer_type")
    if len(regimes) == 1:
        return _angles(module, x, positions, layer_type, regimes[0])
    rows = torch.tensor(regimes, device=positions.device)
    positions = positions.expand(len(rows), -1)
    parts: list[torch.Tensor] = []
    for regime in sorted(set(regimes)):
        chosen = (rows == regime).nonzero().squeeze(-1)
        found = _angles(module, x, positions[chosen], layer_type, regime)
        parts = parts or [part.new_empty(len(rows), *part.shape[1:]) for part in found]
        for whole, part in zip(parts, found, strict=True):
            whole[chosen] = part
    return tuple(parts)


def _angles(module: Any, x: torch.Tensor, positions: torch.Tensor, layer_type: str | None, regime: int) -> Any:
    config = module.config
    kind = module.rope_type if layer_type is None else module.rope_type[layer_type]
    prefix = "" if layer_type is None else f"{layer_type}_"
    limit = _rope_limit(config, config.rope_parameters if layer_type is None else config.rope_parameters[layer_type])
    more = {} if layer_type is None else {"layer_type": layer_type}
    frequencies: torch.Tensor = getattr(module, f"{prefix}{_ORIGINAL}")
    if limit is not None:
        if regime > limit[0]:
            length = torch.tensor(regime, device=x.device)
            frequencies = ROPE_INIT_FUNCTIONS[kind](config, x.device, seq_len=length, **more)[0]
            # Some also scale by the largest position that they see: let it be this one, whatever is read.
            positions = torch.cat([positions, positions.new_full((len(positions), 1), regime - 1)], dim=1)
        else:
            # Only padding stands further behind.
            positions = positions.clamp(max=limit[0] - 1)
    view = _View(module, f"{prefix}inv_freq", frequencies.to(x.device))
    forward = inspect.unwrap(type(module).forward)
    with torch.no_grad():
        cos, sin = forward(view, x, positions, **more)
    return (cos[:, :-1], sin[:, :-1]) if limit is not None and regime > limit[0] else (cos, sin)

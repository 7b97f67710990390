"""A private view of a model: modules of its own that share the model's weights.

What makes scoring fast or exact (another attention kernel, linear layers that sum in one order, a last block that
works on few positions) is put into the view, which lives as long as one call. The model itself is never touched, so
nothing has to be undone, and other threads may use it meanwhile.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig


def private_view(model: torch.nn.Module, keep_mode: bool = False) -> Any:
    """A copy of a model's tree of modules around the same weights, or `None` where a copy would not compute the same.

    That is so where somebody has put another `forward` in the place of a module's own (offloading, compilation), which
    leads back to the model's own modules, and where weights are spread over processes.
    """
    parts = list(model.modules())
    if any("forward" in vars(part) or isinstance(part, torch.jit.ScriptModule) for part in parts):
        return None
    if any(type(weight).__name__ == "DTensor" for weight in model.parameters()):
        return None
    if any(type(part).__module__.startswith("torch.distributed") for part in parts):
        return None
    return _view(model, {}, {}, keep_mode)


def _view(
    module: torch.nn.Module, made: dict[int, torch.nn.Module], configs: dict[int, Any], keep_mode: bool
) -> torch.nn.Module:
    if id(module) in made:
        return made[id(module)]
    copied: Any = object.__new__(type(module))
    made[id(module)] = copied
    own = dict(vars(module))
    for name in ("_buffers", "_forward_hooks", "_forward_pre_hooks"):
        own[name] = type(own[name])(own[name])
    if isinstance(own.get("config"), PreTrainedConfig):
        own["config"] = copy.deepcopy(own["config"], configs)  # nested ones stay the same ones, by that memory
    own |= {"_compiled_call_impl": None, "training": module.training and keep_mode}
    own["_modules"] = {
        name: None if part is None else _view(part, made, configs, keep_mode) for name, part in module._modules.items()
    }
    copied.__dict__.update(own)
    return copied


def hooked(*modules: torch.nn.Module) -> bool:
    """Whether somebody watches or changes what goes in or out of one of these modules."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)

"""A private view of a model: its own module objects, which share the model's weights.

What makes scoring fast or exact (another attention kernel, linear layers with a fixed order of summation, a last block
computed at few positions) is applied to the view, which is used for one call. The model itself is never changed, so
nothing has to be undone, and other threads may use it meanwhile.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig


def private_view(model: torch.nn.Module, keep_mode: bool = False) -> Any:
    """A copy of a model's module tree with the same weights, or `None` if the copy would not compute the same.

    That is the case if a module's `forward` was replaced (offloading, compilation), since the replacement refers to
    the model's own modules, and if weights are distributed over processes.
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
        own["config"] = copy.deepcopy(own["config"], configs)  # the memo keeps nested configs identical objects
    own |= {"_compiled_call_impl": None, "training": module.training and keep_mode}
    own["_modules"] = {
        name: None if part is None else _view(part, made, configs, keep_mode) for name, part in module._modules.items()
    }
    copied.__dict__.update(own)
    return copied


def hooked(*modules: torch.nn.Module) -> bool:
    """Whether hooks observe or change the inputs or outputs of one of these modules."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)

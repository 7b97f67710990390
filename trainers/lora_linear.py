"""LoRA's linear layers as one operation each, for training on a CPU.

PEFT computes `W x + s B (A x)` as five operations, and autograd keeps each of them and runs it backwards: three passes
over a tensor of the layer's full width in either direction, which on a CPU take as long as the products themselves.
Here the small factor is scaled instead, the second product adds into the first one's result, and the frozen weight's
copy in the dtype of autocast is made once instead of at every call. The adapter stays PEFT's own: the same parameters
and the same files. `benchmarks/README.md` compares the two.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class _LoraProduct(torch.autograd.Function):
    """`x W' + b + s (x A') B'` of frozen W and b; gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        down, up = (a * scaling).to(rows.dtype), b.to(rows.dtype)
        inner = rows @ down.T
        ctx.save_for_backward(rows, weight, down, up, inner)
        ctx.scaling, ctx.dtypes = scaling, (a.dtype, b.dtype)
        return nn.functional.linear(rows, weight, bias).addmm_(inner, up.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, weight, down, up, inner = ctx.saved_tensors
        (gradient,) = gradients
        below = gradient @ up
        of_rows = (gradient @ weight).addmm_(below, down) if ctx.needs_input_grad[0] else None
        of_a = (below.T @ rows).to(ctx.dtypes[0]) * ctx.scaling
        of_b = (gradient.T @ inner).to(ctx.dtypes[1])
        return of_rows, None, None, of_a, of_b, None


def fuse_lora(model: nn.Module) -> int:
    """Makes the plain LoRA layers of a model's `nn.Linear` run as one operation, in place; returns how many.

    What a layer cannot do so (dropout, several adapters, merged ones, DoRA, another device, sharded
    weights, a frozen dtype other than the adapter's without autocast) it does as PEFT does.
    """
    from peft.tuners.lora import Linear

    layers = [layer for layer in model.modules() if type(layer) is Linear and type(layer.base_layer) is nn.Linear]
    for layer in layers:
        layer.__class__ = _fused_class(Linear)
    return len(layers)


@cache
def _fused_class(plain: Any) -> Any:
    """PEFT's layer with another `forward`. Made here, as PEFT is an extra that need not be installed."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        dtype = None if args or kwargs else _dtype_of(self, x)
        if dtype is None:
            result: Tensor = plain.forward(self, x, *args, **kwargs)
            return result
        rows = x.to(dtype).reshape(-1, x.shape[-1])
        weight, bias = _frozen(self, dtype)
        if self.disable_adapters:
            product = nn.functional.linear(rows, weight, bias)
        else:
            name = self.active_adapters[0]
            a, b = self.lora_A[name].weight, self.lora_B[name].weight
            product = _LoraProduct.apply(rows, weight, bias, a, b, self.scaling[name])
        return product.view(*x.shape[:-1], -1)

    return type("FusedLoraLinear", (plain,), {"forward": forward, "__module__": __name__})


def _dtype_of(layer: Any, x: Tensor) -> torch.dtype | None:
    """The dtype to compute in, or `None` where PEFT's own forward is needed."""
    names, weight = layer.active_adapters, layer.base_layer.weight
    if layer.merged or len(names) != 1 or names[0] not in layer.lora_A or layer.lora_variant:
        return None
    name = names[0]
    dropout, a = layer.lora_dropout[name], layer.lora_A[name].weight
    if (dropout.training and getattr(dropout, "p", 0)) or layer.lora_bias[name] or layer.fan_in_fan_out:
        return None
    plain = all(type(one) in (Tensor, nn.Parameter) and one.device.type == "cpu" for one in (weight, a))
    if not plain or x.device.type != "cpu" or weight.requires_grad or not x.is_floating_point():
        return None
    if torch.is_autocast_enabled("cpu"):
        # Autocast leaves float64 alone.
        return torch.get_autocast_dtype("cpu") if torch.float64 not in (x.dtype, weight.dtype) else None
    return x.dtype if x.dtype == weight.dtype == a.dtype else None


def _frozen(layer: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the base layer in that dtype; a copy is kept until they change."""
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    if weight.dtype == dtype and (bias is None or bias.dtype == dtype):
        return weight, bias
    state = [(one.data_ptr(), one._version, dtype) for one in (weight, bias) if one is not None]
    kept = layer.__dict__.get("_frozen_copy")
    if kept is None or kept[0] != state:
        # An inference tensor could not be used when training goes on after an evaluation.
        with torch.inference_mode(False), torch.no_grad():
            kept = (state, weight.to(dtype), None if bias is None else bias.to(dtype))
        # Not an attribute that `nn.Module` knows: it is neither saved nor moved.
        layer.__dict__["_frozen_copy"] = kept
    return kept[1], kept[2]

"""int8 products on a CPU (oneDNN's): float32 in, float32 out, quantized in between.

Weights have a scale per output channel, activations one per token. Weights have 7 bits: without VNNI, pairs of
products are accumulated in 16 bits, which products of 8 by 8 bits overflow.
"""

from __future__ import annotations

from typing import Any

import torch


WEIGHT_LEVELS = 63
# Activations are -127 to 127 times 1/127 of a token's largest value, as unsigned bytes with zero point 128.
ACTIVATION_LEVELS, ACTIVATION_ZERO = 127, 128


def round_tokens(rows: torch.Tensor, own: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token as bytes `(tokens, in)` and its scale `(tokens, 1)`, 1/127 of its largest value.

    With `own`, `rows` is not used afterwards and is overwritten.
    """
    # Not abs().amax(): two reductions are faster than one more copy of the input.
    largest = torch.maximum(rows.amax(-1, keepdim=True), rows.amin(-1, keepdim=True).neg_())
    scale = largest.clamp_min_(torch.finfo(torch.float32).tiny * 256).div_(ACTIVATION_LEVELS)
    # Through signed bytes, since torch converts to them many times faster than to unsigned ones; flipping the highest
    # bit adds 128.
    levels = torch.div(rows, scale, out=rows if own else None).round_()
    return levels.to(torch.int8).view(torch.uint8).bitwise_xor_(ACTIVATION_ZERO), scale


def norm_factor(rows: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The factor RMSNorm applies to each token, `(tokens, 1)`. Bytes do not depend on it; it goes into the scale."""
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return lengths.square_().div_(rows.shape[-1]).add_(epsilon).rsqrt_()


class RoundedInput:
    """A quantized input, shared by layers with the same input; normalized first if `epsilon` is given."""

    def __init__(self, epsilon: float | None = None) -> None:
        self.epsilon = epsilon
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def of(self, x: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes and scales of `round_tokens`, cached for the next layer if `keep`."""
        found = self._last  # read once: another thread may replace it at any time
        if found is None or found[0] is not x:
            rows = x.reshape(-1, x.shape[-1])
            rounded, scale = round_tokens(rows)
            found = x, rounded, scale if self.epsilon is None else scale.mul_(norm_factor(rows, self.epsilon))
        self._last = found if keep else None
        return found[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "_last": None}


class Int8Linear(torch.nn.Module):
    """A linear layer whose product is computed in int8, with float32 input and output.

    Parameters:
        weight: `(out, in)`, float.
        bias: `(out,)` or none; added in float32.
        source: shared by layers with the same input; by default this layer's own.
        last: whether this is the last layer to use the input.
    """

    levels: torch.Tensor
    scale: torch.Tensor
    zeros: torch.Tensor
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        source: RoundedInput | None = None,
        last: bool = True,
    ) -> None:
        super().__init__()
        self.out_features = len(weight)
        self._source, self._keeps = source or RoundedInput(), not last
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS
        self.register_buffer("levels", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.float32))
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int64))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))
        self._packed: torch.Tensor | None = None

    def _pack(self) -> torch.Tensor:
        """The weights in the product's layout; packed on first use, and again in a copy."""
        if self._packed is None:
            self._packed = torch.ops.onednn.qlinear_prepack(self.levels, None)
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def product(self, rounded: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """`(tokens, out)` from bytes and scales; without scales, the caller applies them, and there is no bias."""
        # Activation scale 1: each token's scale is applied afterwards.
        options: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
        found = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, ACTIVATION_ZERO, self._pack(), self.scale, self.zeros, *options
        )
        if scale is not None:
            found.mul_(scale)
        return found if self.bias is None else found.add_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(…, in)` to `(…, out)`."""
        return self.product(*self._source.of(x, self._keeps)).unflatten(0, x.shape[:-1])

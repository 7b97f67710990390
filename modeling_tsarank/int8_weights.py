"""int8 weights on a CPU: faster than float32 where there is no bfloat16, at a cost that is measured in `benchmarks/`.

Every linear layer becomes an int8 product (oneDNN's): weights are rounded before, with a scale for each output
channel; activations on the fly, with a scale for each token. Two choices keep the rounding small:

- The hidden states are turned by an orthogonal matrix. Where all that touches them is linear layers and RMSNorm, the
  weights can be turned along so that nothing else changes, and the few channels that are far larger than all others,
  which would take the whole range of a token's scale, are spread over all of them (Ashkboos et al., SliceGPT, 2024;
  QuaRot, 2024). The value heads are turned likewise; what the feed-forward layer reads last lies behind a product of
  two others, so it is turned where it is computed, in blocks of 32 channels.
- Weights have 7 bits. Without VNNI, pairs of products are added up in 16 bits, which 8 bits by 8 bits overflow.

A batch changes float32 sums in their last digit, and there the rounding to bytes may go the other way; through thirty
layers that grows to a part of the rounding itself. So scores hang a little on the batch, unlike in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.activations import SiLUActivation

from .ranking_errors import InputError, ModelError


# Linear layers between RMSNorms that multiply by a plain weight; others (Gemma's 1 + weight, norms behind the
# layers, scaled residuals) would have to be turned in other ways.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
WEIGHT_LEVELS = 63
# Activations are -127 to 127 times a 127th of a token's largest value, as unsigned bytes with 128 standing for zero.
ACTIVATION_LEVELS, ACTIVATION_ZERO = 127, 128

# Channels of the feed-forward layer's inside that are turned together: few, so that turning costs little.
FEED_TURN = 32

# Layers of a block that read the same input, in the order in which they do.
SAME_INPUT = ("q_proj", "k_proj", "v_proj")


def round_tokens(rows: torch.Tensor, own: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token as bytes `(tokens, in)` and its scale `(tokens, 1)`, a 127th of its largest value.

    With `own`, nobody reads `rows` afterwards, and their memory is worked in.
    """
    # Not abs().amax(): two reductions take less than one more copy of the input.
    largest = torch.maximum(rows.amax(-1, keepdim=True), rows.amin(-1, keepdim=True).neg_())
    scale = largest.clamp_min_(torch.finfo(torch.float32).tiny * 256).div_(ACTIVATION_LEVELS)
    # Through signed bytes, to which torch converts many times as fast as to unsigned ones; flipping the highest bit
    # adds 128.
    levels = torch.div(rows, scale, out=rows if own else None).round_()
    return levels.to(torch.int8).view(torch.uint8).bitwise_xor_(ACTIVATION_ZERO), scale


def norm_factor(rows: torch.Tensor, epsilon: float) -> torch.Tensor:
    """What RMSNorm multiplies each token by, `(tokens, 1)`. No byte depends on it, so it can go into the scale."""
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return lengths.square_().div_(rows.shape[-1]).add_(epsilon).rsqrt_()


class RoundedInput:
    """An input in bytes, for layers that read the same one in turn; normed on the way if `epsilon` is given."""

    def __init__(self, epsilon: float | None = None) -> None:
        self.epsilon = epsilon
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def of(self, x: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes and scales as `round_tokens` gives them, remembered for the next layer if `keep`."""
        found = self._last  # looked at once: another thread may put its own in this place at any time
        if found is None or found[0] is not x:
            rows = x.reshape(-1, x.shape[-1])
            rounded, scale = round_tokens(rows)
            found = x, rounded, scale if self.epsilon is None else scale.mul_(norm_factor(rows, self.epsilon))
        self._last = found if keep else None
        return found[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "_last": None}


class Int8Linear(torch.nn.Module):
    """A linear layer whose product is computed in int8, its input and output float32.

    Parameters:
        weight: `(out, in)`, float.
        bias: `(out,)` or none; added in float32.
        source: shared by layers that read the same input; by default this layer's own.
        last: whether no other layer reads the input after this one.
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
        self._source, self._keeps = source or RoundedInput(), not last
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / WEIGHT_LEVELS
        self.register_buffer("levels", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.float32))
        self.register_buffer("zeros", torch.zeros(len(scale), dtype=torch.int64))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))
        self._packed: torch.Tensor | None = None

    def _pack(self) -> torch.Tensor:
        """The weights in the layout of the product; made when first needed, and anew in a copy."""
        if self._packed is None:
            self._packed = torch.ops.onednn.qlinear_prepack(self.levels, None)
        return self._packed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def product(self, rounded: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """`(tokens, out)` from bytes and scales; with scales of `None`, the caller multiplies, and has no bias."""
        # Activations' scale 1: that of each token comes behind.
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


class GatedFeedForward(torch.nn.Module):
    """down(act(gate(norm(x))) * up(norm(x))) with as few passes over memory as it takes.

    The norm's factor goes into the scales of the input, and those of `up` into the scales of what `down` reads, where
    they change no byte. What `down` reads is turned in blocks of channels, its weights along with it.

    Parameters:
        plain: the feed-forward layer of one of `ARCHITECTURES`.
        epsilon: of the RMSNorm before it, whose weight has gone into `plain`.
    """

    turn: torch.Tensor

    def __init__(self, plain: Any, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        down = plain.down_proj
        turn = _orthogonal(math.gcd(down.in_features, FEED_TURN))
        turned = (down.weight.detach().double().unflatten(1, (-1, len(turn))) @ turn).flatten(1)
        self.register_buffer("turn", turn.to(torch.float32))
        self.gate_proj, self.up_proj = (
            Int8Linear(layer.weight.detach(), layer.bias) for layer in (plain.gate_proj, plain.up_proj)
        )
        self.down_proj = Int8Linear(turned.to(torch.float32), down.bias)
        in_place = isinstance(plain.act_fn, torch.nn.SiLU | SiLUActivation)
        self.act_fn = torch.nn.SiLU(inplace=True) if in_place else plain.act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(…, size)` to the same shape."""
        rows = x.reshape(-1, x.shape[-1])
        rounded, scale = round_tokens(rows)
        scale.mul_(norm_factor(rows, self.epsilon))
        late = self.up_proj.bias is None
        inner = self.act_fn(self.gate_proj.product(rounded, scale))
        inner = inner.mul_(self.up_proj.product(rounded, None if late else scale))
        inner = (inner.unflatten(-1, (-1, len(self.turn))) @ self.turn).flatten(-2)
        rounded, inner_scale = round_tokens(inner, own=True)
        return self.down_proj.product(rounded, inner_scale.mul_(scale) if late else inner_scale).view(x.shape)


def _orthogonal(size: int) -> torch.Tensor:
    """A random orthogonal matrix, float64, the same in every call."""
    generator = torch.Generator().manual_seed(size)
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]


def _set(layer: torch.nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    layer.weight = torch.nn.Parameter(weight.to(torch.float32), requires_grad=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.to(torch.float32), requires_grad=False)


@torch.no_grad()
def turn_hidden_states(backbone: Any) -> None:
    """Turns the hidden states and the value heads of a causal language model, in place; its outputs stay the same.

    The norms' weights move into the layers behind them, so tied embeddings are tied no longer.

    Raises:
        ModelError: an architecture other than `ARCHITECTURES`.
    """
    check_architecture(backbone)
    inner, config = backbone.model, backbone.config
    turn = _orthogonal(config.hidden_size)
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turn_head = _orthogonal(heads)

    def read(layer: torch.nn.Linear, norm: Any) -> torch.Tensor:
        """Weights of a layer that reads normed hidden states."""
        return layer.weight.double() * norm.weight.double() @ turn

    def write(layer: torch.nn.Linear, weight: torch.Tensor) -> None:
        """A layer whose output is added to the hidden states."""
        _set(layer, turn.T @ weight, None if layer.bias is None else turn.T @ layer.bias.double())

    embedding = inner.embed_tokens.weight.double()
    head = backbone.lm_head
    tied = head.weight is inner.embed_tokens.weight
    _set(head, (embedding if tied else head.weight.double()) * inner.norm.weight.double() @ turn)
    inner.embed_tokens.weight = torch.nn.Parameter((embedding @ turn).to(torch.float32), requires_grad=False)
    for block in inner.layers:
        attention, feed = block.self_attn, block.mlp
        for layer in (attention.q_proj, attention.k_proj):
            _set(layer, read(layer, block.input_layernorm))
        value = read(attention.v_proj, block.input_layernorm).unflatten(0, (-1, heads))
        bias = attention.v_proj.bias
        _set(
            attention.v_proj,
            (turn_head.T @ value).flatten(0, 1),
            None if bias is None else (bias.double().unflatten(0, (-1, heads)) @ turn_head).flatten(),
        )
        output = attention.o_proj.weight.double()
        write(attention.o_proj, (output.unflatten(1, (-1, heads)) @ turn_head).flatten(1))
        for layer in (feed.gate_proj, feed.up_proj):
            _set(layer, read(layer, block.post_attention_layernorm))
        write(feed.down_proj, feed.down_proj.weight.double())
        block.input_layernorm.weight.fill_(1)
        block.post_attention_layernorm.weight.fill_(1)
    inner.norm.weight.fill_(1)
    backbone.config.tie_word_embeddings = False


def check_architecture(backbone: Any) -> None:
    """Raises `ModelError` for a backbone that cannot have int8 weights."""
    kind = backbone.config.model_type
    if kind not in ARCHITECTURES or not hasattr(backbone, "lm_head"):
        raise ModelError(
            f"int8 weights are for causal language models of {', '.join(ARCHITECTURES)}, not for {kind}; use another "
            f"dtype"
        )


def use_int8_weights(ranker: Any) -> Any:
    """Gives a ranker on the CPU int8 weights, in place; it can no longer be trained, saved or moved.

    Raises:
        InputError: the ranker is not on the CPU, not float32, or this torch has no int8 products.
        ModelError: an architecture other than `ARCHITECTURES`.
    """
    backbone = ranker.backbone
    check_architecture(backbone)
    if ranker.device.type != "cpu" or ranker.dtype != torch.float32:
        raise InputError(f"int8 weights are made of float32 on a CPU, not of {ranker.dtype} on {ranker.device.type}")
    there = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))
    if not there or "x86" not in torch.backends.quantized.supported_engines:
        raise InputError("this torch has no int8 products for this processor; use another dtype")
    turn_hidden_states(backbone)
    with torch.no_grad():
        for block in backbone.model.layers:
            attention = block.self_attn
            # What the norms do is done where their output is rounded.
            source = RoundedInput(block.input_layernorm.variance_epsilon)
            for name in SAME_INPUT:
                layer = getattr(attention, name)
                setattr(attention, name, Int8Linear(layer.weight, layer.bias, source, name == SAME_INPUT[-1]))
            attention.o_proj = Int8Linear(attention.o_proj.weight, attention.o_proj.bias)
            block.mlp = GatedFeedForward(block.mlp, block.post_attention_layernorm.variance_epsilon)
            block.input_layernorm = block.post_attention_layernorm = torch.nn.Identity()
        # A true/false ranker reads single rows of its output head, which stays as it is.
        if ranker.options.family == "query_likelihood":
            backbone.lm_head = Int8Linear(backbone.lm_head.weight, backbone.lm_head.bias)
    ranker.eval()
    ranker.number_format = "int8"
    return ranker

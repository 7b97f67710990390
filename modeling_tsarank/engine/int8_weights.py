"""int8 weights on a CPU: faster than float32 where bfloat16 is missing; `benchmarks/` measures the loss of quality.

Every linear layer becomes an int8 product (oneDNN's): weights are quantized ahead of time, with a scale per output
channel; activations on the fly, with a scale per token. Two choices keep the quantization error small:

- The hidden states are rotated by an orthogonal matrix. Where only linear layers and RMSNorm use them, the rotation
  can be folded into the weights and nothing else changes, and the few outlier channels, which would take up the whole
  range of a token's scale, are spread over all channels (Ashkboos et al., SliceGPT, 2024; QuaRot, 2024). The value
  heads are rotated likewise. The input of the feed-forward layer's down projection is a product of two others, so it
  is rotated at run time, in blocks of 32 channels.
- Weights have 7 bits, see `int8_linear`.

The batch changes the last digit of float32 sums, which can flip a rounding to bytes; over thirty layers that grows to
a fraction of the quantization error itself. So scores depend a little on the batch, unlike in float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.activations import SiLUActivation

from ..ranking_errors import InputError, ModelError
from .int8_attention import SAME_INPUT, JointAttention, can_be_joint
from .int8_linear import Int8Linear, RoundedInput, norm_factor, round_tokens


# Linear layers between RMSNorms with a plain weight; others (Gemma's 1 + weight, post-norms, scaled residuals) would
# have to be rotated in other ways.
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
# Block size of the rotation inside the feed-forward layer: small, so that it costs little.
FEED_TURN = 32


class GatedFeedForward(torch.nn.Module):
    """down(act(gate(norm(x))) * up(norm(x))) with as few passes over memory as possible.

    The norm's factor goes into the scales of the input, and the scales of `up` into those of the input of `down`,
    where they change no byte. The input of `down` is rotated in blocks of channels, and its weights accordingly.

    Parameters:
        plain: the feed-forward layer of one of `ARCHITECTURES`.
        epsilon: of the RMSNorm before it, whose weight is already folded into `plain`.
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
    """Rotates the hidden states and the value heads of a causal language model, in place; its outputs stay the same.

    The norms' weights are folded into the layers after them, so tied embeddings are no longer tied.

    Raises:
        ModelError: an architecture other than `ARCHITECTURES`.
    """
    check_architecture(backbone)
    inner, config = backbone.model, backbone.config
    turn = _orthogonal(config.hidden_size)
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turn_head = _orthogonal(heads)

    def read(layer: torch.nn.Linear, norm: Any) -> torch.Tensor:
        """Rotates a layer whose input is normalized hidden states."""
        return layer.weight.double() * norm.weight.double() @ turn

    def write(layer: torch.nn.Linear, weight: torch.Tensor) -> None:
        """Rotates a layer whose output is added to the hidden states."""
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
    """Raises `ModelError` for a backbone without support for int8 weights."""
    kind = backbone.config.model_type
    if kind not in ARCHITECTURES or not hasattr(backbone, "lm_head"):
        raise ModelError(f"int8 weights support {', '.join(ARCHITECTURES)}, not {kind}; use another dtype")


def _round_attention(attention: Any, epsilon: float) -> None:
    """Replaces each linear layer of an attention by an int8 layer."""
    source = RoundedInput(epsilon)
    for name in SAME_INPUT:
        layer = getattr(attention, name)
        setattr(attention, name, Int8Linear(layer.weight, layer.bias, source, name == SAME_INPUT[-1]))
    attention.o_proj = Int8Linear(attention.o_proj.weight, attention.o_proj.bias)


def use_int8_weights(ranker: Any) -> Any:
    """Quantizes a ranker on the CPU to int8, in place; it can no longer be trained, saved or moved.

    Raises:
        InputError: the ranker is not on the CPU, not float32, or this torch has no int8 products.
        ModelError: an architecture other than `ARCHITECTURES`.
    """
    backbone = ranker.backbone
    check_architecture(backbone)
    if ranker.device.type != "cpu" or ranker.dtype != torch.float32:
        raise InputError(f"int8 weights need a float32 model on the CPU, got {ranker.dtype} on {ranker.device.type}")
    there = all(hasattr(torch.ops.onednn, name) for name in ("qlinear_prepack", "qlinear_pointwise"))
    if not there or "x86" not in torch.backends.quantized.supported_engines:
        raise InputError("this torch build has no int8 products for this processor; use another dtype")
    turn_hidden_states(backbone)
    with torch.no_grad():
        for block in backbone.model.layers:
            # The norms are applied where their output is quantized.
            epsilon = block.input_layernorm.variance_epsilon
            # In the last block, queries are needed at fewer positions than keys and values.
            last = block is backbone.model.layers[-1]
            if not last and can_be_joint(block.self_attn, backbone.model.rotary_emb):
                block.self_attn = JointAttention(block.self_attn, epsilon)
            else:
                _round_attention(block.self_attn, epsilon)
            block.mlp = GatedFeedForward(block.mlp, block.post_attention_layernorm.variance_epsilon)
            block.input_layernorm = block.post_attention_layernorm = torch.nn.Identity()
        # Other families use single rows of the output head, which is not quantized.
        if ranker.scores_query_tokens:
            backbone.lm_head = Int8Linear(backbone.lm_head.weight, backbone.lm_head.bias)
    ranker.eval()
    ranker.number_format = "int8"
    return ranker

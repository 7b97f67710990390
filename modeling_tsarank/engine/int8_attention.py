"""Attention with int8 weights: queries, keys and values come from one product and are rotated in place.

transformers computes three products and rotates through several copies; there, the two channels that are rotated
together are half a head apart. Here they are adjacent, so that one complex product rotates them in place.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from .int8_linear import Int8Linear, RoundedInput


# The layers that are joined, in the order of their outputs.
SAME_INPUT = ("q_proj", "k_proj", "v_proj")


def can_be_joint(attention: Any, rotary: Any) -> bool:
    """Whether `JointAttention` computes what this attention does.

    Parameters:
        attention: of an architecture of `int8_weights.ARCHITECTURES`.
        rotary: the model's rotary embedding, whose angles must cover every channel of a head.
    """
    normed = hasattr(attention, "q_norm") or hasattr(attention, "k_norm")
    return not normed and 2 * rotary.inv_freq.numel() == attention.head_dim


def pairs_side_by_side(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """`(heads · head_dim, …)` with channel j of each head next to channel j + head_dim / 2, its rotation partner.

    Query-key products stay the same when both are permuted so.
    """
    order = torch.arange(head_dim).view(2, -1).T.flatten()
    return weight.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)


class JointAttention(torch.nn.Module):
    """Replaces the attention of a Llama, Mistral or Qwen2 block, including the norm before it.

    Parameters:
        plain: the replaced attention, with the norm's weight folded into its layers.
        epsilon: of that RMSNorm.
    """

    def __init__(self, plain: Any, epsilon: float) -> None:
        super().__init__()
        self.config, self.layer_idx, self.head_dim = plain.config, plain.layer_idx, plain.head_dim
        self.scaling, self.is_causal = plain.scaling, plain.is_causal
        self.num_key_value_groups = plain.num_key_value_groups
        # Arguments that architectures other than Llama pass to the attention function.
        self._also: dict[str, Any] = {}
        if plain.config.model_type != "llama":
            window = getattr(plain.config, "sliding_window", None)
            self._also["sliding_window"] = getattr(plain, "sliding_window", window)
        layers = [getattr(plain, name) for name in SAME_INPUT]
        self._sizes = [layer.out_features for layer in layers]
        bias = None if layers[0].bias is None else self._joined([layer.bias for layer in layers])
        self.joint = Int8Linear(self._joined([layer.weight for layer in layers]), bias, RoundedInput(epsilon))
        self.o_proj = Int8Linear(plain.o_proj.weight, plain.o_proj.bias)

    def _joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        *rotated, value = parts
        return torch.cat([*(pairs_side_by_side(part, self.head_dim) for part in rotated), value])

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Like the replaced attention, `(batch, tokens, size)` to the same shape."""
        joint = self.joint(hidden_states)
        self._rotate(joint, *position_embeddings)
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in joint.split(self._sizes, -1)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **self._also, **kwargs
        )
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights

    def _rotate(self, joint: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Rotates queries and keys in `joint`, `(batch, tokens, all three)`, by `(batch or 1, tokens, head_dim)`."""
        half = self.head_dim // 2
        turn = torch.complex(cos[..., :half], sin[..., :half]).unsqueeze(-2)
        both = joint[..., : sum(self._sizes[:2])].unflatten(-1, (-1, half, 2))
        torch.view_as_complex(both).mul_(turn)

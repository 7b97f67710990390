"""Which attention a ranker can use: causal, and with masks that let pairs share what they begin with."""

from __future__ import annotations

from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from .ranking_errors import ModelError


def refuse_flex(*names: Any) -> None:
    """Raises `ModelError` if one of these implementations of attention is `flex_attention`.

    It takes masks of its own: pairs behind a shared document would see other positions than alone.
    """
    for name in names:
        if "flex_attention" in str(name):
            raise ModelError("flex_attention cannot be used for ranking; choose sdpa, eager or flash_attention_2")


def check_attention(backbone: Any) -> None:
    """`refuse_flex` for what a model would use, whoever has set it and whenever."""
    config = backbone.config
    refuse_flex(config._attn_implementation, config.get_text_config()._attn_implementation)


def refuse_encoder(backbone: Any) -> None:
    """Raises `ModelError` for a decoder's place taken by an encoder, such as a masked language model."""
    config = backbone.config.get_text_config()
    sees_ahead = (
        getattr(config, "is_causal", None) is False
        or getattr(config, "use_bidirectional_attention", None) is True
        or (
            config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
            and not getattr(config, "is_decoder", False)
            and not getattr(config, "causal", False)  # XLM's word for it
        )
        or (
            getattr(config, "is_decoder", None) is False  # GPT-NeoX says so too
            and any(getattr(module, "is_causal", None) is False for module in backbone.modules())
        )
    )
    if sees_ahead and not backbone.config.is_encoder_decoder:
        raise ModelError(
            f"this {config.model_type} model is an encoder, in which every token sees those behind it; a ranker is "
            "made of a decoder-only model or an encoder-decoder"
        )


def attention_choice(auto_class: Any, config: Any, requested: str | None) -> dict[str, str]:
    """The wrapper's attention choice for the backbone, where the backbone supports it."""
    if requested in (None, "eager"):
        return {} if requested is None else {"attn_implementation": "eager"}
    model_class = auto_class._model_mapping.get(type(config), None)
    model_class = model_class[0] if isinstance(model_class, tuple | list) else model_class
    if requested == "sdpa" and not getattr(model_class, "_supports_sdpa", False):
        return {}
    return {"attn_implementation": requested}

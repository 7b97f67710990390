"""Tiny random models of every text architecture of transformers, and how the ranking families score with each."""

from __future__ import annotations

import copy
import re
import tempfile
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from modeling_tsarank import MemoryStore, ModelError, TSARankModel, TwolarModel, load_ranker


DECODERS = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
ENCODER_DECODERS = tuple(sorted(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES))
# What the sizes below do not make smaller than this has towers for images or sound.
LARGEST = 20_000_000
# The first one reads decoder-only models alone.
FAMILIES = ("query_likelihood", "true_false_logits")
TOLERANCE = 1e-4


def _values(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


_SIZES: dict[str, int] = {
    **_values(420, "vocab_size vocab_size_per_layer_input"),
    **_values(32, "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim lru_width"),
    **_values(2, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers"),
    **_values(2, "num_decoder_layers num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token"),
    **_values(2, "moe_k moe_topk n_groups linear_num_key_heads linear_num_value_heads"),
    **_values(4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    **_values(4, "num_encoder_attention_heads num_decoder_attention_heads num_experts num_local_experts"),
    **_values(4, "n_routed_experts moe_num_experts mamba_n_heads mamba_num_heads time_step_rank conv_kernel"),
    **_values(8, "head_dim d_kv qk_rope_head_dim qk_nope_head_dim v_head_dim state_size mamba_d_state rotary_dim"),
    **_values(8, "linear_key_head_dim linear_value_head_dim linear_head_dim hidden_size_per_layer_input"),
    **_values(4, "linear_num_heads"),
    **_values(48, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff n_inner ffn_hidden_size"),
    **_values(16, "moe_intermediate_size shared_expert_intermediate_size q_lora_rank kv_lora_rank mamba_d_head"),
    **_values(16, "mamba_head_dim chunk_size mamba_chunk_size"),
    **_values(600, "max_position_embeddings n_positions max_seq_len max_sequence_length"),
    **_values(1, "n_group topk_group mamba_n_groups bos_token_id"),
    **_values(2, "eos_token_id"),
    **_values(3, "pad_token_id decoder_start_token_id"),
    "attention_window_size": 64,
}
_INNER = ("text_config", "decoder", "encoder", "vision_config", "audio_config")
# What an inner configuration works out from its sizes, as these were.
_DERIVED = ("per_layer_config", "activation_sparsity_pattern")
_BAD_NAME = re.compile(r"'(\w+)' (?:of|is a per-layer)")
# What a few configurations need besides.
_SPECIAL: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "reformer": {"is_decoder": True},
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16},
}
DOCUMENTS = [
    "bees dance",
    "the harbour pilot climbs aboard every ship",
    " ".join(["yeast turns sugar into gas"] * 3),
    " ".join(["a glacier carries stones for many miles"] * 6),
]
QUERIES = ("why does bread rise", "how do bees talk", "ships")
PAIRS = [(query, document) for document in DOCUMENTS for query in QUERIES] + [("bread", "glaciers carry stones")]


def _sizes(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in _SIZES.items():
        attribute = getattr(type(config), name, None)
        if isinstance(attribute, property) and attribute.fset is None:
            continue
        if name in config.to_dict() or name in getattr(config, "attribute_map", {}):
            found[name] = value
    if "kv_lora_rank" in found:  # latent attention has no groups of heads
        found |= {name: 4 for name in ("num_key_value_heads", "num_kv_heads") if name in found}
    for name in ("layer_types", "mlp_layer_types"):
        kinds = list(dict.fromkeys(config.to_dict().get(name) or ()))
        if kinds:
            found[name] = (kinds * 2)[:2]
    return found


def tiny_config(model_type: str) -> Any:
    """The configuration of a small model of this type. Raises whatever transformers raises if there is none."""
    cls = CONFIG_MAPPING[model_type]
    base = cls()
    values = {**_sizes(base), **_SPECIAL.get(model_type, {})}
    for name in _INNER:
        inner = getattr(base, name, None)
        if hasattr(inner, "to_dict"):
            values[name] = {**inner.to_dict(), **_sizes(inner), **_SPECIAL.get(inner.model_type, {})}
            values[name] = {key: value for key, value in values[name].items() if key not in _DERIVED}
    while True:
        try:
            return cls(**values)
        except Exception as error:
            bad = _BAD_NAME.search(str(error))
            if bad is None or values.pop(bad[1], None) is None:
                raise


def tiny_backbone(model_type: str, encoder_decoder: bool = False) -> Any:
    """A random model in float32; `ValueError` if transformers makes none that is small."""
    auto: Any = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    try:
        config = tiny_config(model_type)
        if getattr(config, "is_encoder_decoder", False):
            config.decoder_start_token_id = 3
        with torch.device("meta"):
            size = sum(weight.numel() for weight in auto.from_config(copy.deepcopy(config)).parameters())
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:120]}") from error
    if size > LARGEST:
        raise ValueError(f"{size:,} weights")
    torch.manual_seed(0)
    backbone = auto.from_config(config, dtype=torch.float32).eval()
    made_again = backbone._keys_to_ignore_on_save or ()
    for name, weight in backbone.named_parameters():
        if weight.ndim == 2 and "conv" not in name and name not in made_again:
            torch.nn.init.normal_(weight, std=0.25)
    for name, buffer in backbone.named_buffers():
        if name == "final_logits_bias":  # zeros, unless a checkpoint has others
            torch.nn.init.normal_(buffer)
    for module in backbone.modules():
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0  # as some architectures make it when they are loaded
    return backbone


def ranker(backbone: Any, family: str, tokenizer: Any) -> Any:
    """A ranker of one of the two families; the template of the true/false one lets documents be cached."""
    limits = {"max_length": 90, "max_query_length": 40}
    if family == "query_likelihood":
        return TSARankModel.from_backbone(backbone, tokenizer=tokenizer, **limits)
    template = "Document: {document} Query: {query} Relevant:"
    return TwolarModel.from_backbone(backbone, tokenizer=tokenizer, template=template, **limits)


@torch.no_grad()
def plain_scores(ranker: Any) -> list[float]:
    """Scores of `PAIRS` from the equations, one whole sequence at a time through transformers alone."""
    backbone, expected = ranker.backbone, []
    for pair in ranker.encoder.pairs(PAIRS):
        if isinstance(ranker, TSARankModel):
            logits = backbone(torch.tensor([[*pair.prompt, *pair.query]]), use_cache=False).logits[0]
            chosen = logits[len(pair.prompt) - 1 : -1].float().log_softmax(-1)
            expected.append(chosen.gather(-1, torch.tensor(pair.query)[:, None]).mean().item())
            continue
        inputs = {"input_ids": torch.tensor([pair.prompt])}
        if backbone.config.is_encoder_decoder:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["decoder_input_ids"] = torch.tensor([[backbone.config.decoder_start_token_id]])
        logits = backbone(**inputs, use_cache=False).logits[0, -1, ranker.answer_ids()]
        expected.append((logits[0] - logits[1]).item())
    return expected


def check(ranker: Any) -> str:
    """Scores `PAIRS` in every way: alone, in batches, sharing prefixes, cached, saved and loaded.

    Returns:
        "cached", "not cached: reason" or "not tried: reason".

    Raises `AssertionError` where two ways differ by more than `TOLERANCE`.
    """
    try:
        expected = plain_scores(ranker)
    except Exception as error:  # models of sound or images
        return f"not tried: transformers itself reads no text with it: {error}".replace("\n", " ")

    def same(scores: Any, how: str) -> None:
        difference = np.abs(np.asarray(scores) - expected).max()
        assert difference <= TOLERANCE, f"{how}: off by {difference:.2g}"

    same([ranker.predict(pair) for pair in PAIRS], "alone")
    same(ranker.predict(PAIRS), "in a batch")
    same(ranker.predict(PAIRS, batch_tokens=64), "in small batches")
    with tempfile.TemporaryDirectory() as folder:
        ranker.save_pretrained(folder)
        same(load_ranker(folder, dtype="float32").predict(PAIRS), "saved and loaded")
    try:
        ranker.index(DOCUMENTS[:2], MemoryStore(dtype="float32"))
    except ModelError as error:
        return f"not cached: {error}"
    same(ranker.predict(PAIRS), "from cached states")
    return "cached"


def outcome(model_type: str, encoder_decoder: bool, tokenizers: tuple[Any, Any]) -> dict[str, str]:
    """What each family makes of an architecture: "cached", "not cached: …", "refused: …", or "WRONG: …".

    Args:
        model_type: as in a configuration.
        encoder_decoder: by which of the two auto classes it is made.
        tokenizers: for decoder-only models, and for encoder-decoders.

    Raises `ValueError` where no small model can be made.
    """
    found: dict[str, str] = {}
    for family in FAMILIES[encoder_decoder:]:
        backbone = tiny_backbone(model_type, encoder_decoder)
        try:
            found[family] = check(ranker(backbone, family, tokenizers[bool(backbone.config.is_encoder_decoder)]))
        except ModelError as error:
            found[family] = f"refused: {error}"
        except Exception as error:
            found[family] = f"WRONG: {type(error).__name__}: {str(error)[:160]}"
    return found

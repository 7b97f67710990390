"""Recorded attention against transformers' own, and keys moved to other positions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling_tsarank.engine.attention import AttentionReader, KeyRotation
from modeling_tsarank.ranking_errors import ModelError


def _model(kind: str, **options: Any) -> Any:
    from transformers import AutoConfig

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 90}
    sizes |= {"max_position_embeddings": 256, "intermediate_size": 48, "initializer_range": 0.3, **options}
    config = AutoConfig.for_model(kind, **sizes)
    return AutoModelForCausalLM.from_config(config).eval()


KINDS = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": {},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
}


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_transformers_own(kind: str) -> None:
    model = _model(kind, **KINDS[kind])
    ids = list(range(7, 40))
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    plain.load_state_dict(model.state_dict())
    output = plain(torch.tensor([ids]), output_attentions=True)
    with torch.inference_mode():
        reader = AttentionReader(model)
        cache = reader.states(ids[:25])
        found, logits = reader.read(ids[25:], cache, [0, 3, 7])
        again, _ = reader.read(ids[25:], cache, [0, 3, 7])
    expected = torch.stack([layer[0].mean(0)[[25, 28, 32]] for layer in output.attentions])
    assert (found - expected).abs().max() < 1e-6
    assert (logits - output.logits[0, 25:]).abs().max() < 1e-4
    assert torch.equal(found, again)
    assert model.config._attn_implementation == "sdpa"
    with torch.inference_mode():
        few = AttentionReader(model, 2)
        found, _ = few.read(ids[25:], few.states(ids[:25]), [0, 3, 7])
    assert (found - expected[:2]).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox"])
def test_keys_move(kind: str) -> None:
    model = _model(kind, **KINDS[kind])
    ids = list(range(7, 40))
    with torch.inference_mode():
        reader, rotation = AttentionReader(model), KeyRotation(model)
        cache = reader.states(ids[:25])
        expected, logits = reader.read(ids[25:], cache, [0, 3, 7])
        for i, (keys, values) in enumerate(rotation.turn([(x.keys, x.values) for x in cache.layers], 50)):
            cache.layers[i].keys, cache.layers[i].values = keys, values
        found, moved = reader.read(ids[25:], cache, [0, 3, 7], start=75)
        wrong, _ = reader.read(ids[25:], cache, [0, 3, 7], start=25)
    assert (found - expected).abs().max() < 1e-5
    assert (moved - logits).abs().max() < 1e-4
    assert (wrong - expected).abs().max() > 1e-3


def test_hidden_keys_get_no_attention() -> None:
    model = _model("llama", num_key_value_heads=2)
    hidden = torch.arange(25) % 3 == 0
    with torch.inference_mode():
        reader = AttentionReader(model)
        cache = reader.states(range(5, 30))
        found, _ = reader.read([40, 41, 42], cache, [0, 1, 2], hidden=hidden)
        seen, _ = reader.read([40, 41, 42], cache, [0, 1, 2], hidden=torch.zeros(25, dtype=torch.bool))
        plain, _ = reader.read([40, 41, 42], cache, [0, 1, 2])
    assert found[..., :25][..., hidden].abs().max() == 0
    assert torch.allclose(found.sum(-1), torch.ones(3, 3))
    assert (seen - plain).abs().max() < 1e-6


def test_what_cannot_be_watched_or_moved_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be recorded"):
        AttentionReader(_model("falcon", num_kv_heads=2, ffn_hidden_size=48))
    capped = AttentionReader(_model("gemma2", num_key_value_heads=2, head_dim=8))
    with pytest.raises(ModelError, match="soft cap"), torch.inference_mode():
        capped.states(range(5, 15))
    with pytest.raises(ModelError, match="fixed frequencies"):
        KeyRotation(_model("gpt2", n_embd=32, n_layer=2, n_head=4))
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ModelError, match="fixed frequencies"):
        KeyRotation(_model("llama", num_key_value_heads=2, rope_parameters=scaling))


def test_whole_window_layers_and_partial_rotation(tmp_path: Path) -> None:
    """GPT-NeoX turns a quarter of each key; the rest stays as it is."""
    model = _model("gpt_neox", rotary_pct=0.25)
    with torch.inference_mode():
        rotation, reader = KeyRotation(model), AttentionReader(model)
        layers = [(x.keys, x.values) for x in reader.states(range(5, 15)).layers]
        turned = rotation.turn(layers, 9)
    assert torch.equal(turned[0][0][..., 2:], layers[0][0][..., 2:])
    assert not torch.equal(turned[0][0][..., :2], layers[0][0][..., :2])

"""The output head on some positions at a time: the same log-probabilities, never the logits of all positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from modeling_tsarank import TSARankModel
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine import read_outs, torch_forward
from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.engine.int8_weights import use_int8_weights
from modeling_tsarank.engine.read_outs import LogProbHead
from modeling_tsarank.engine.state_blocks import Workspace


ROWS = 4
IDS = torch.arange(5, 25)[None]


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At most `ROWS` positions at a time; filled with the numbers of positions whose logits were there at once."""
    seen: list[int] = []
    plain = read_outs.gathered_log_probs

    def counted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        return plain(logits, targets)

    monkeypatch.setattr(read_outs, "gathered_log_probs", counted)
    monkeypatch.setattr(read_outs, "LOGITS_BYTES", 1)
    monkeypatch.setattr(read_outs, "_FEWEST_ROWS", ROWS)
    return seen


def load(zoo: Any, name: str, dtype: torch.dtype = torch.float64) -> TSARankModel:
    return TSARankModel.from_backbone(str(zoo.folders[name]), dtype=dtype)


def score(model: TSARankModel, pairs: Any, way: str) -> np.ndarray:
    documents = [document for _, document in pairs]
    if way == "kept":
        model.index(documents, MemoryStore())
    elif way == "alone":
        return np.array([model.predict([pair])[0] for pair in pairs])
    return model.predict(pairs)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "gpt2", "opt", "bloom", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("way", ["together", "alone", "kept"])
def test_scores_equal_those_of_all_logits(zoo, pairs, few_rows, name, way, monkeypatch) -> None:
    dtype = torch.float32 if name == "mixtral" else torch.float64  # experts multiply no float64
    found = score(load(zoo, name, dtype), pairs, way)
    assert 1 <= max(few_rows) <= ROWS
    few_rows.clear()
    monkeypatch.setattr(torch_forward, "ARCHITECTURES", ())
    np.testing.assert_allclose(found, score(load(zoo, name, dtype), pairs, way), atol=2e-6)
    assert max(few_rows) > ROWS


def test_log_probabilities_are_those_of_the_loop(zoo, few_rows) -> None:
    model = load(zoo, "llama")
    head = LogProbHead(model.backbone.lm_head, Workspace())
    head.targets = torch.arange(30, 49)
    with torch.inference_mode():
        hidden = model.backbone.model(IDS).last_hidden_state[0, :-1]
        logits = model.backbone.lm_head(hidden)
        found = head(hidden)
        assert head.answered
        assert head(hidden[1:]).shape == (18, logits.shape[1])  # not as many positions as targets
        assert not head.answered
    assert found.shape == (19, 1)
    for i, target in enumerate(head.targets):
        wanted = logits[i, target] - torch.log(torch.exp(logits[i]).sum())
        assert float(found[i, 0]) == pytest.approx(float(wanted), abs=1e-5)
    assert few_rows == [4, 4, 4, 4, 3]


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("way", ["together", "kept"])
def test_bfloat16_scores_stay_the_same_to_the_last_bit(zoo, pairs, few_rows, way, monkeypatch) -> None:
    found = score(load(zoo, "llama", torch.bfloat16), pairs * 9, way)
    assert len([count for count in few_rows if count]) > 1
    monkeypatch.setattr(torch_forward, "ARCHITECTURES", ())
    np.testing.assert_array_equal(found, score(load(zoo, "llama", torch.bfloat16), pairs * 9, way))


@pytest.mark.parametrize("kind", ["bias", "int8"])
def test_a_head_that_writes_elsewhere(zoo, pairs, few_rows, kind, monkeypatch) -> None:
    model = load(zoo, "llama", torch.float32)
    if kind == "int8":
        use_int8_weights(model)
    else:
        head = model.backbone.lm_head
        head.bias = torch.nn.Parameter(torch.linspace(-2, 2, head.out_features))
    found = model.predict(pairs)
    assert max(few_rows) <= ROWS
    monkeypatch.setattr(torch_forward, "ARCHITECTURES", ())
    np.testing.assert_allclose(found, model.predict(pairs), atol=2e-3 if kind == "int8" else 1e-5)


def test_capped_logits_and_other_heads_are_left_alone(zoo, pairs, few_rows) -> None:
    load(zoo, "gemma2").predict(pairs)
    model = load(zoo, "llama")
    inject_adapter_in_model(LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False), model.backbone)
    model.predict(pairs)
    assert max(few_rows) > ROWS


def test_a_watched_head_gives_logits(zoo, pairs, few_rows) -> None:
    model = load(zoo, "llama")
    expected = model.predict(pairs)
    few_rows.clear()
    seen: list[int] = []
    model.backbone.lm_head.register_forward_hook(lambda *args: seen.append(args[2].shape[-1]))
    np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
    assert set(seen) == {model.backbone.lm_head.out_features}
    assert max(few_rows) > ROWS

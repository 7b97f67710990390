"""The output head on some positions at a time: the same log-probabilities, never the logits of all positions."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from modeling_tsarank import TSARankModel, query_head
from modeling_tsarank.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.document_blocks import Workspace
from modeling_tsarank.int8_weights import use_int8_weights
from modeling_tsarank.query_head import log_probs_of


ROWS = 4
IDS = torch.arange(5, 25)[None]


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At most `ROWS` positions at a time; filled with the numbers of positions whose logits were there at once."""
    seen: list[int] = []
    plain = query_head.gathered_log_probs

    def counted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(logits))
        return plain(logits, targets)

    monkeypatch.setattr(query_head, "gathered_log_probs", counted)
    monkeypatch.setattr(query_head, "LOGITS_BYTES", 1)
    monkeypatch.setattr(query_head, "_FEWEST_ROWS", ROWS)
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
    monkeypatch.setattr(query_head, "ARCHITECTURES", ())
    np.testing.assert_allclose(found, score(load(zoo, name, dtype), pairs, way), atol=2e-6)
    assert not few_rows


def test_log_probabilities_are_those_of_the_loop(zoo, few_rows) -> None:
    model = load(zoo, "llama")
    targets = torch.arange(30, 49)
    with torch.inference_mode():
        logits = model.backbone(IDS).logits[0, :-1]
        with log_probs_of(model.backbone, targets, Workspace()) as asked:
            found = model.backbone(IDS, logits_to_keep=torch.tensor([[True] * 19 + [False]])).logits
    assert asked.answered
    assert found.shape == (19, 1)
    for i, target in enumerate(targets):
        wanted = logits[i, target] - torch.log(torch.exp(logits[i]).sum())
        assert float(found[i, 0]) == pytest.approx(float(wanted), abs=1e-5)
    assert few_rows == [0, 4, 4, 4, 4, 3]


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16")
@pytest.mark.parametrize("way", ["together", "kept"])
def test_bfloat16_scores_stay_the_same_to_the_last_bit(zoo, pairs, few_rows, way, monkeypatch) -> None:
    found = score(load(zoo, "llama", torch.bfloat16), pairs * 9, way)
    assert len([count for count in few_rows if count]) > 1
    monkeypatch.setattr(query_head, "ARCHITECTURES", ())
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
    monkeypatch.setattr(query_head, "ARCHITECTURES", ())
    np.testing.assert_allclose(found, model.predict(pairs), atol=2e-3 if kind == "int8" else 1e-5)


def test_capped_logits_and_other_heads_are_left_alone(zoo, pairs, few_rows) -> None:
    load(zoo, "gemma2").predict(pairs)
    model = load(zoo, "llama")
    inject_adapter_in_model(LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False), model.backbone)
    model.predict(pairs)
    assert not few_rows


def test_training_and_other_callers_get_logits(zoo, few_rows) -> None:
    model = load(zoo, "llama")
    head, targets = model.backbone.lm_head, torch.arange(30, 50)
    model.token_log_probs("bread", "dough")
    few_rows.clear()
    with log_probs_of(model.backbone, targets, Workspace()) as asked:
        assert model.backbone(IDS).logits.shape == (1, 20, head.out_features)
    with torch.inference_mode(), log_probs_of(model.backbone, targets[:7], Workspace()) as other:
        assert model.backbone(IDS).logits.shape == (1, 20, head.out_features)  # not as many positions as targets
    assert not asked.answered
    assert not other.answered
    assert not few_rows


def test_each_thread_asks_for_itself(zoo) -> None:
    model = load(zoo, "llama")
    seen: list[torch.Tensor] = []

    def read() -> None:
        with torch.inference_mode():
            seen.append(model.backbone(IDS).logits)

    with torch.inference_mode(), log_probs_of(model.backbone, torch.arange(30, 50), Workspace()) as asked:
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        assert not asked.answered
        here = model.backbone(IDS).logits
    assert seen[0].shape == (1, 20, model.backbone.lm_head.out_features)
    assert here.shape == (20, 1)

"""The last block at the wanted positions only: the same scores, less work, and no effect on anybody else."""

from __future__ import annotations

import contextlib
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from modeling_tsarank import TSARankModel, TwolarModel, last_block
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.int8_weights import use_int8_weights
from modeling_tsarank.last_block import ARCHITECTURES, PARTS, last_block_at


LONG = "the ship enters the narrow channel " * 6


def load(zoo: Any, name: str, family: Any = TSARankModel, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    if name != "mistral":
        return family.from_backbone(str(zoo.folders[name]), dtype=dtype, **options)
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "sliding_window": 24}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(7)
    backbone = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **sizes, **heads)).to(dtype)
    with torch.inference_mode():
        for weight in backbone.parameters():
            weight.mul_(4.0)
    return family.from_backbone(backbone, tokenizer=tokenizer, **options)


def count_work(model: Any) -> dict[str, int]:
    """Counts the positions at which each part of the last block works from now on."""
    counts = dict.fromkeys(PARTS, 0)
    for name in PARTS:
        part = model.backbone.model.layers[-1].get_submodule(name)

        def counted(x: torch.Tensor, *, plain: Any = part.forward, name: str = name) -> torch.Tensor:
            counts[name] += x.shape[:-1].numel()
            return plain(x)

        part.forward = counted
    return counts


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("family", [TSARankModel, TwolarModel])
@pytest.mark.parametrize("way", ["cold", "shared", "kept"])
def test_scores_equal_those_of_the_whole_block(zoo, pairs, name, family, way, monkeypatch) -> None:
    if way == "kept" and name in ("mistral", "gemma2"):
        pytest.skip("keeps no states")
    options = {} if family is TSARankModel else {"template": "Document: {document} Query: {query} Relevant:"}
    model = load(zoo, name, family, **options)
    many = list(pairs) if way == "cold" else [(query, LONG) for query in ("bread", "a ship", "bees and violins")]

    def scores() -> np.ndarray:
        if way == "kept":
            model.document_store = MemoryStore()
        return model.predict(many)

    counts = count_work(model)
    found, worked = scores(), dict(counts)
    monkeypatch.setattr(last_block, "ARCHITECTURES", ())
    counts.update(dict.fromkeys(PARTS, 0))
    expected = scores()
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert all(0 < worked[part] < 0.7 * counts[part] for part in PARTS)


def test_int8_weights_too(zoo, pairs, monkeypatch) -> None:
    model = use_int8_weights(load(zoo, "llama", dtype=torch.float32))
    counts = count_work(model)
    found, worked = model.predict(pairs), dict(counts)
    monkeypatch.setattr(last_block, "ARCHITECTURES", ())
    counts.update(dict.fromkeys(PARTS, 0))
    np.testing.assert_allclose(found, model.predict(pairs), atol=2e-3)
    assert all(0 < worked[part] < counts[part] for part in PARTS)


def test_an_adapter_around_the_parts_after_the_first_use(zoo, pairs, monkeypatch) -> None:
    """The layers inside of LoRA's were ready to pick before; only the outer ones may."""
    model = load(zoo, "llama")
    before = model.predict(pairs)
    config = LoraConfig(target_modules=["q_proj", "o_proj", "down_proj"], r=2, init_lora_weights=False)
    inject_adapter_in_model(config, model.backbone)
    found = model.predict(pairs)
    assert not np.allclose(found, before, atol=1e-3)
    monkeypatch.setattr(last_block, "ARCHITECTURES", ())
    np.testing.assert_allclose(found, model.predict(pairs), atol=1e-6)


def test_training_and_other_callers_see_the_whole_block(zoo) -> None:
    model = load(zoo, "llama")
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        plain = model.backbone(ids).logits
        model.predict([("a", "b")])
        torch.testing.assert_close(model.backbone(ids).logits, plain, rtol=0, atol=0)
    few = torch.zeros(ids.shape, dtype=torch.bool)
    few[0, -1] = True
    for training in (torch.enable_grad, torch.no_grad):
        with training(), last_block_at(model.backbone, few):
            torch.testing.assert_close(model.backbone(ids).logits.detach(), plain.clone(), rtol=0, atol=0)
    with torch.inference_mode(), last_block_at(model.backbone, few):
        logits = model.backbone(ids).logits
    torch.testing.assert_close(logits[few], plain[few])
    assert not torch.allclose(logits[~few], plain[~few])
    with torch.inference_mode(), last_block_at(model.backbone, ~few):  # nearly all are wanted
        torch.testing.assert_close(model.backbone(ids).logits, plain, rtol=0, atol=0)


def test_each_thread_has_its_own_positions(zoo) -> None:
    model = load(zoo, "llama")
    ids = torch.arange(5, 25)[None]
    few = torch.zeros(ids.shape, dtype=torch.bool)
    few[0, -1] = True
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), last_block_at(model.backbone, few):

        def read() -> None:
            with torch.inference_mode():
                seen.append(model.backbone(ids).logits)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()
        here = model.backbone(ids).logits
    with torch.inference_mode():
        plain = model.backbone(ids).logits
    torch.testing.assert_close(seen[0], plain, rtol=0, atol=0)
    assert not torch.allclose(here, plain)


def test_an_error_leaves_nothing_behind_and_models_can_be_copied(zoo, tmp_path) -> None:
    model = load(zoo, "llama")
    before = model.predict([("a ship", LONG)])
    few = torch.zeros(1, 9, dtype=torch.bool)
    with torch.inference_mode(), contextlib.suppress(ValueError), last_block_at(model.backbone, few):
        raise ValueError
    np.testing.assert_array_equal(model.predict([("a ship", LONG)]), before)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict([("a ship", LONG)]), before)
    model.save_pretrained(tmp_path / "saved")
    again = TSARankModel.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(again.predict([("a ship", LONG)]), before, atol=1e-6)

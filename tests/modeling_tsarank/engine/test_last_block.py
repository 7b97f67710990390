"""The last block at the wanted positions only: the same scores, less work, and no effect on anybody else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

from modeling_tsarank import TSARankModel, TwolarModel
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine import last_block
from modeling_tsarank.engine.int8_weights import use_int8_weights
from modeling_tsarank.engine.last_block import ARCHITECTURES, PARTS, Wanted, pick_positions
from modeling_tsarank.engine.private_view import private_view


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


@pytest.fixture
def count_work(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Counts the positions at which each part of the last block works from now on."""

    def start(model: Any) -> dict[str, int]:
        counts = dict.fromkeys(PARTS, 0)
        names = {
            id(model.backbone.model.layers[-1].get_submodule(name).__dict__["_parameters"]): name for name in PARTS
        }
        assert len(names) == len(PARTS)
        call = torch.nn.Module.__call__

        def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            name = names.get(id(module.__dict__["_parameters"]))
            if name is not None:
                counts[name] += args[0].shape[:-1].numel()
            return call(module, *args, **kwargs)

        monkeypatch.setattr(torch.nn.Module, "__call__", counted)
        return counts

    return start


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("family", [TSARankModel, TwolarModel])
@pytest.mark.parametrize("way", ["cold", "shared", "kept"])
def test_scores_equal_those_of_the_whole_block(zoo, pairs, name, family, way, count_work, monkeypatch) -> None:
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


def test_int8_weights_too(zoo, pairs, count_work, monkeypatch) -> None:
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


def test_a_pass_is_right_at_the_wanted_positions(zoo) -> None:
    model = load(zoo, "llama")
    ids = torch.arange(5, 25)[None]
    few = torch.zeros(ids.shape, dtype=torch.bool)
    few[0, -1] = True
    wanted = Wanted()
    view = private_view(model.backbone)
    pick_positions(view, wanted)
    with torch.inference_mode():
        plain = model.backbone(ids).logits
        wanted.set(few)
        logits = view(ids).logits
        torch.testing.assert_close(logits[few], plain[few])
        assert not torch.allclose(logits[~few], plain[~few])
        wanted.set(~few)  # nearly all are wanted
        torch.testing.assert_close(view(ids).logits, plain, rtol=0, atol=0)
        torch.testing.assert_close(model.backbone(ids).logits, plain, rtol=0, atol=0)


def test_a_watched_block_works_at_all_positions(zoo) -> None:
    """Whoever has put a hook there expects what the model's own code gives."""
    model = load(zoo, "llama")
    expected = model.predict([("a ship", LONG)])
    shapes: list[Any] = []
    model.backbone.model.layers[-1].mlp.register_forward_hook(lambda *args: shapes.append(args[1][0].shape))
    np.testing.assert_allclose(model.predict([("a ship", LONG)]), expected, atol=1e-6)
    (pair,) = model.encoder.pairs([("a ship", LONG.strip())])
    assert shapes == [(1, len(pair.prompt) + len(pair.query) - 1, model.config.hidden_size)]

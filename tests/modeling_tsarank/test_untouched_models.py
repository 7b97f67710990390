"""A user's model is what it was after it has ranked: its hooks, classes, methods, buffers, flags and configuration."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from modeling_tsarank import MemoryStore, TSARankModel, TwolarModel
from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16


DOCUMENT_FIRST = "Document: {document} Query: {query} Relevant:"
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 5.0, 9.0, 30.0],
    "original_max_position_embeddings": 40,
}
KINDS = ["llama", "gpt2", "bloom", "qwen3", "gemma2", "mixtral", "longrope", "dynamic"]


def make_backbone(kind: str, zoo: Any, dtype: torch.dtype) -> PreTrainedModel:
    if kind in zoo.folders:
        return AutoModelForCausalLM.from_pretrained(zoo.folders[kind], dtype=dtype)
    config = LlamaConfig.from_pretrained(zoo.folders["llama"])
    config.rope_parameters = _LONGROPE if kind == "longrope" else {**_LONGROPE, "rope_type": "dynamic", "factor": 2.0}
    config.max_position_embeddings = 512 if kind == "longrope" else 40
    torch.manual_seed(7)
    return AutoModelForCausalLM.from_config(config).to(dtype)


def facts(model: PreTrainedModel) -> dict[str, Any]:
    """All that a call could leave behind."""
    found: dict[str, Any] = {"config": model.config.to_dict(), "attention": model.config._attn_implementation}
    found["attributes of the config"] = {name: repr(value) for name, value in vars(model.config).items()}
    for name, module in model.named_modules():
        own = vars(module)
        found[name] = {
            "class": type(module),
            "attributes": {
                key: copy.copy(value) if isinstance(value, dict | list | set | int | float | str) else id(value)
                for key, value in own.items()
                if key not in ("_buffers", "_parameters", "_modules")
            },
            "parts": {key: id(part) for key, part in own["_modules"].items()},
            "weights": {key: (id(one), one._version) for key, one in own["_parameters"].items() if one is not None},
            "buffers": {key: (id(one), one.tolist()) for key, one in own["_buffers"].items() if one is not None},
        }
    return found


@pytest.fixture(params=[False, True], ids=["evaluating", "training"])
def training(request: Any) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("family", [TSARankModel, TwolarModel])
@pytest.mark.parametrize("kind", KINDS)
def test_ranking_leaves_nothing_on_a_model(zoo, pairs, tmp_path, kind, family, training) -> None:
    half = cpu_has_bfloat16() and kind in ("llama", "qwen3")
    backbone = make_backbone(kind, zoo, torch.bfloat16 if half else torch.float32)
    backbone.train(training)
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    options: dict[str, Any] = {"max_length": 40, "max_query_length": 20} if kind == "dynamic" else {}
    if family is TwolarModel:
        options |= {"template": DOCUMENT_FIRST, "true_text": "bread", "false_text": "yeast"}
    tokens = {id(module): module.training for module in backbone.modules()}
    before = facts(backbone)
    ranker = family.from_backbone(backbone, tokenizer=tokenizer, **options)
    ranker.train(training)
    assert {id(module): module.training for module in backbone.modules()} == tokens
    documents = list(dict.fromkeys(document for _, document in pairs))
    ranker.predict(pairs)
    ranker.predict(pairs[0])
    ranker.rank(pairs[0][0], documents, batch_tokens=64)
    ranker.explain(*pairs[0])
    if kind != "gemma2":
        ranker.index(documents, MemoryStore())
        ranker.predict(pairs)
    ranker.save_pretrained(tmp_path / "saved")
    after = facts(backbone)
    assert after.keys() == before.keys()
    for name in before:
        assert after[name] == before[name], name


def test_a_head_trained_apart_stays_apart(zoo, pairs) -> None:
    """The configuration still says that the weights are tied, and tying them again would undo the training."""
    backbone = make_backbone("gpt2", zoo, torch.float32)
    assert backbone.config.tie_word_embeddings
    backbone.lm_head.weight = torch.nn.Parameter(backbone.lm_head.weight.detach() * 1.5)
    ranker = TSARankModel.from_backbone(backbone, tokenizer=AutoTokenizer.from_pretrained(zoo.folders["gpt2"]))
    assert backbone.lm_head.weight is not backbone.transformer.wte.weight
    (pair,) = ranker.encoder.pairs(pairs[:1])
    with torch.inference_mode():
        logits = backbone(torch.tensor([[*pair.prompt, *pair.query]])).logits[0, len(pair.prompt) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(-1, torch.tensor(pair.query)[:, None]).mean().item()
    assert float(ranker.predict(pairs[:1])[0]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "longrope"])
def test_eight_threads_on_one_model(zoo, pairs, kind) -> None:
    """Some read alone, some share, some index and read from stores, some explain; nobody notices the others."""
    backbone = make_backbone(kind, zoo, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    rankers: list[Any] = [
        TSARankModel.from_backbone(backbone, tokenizer=tokenizer),
        TwolarModel.from_backbone(
            backbone, tokenizer=tokenizer, template=DOCUMENT_FIRST, true_text="bread", false_text="yeast"
        ),
    ]
    documents = list(dict.fromkeys(document for _, document in pairs))
    before = facts(backbone)
    expected = [ranker.predict(pairs) for ranker in rankers]
    cached = [copy.copy(ranker) for ranker in rankers]
    ways = {
        "shared": lambda n, i: (rankers[n].predict(pairs), expected[n]),
        "alone": lambda n, i: (rankers[n].predict(pairs[i]), expected[n][i]),
        "small batches": lambda n, i: (rankers[n].predict(pairs, batch_tokens=48), expected[n]),
        "explained": lambda n, i: (rankers[n].explain(*pairs[i]).score, expected[n][i]),
        "indexed": lambda n, i: (cached[n].index(documents, MemoryStore()), len(documents)),
        "from a store": lambda n, i: (cached[n].predict(pairs), expected[n]),
    }
    work = [(way, n, i) for i in range(4) for way in ways for n in range(2)]
    with ThreadPoolExecutor(8) as pool:
        for (way, n, i), (found, wanted) in zip(work, pool.map(lambda one: ways[one[0]](*one[1:]), work), strict=True):
            np.testing.assert_allclose(found, wanted, atol=2e-5, err_msg=f"{way} {n} {i}")
    assert facts(backbone) == before

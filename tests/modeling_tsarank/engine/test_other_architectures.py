"""Architectures with attention of their own, position biases or recurrent layers: every way of reading gives the same
scores as transformers alone, whatever stands beside a pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconConfig, Lfm2Config, MambaConfig, Qwen3NextConfig

from modeling_tsarank import MemoryStore, ModelError, TSARankModel, TwolarModel


_SIZES: dict[str, Any] = {
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 600,
    "pad_token_id": 3,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
_LINEAR_HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
_LINEAR_HEADS |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
# Configurations, and whether all layers are attention.
ARCHITECTURES: dict[str, tuple[Any, bool]] = {
    "falcon": (FalconConfig(**_SIZES), True),
    "falcon, new": (FalconConfig(**_SIZES, new_decoder_architecture=True, num_kv_heads=2), True),
    "falcon, alibi": (FalconConfig(**_SIZES, alibi=True), True),
    "falcon, dynamic": (FalconConfig(**{**_SIZES, "max_position_embeddings": 60}, rope_parameters=_DYNAMIC), True),
    "mamba": (MambaConfig(**_SIZES, state_size=4), False),
    "lfm2": (Lfm2Config(**_SIZES, num_key_value_heads=2, layer_types=["conv", "full_attention"]), False),
    "qwen3 next": (
        Qwen3NextConfig(
            **_SIZES,
            **_LINEAR_HEADS,
            num_key_value_heads=2,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            layer_types=["linear_attention", "full_attention"],
        ),
        False,
    ),
}
DOCUMENTS = [
    "bees dance",
    "the harbour pilot climbs aboard every ship",
    " ".join(["yeast turns sugar into gas"] * 3),
    " ".join(["a glacier carries stones for many miles"] * 6),
]
PAIRS = [(query, document) for document in DOCUMENTS for query in ("why does bread rise", "how do bees talk", "ships")]
PAIRS.append(("bread", "glaciers carry stones"))


@pytest.fixture(params=ARCHITECTURES)
def made(request: Any) -> tuple[Any, bool]:
    config, keeps = ARCHITECTURES[request.param]
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(config).eval()
    for weight in backbone.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return backbone, keeps


def check(ranker: Any, expected: list[float], keeps: bool) -> None:
    def same(scores: Any) -> None:
        np.testing.assert_allclose(scores, expected, atol=1e-4)

    same(ranker.predict(PAIRS))
    same(ranker.predict(PAIRS, batch_tokens=64))
    same([ranker.predict(pair) for pair in PAIRS])
    if not keeps:
        with pytest.raises(ModelError, match="cannot be cached"):
            ranker.index(DOCUMENTS, MemoryStore())
        return
    ranker.index(DOCUMENTS[:2], MemoryStore(dtype="float32"))
    same(ranker.predict(PAIRS))


@torch.no_grad()
def test_repeated_documents_score_as_alone_by_query_likelihood(made: tuple[Any, bool], zoo: Any) -> None:
    backbone, keeps = made
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    ranker = TSARankModel.from_backbone(backbone, tokenizer=tokenizer, max_length=60, max_query_length=40)
    expected = []
    for pair in ranker.encoder.pairs(PAIRS):
        logits = backbone(torch.tensor([[*pair.prompt, *pair.query]]), use_cache=False).logits[0]
        found = logits[len(pair.prompt) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(pair.query)[:, None])
        expected.append(found.mean().item())
    check(ranker, expected, keeps)


@torch.no_grad()
def test_repeated_documents_score_as_alone_by_answer_logits(made: tuple[Any, bool], zoo: Any) -> None:
    backbone, keeps = made
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    ranker = TwolarModel.from_backbone(
        backbone,
        tokenizer=tokenizer,
        template="Document: {document} Query: {query} Relevant:",
        true_text="bread",
        false_text="yeast",
        max_length=60,
        max_query_length=40,
    )
    expected = []
    for pair in ranker.encoder.pairs(PAIRS):
        logits = backbone(torch.tensor([pair.prompt]), use_cache=False).logits[0, -1, ranker.answer_ids()]
        expected.append((logits[0] - logits[1]).item())
    check(ranker, expected, keeps)

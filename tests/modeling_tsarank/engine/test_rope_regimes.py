"""LongRoPE and dynamic NTK scaling: a pair's frequencies depend on its own length, never on another pair's."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Phi3Config, PhimoeConfig

from modeling_tsarank import TSARankModel, TwolarModel
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine.rope_regimes import rope_regime
from modeling_tsarank.engine.state_keys import model_identity


LIMIT = 40
TEXT = "yeast turns sugar into gas and so the dough of a bread rises in the warm oven while ships wait"
# Some pairs of a document are short and some, with the longer query, long.
QUERIES = ["why?", "who guides a ship into the harbour of a town at night"]
DOCUMENTS = [" ".join(TEXT.split()[:n]) for n in (1, 4, 6, 8, 12, 19)]
PAIRS = [(query, document) for document in DOCUMENTS for query in QUERIES for _ in range(2)]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 5.0, 9.0, 30.0],
    "original_max_position_embeddings": LIMIT,
}
KINDS = ["phi3", "llama longrope", "llama dynamic", "phimoe"]


def config_of(kind: str, vocabulary: int) -> Any:
    common = {**SIZES, "vocab_size": vocabulary, "max_position_embeddings": 512}
    if kind == "phi3":
        return Phi3Config(**common, original_max_position_embeddings=LIMIT, rope_parameters=LONG)
    if kind == "phimoe":
        scales = {"short_mscale": 1.0, "long_mscale": 1.4}
        return PhimoeConfig(**common, num_local_experts=2, rope_parameters={**LONG, **scales})
    if kind == "llama longrope":
        return LlamaConfig(**common, rope_parameters=LONG)
    config = LlamaConfig(**common, rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0})
    config.max_position_embeddings = LIMIT
    return config


@pytest.fixture(autouse=True)
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamic scaling, a configuration calls the length that it was trained with its longest."""
    for module in ("modeling_tsarank", "modeling_twolar"):
        monkeypatch.setattr(f"modeling_tsarank.{module}.readable_length", lambda backbone: None)


@pytest.fixture(
    params=itertools.product(KINDS, [TSARankModel, TwolarModel]), ids=lambda value: f"{value[0]}-{value[1].__name__}"
)
def ranker(request: pytest.FixtureRequest, zoo: Any) -> Any:
    kind, cls = request.param
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    return make(kind, cls, tokenizer)


def make(kind: str, cls: Any, tokenizer: Any) -> Any:
    torch.manual_seed(7)
    backbone = AutoModelForCausalLM.from_config(config_of(kind, len(tokenizer)))
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0 if "embed" in name else 4.0)
    options: dict[str, Any] = {"max_length": 200, "max_query_length": 20}
    if cls is TwolarModel:
        template = "Document: {document} Query: {query} Relevant:"
        options.update(template=template, strategy="single_token", score_text="<s>", max_query_length=16)
    model = cls.from_backbone(backbone, tokenizer=tokenizer, **options)
    return model


def alone(model: Any) -> np.ndarray:
    """Every pair's score out of a pass of the plain model over that pair, in a state as if it were the first."""
    scores = []
    for pair in model.encoder.pairs(PAIRS):
        torch.manual_seed(0)
        for module in model.backbone.modules():
            if hasattr(module, "original_inv_freq"):
                module.inv_freq = module.original_inv_freq.clone()
                module.max_seq_len_cached = module.original_max_seq_len
        ids = torch.tensor([[*pair.prompt, *pair.query]])
        with torch.no_grad():
            logits = model.backbone(ids, use_cache=False).logits[0].double()
        if isinstance(model, TwolarModel):
            scores.append(logits[-1, model.answer_ids()[0]].item())
        else:
            values = logits.log_softmax(-1)[len(pair.prompt) - 1 : -1]
            scores.append(values.gather(-1, torch.tensor(pair.query)[:, None]).mean().item())
    return np.array(scores, dtype=np.float32)


def test_a_long_row_changes_no_other_score(ranker: Any) -> None:
    """Cold, shared, from a store that is filled and from one that was, in several batches, and one by one."""
    config = ranker.config
    regimes = {rope_regime(config, ranker._task(pair).length) for pair in ranker.encoder.pairs(PAIRS)}
    assert 0 in regimes
    assert len(regimes) > 1
    expected = alone(ranker)
    close = {"atol": 2e-5}
    np.testing.assert_allclose(ranker.predict(PAIRS), expected, **close)
    np.testing.assert_allclose(ranker.predict(PAIRS[::-1])[::-1], expected, **close)
    np.testing.assert_allclose(ranker.predict(PAIRS, batch_tokens=64), expected, **close)
    np.testing.assert_allclose([ranker.predict(pair) for pair in PAIRS], expected, **close)
    once = [PAIRS[i] for i in range(0, len(PAIRS), 4)]
    np.testing.assert_allclose(ranker.predict(once), expected[::4], **close)
    ranker.document_store = MemoryStore()
    for _ in range(2):
        np.testing.assert_allclose(ranker.predict(PAIRS), expected, **close)
    ranker.index(DOCUMENTS, MemoryStore())
    np.testing.assert_allclose(ranker.predict(PAIRS), expected, **close)
    np.testing.assert_allclose(ranker.predict(PAIRS[:3]), expected[:3], **close)


def test_rows_of_a_training_batch_are_of_their_own_regimes(ranker: Any) -> None:
    pairs = ranker.encoder.pairs(PAIRS)
    rows = [[*pair.prompt, *pair.query] for pair in pairs]
    longest = max(map(len, rows))
    for left in (False, True):
        ids = torch.full((len(rows), longest), 3)
        mask, query_mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
            start = longest - len(row) if left else 0
            ids[i, start : start + len(row)] = torch.tensor(row)
            mask[i, start : start + len(row)] = 1
            query_mask[i, start + len(pair.prompt) : start + len(row)] = 1
        more = {"query_mask": query_mask} if isinstance(ranker, TSARankModel) else {}
        scores = ranker(input_ids=ids, attention_mask=mask, **more).scores
        np.testing.assert_allclose(scores.detach().numpy(), alone(ranker), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_row_leaves_the_models_identity_alone(kind: str, zoo: Any) -> None:
    model = make(kind, TSARankModel, AutoTokenizer.from_pretrained(zoo.folders["llama"]))
    before = model_identity(model.backbone)
    with torch.no_grad():
        model.backbone(torch.arange(5, 5 + LIMIT * 2)[None])  # the plain model's own way
    model.predict(PAIRS)
    assert model_identity(model.backbone) == before
    store = MemoryStore()
    model.document_store = store
    model.predict(PAIRS)
    read = model.last_stats["tokens"]
    with torch.no_grad():
        model.backbone(torch.arange(5, 5 + LIMIT * 2)[None])
    model.predict(PAIRS)
    assert model.last_stats["tokens"] < read


def test_threads_of_different_regimes_do_not_mix(zoo: Any) -> None:
    model = make("phi3", TSARankModel, AutoTokenizer.from_pretrained(zoo.folders["llama"]))
    expected = model.predict(PAIRS)
    work = [PAIRS[i : i + 1] for i in range(len(PAIRS))] * 4
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(model.predict, work))
    np.testing.assert_allclose(np.concatenate(found), np.tile(expected, 4), atol=2e-5)


def test_what_a_regime_is() -> None:
    phi = config_of("phi3", 60)
    assert [rope_regime(phi, length) for length in (1, LIMIT, LIMIT + 1, 200)] == [0, 0, LIMIT + 1, LIMIT + 1]
    dynamic = config_of("llama dynamic", 60)
    assert [rope_regime(dynamic, length) for length in (LIMIT, LIMIT + 1, 200)] == [0, LIMIT + 1, 200]
    assert rope_regime(LlamaConfig(**SIZES), 10**6) == 0

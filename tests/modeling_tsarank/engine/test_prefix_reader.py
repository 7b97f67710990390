"""Scores from cached document states equal those computed afresh, on every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modeling_tsarank import ModelError, TSARankModel, TwolarModel
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine.prefix_reader import (
    ACCELERATOR_STATE_BYTES,
    CPU_STATE_BYTES,
    STATE_WEIGHT,
    state_weight,
)
from modeling_tsarank.engine.state_blocks import Shape


QUERIES = ["bread", "a ship at night", "bees and violins in the garden"]
LONG = "the ship " * 200


@pytest.fixture
def documents(pairs) -> list[str]:
    return list(dict.fromkeys(document for _, document in pairs))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "bloom", "gpt_neox", "opt", "gpt2", "gemma"])
def test_kept_states_give_the_same_scores(zoo, documents, name) -> None:
    """One query and many, short documents, an empty one, and one that is cut to a length that hangs on the query."""
    model = TSARankModel.from_backbone(str(zoo.folders[name]), max_length=64, max_query_length=20)
    documents = [*documents, "", LONG]
    many = [(query, document) for query in QUERIES for document in documents]
    expected = model.predict(many)
    store = MemoryStore()
    assert model.index([*documents, LONG], store) == len(documents)
    assert model.index(documents, store) == 0
    np.testing.assert_allclose(model.predict(many), expected, atol=1e-5)
    one = [(QUERIES[1], document) for document in documents]
    np.testing.assert_allclose(model.predict(one), expected[len(documents) : 2 * len(documents)], atol=1e-5)
    np.testing.assert_allclose(model.predict(many, batch_tokens=40), expected, atol=1e-5)
    model.document_store = None
    np.testing.assert_allclose(model.predict(many), expected, atol=1e-6)


DOCUMENT_FIRST = "Document: {document} Query: {query} Relevant:"


@pytest.mark.parametrize("name", ["llama", "qwen3", "bloom", "gpt2"])
def test_kept_states_give_a_true_false_ranker_the_same_scores(zoo, documents, name) -> None:
    model = TwolarModel.from_backbone(
        str(zoo.folders[name]), template=DOCUMENT_FIRST, max_length=64, max_query_length=20
    )
    documents = [*documents, "", LONG]
    many = [(query, document) for query in QUERIES for document in documents]
    expected = model.predict(many)
    assert len(np.unique(expected.round(4))) > len(many) // 2
    store = MemoryStore()
    assert model.index([*documents, LONG], store) == len(documents)
    np.testing.assert_allclose(model.predict(many), expected, atol=1e-4)
    assert len(store) == len(documents)
    np.testing.assert_allclose(model.predict(many, batch_tokens=40), expected, atol=1e-4)
    one = [(QUERIES[1], document) for document in documents]
    np.testing.assert_allclose(model.predict(one), expected[len(documents) : 2 * len(documents)], atol=1e-4)


def test_a_true_false_ranker_reads_the_query_and_what_follows_it(zoo, documents, count_tokens) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders["llama"]), template=DOCUMENT_FIRST)
    store = MemoryStore()
    model.index(documents, store)
    seen = count_tokens(model)
    model.rank("a ship at night", documents)
    (pair,) = model.encoder.pairs([("a ship at night", documents[0])])
    own = len(pair.prompt) - len(pair.source) + 1
    assert sum(seen) == model.last_stats["tokens"] == len(documents) * own
    assert own < len(pair.prompt) // 2


@pytest.mark.parametrize(("name", "message"), [("llama", "puts the query before the document"), ("t5", "together")])
def test_states_that_hang_on_the_query_are_refused(zoo, documents, name, message) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders[name]))
    with pytest.raises(ModelError, match=f"no document states can be cached: .*{message}"):
        model.index(documents, MemoryStore())
    model.document_store = MemoryStore()
    with pytest.raises(ModelError, match=message):
        model.predict(("bread", documents[0]))


def test_a_query_pays_for_its_own_tokens(zoo, documents, count_tokens) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    model.index(documents, MemoryStore())
    seen = count_tokens(model)
    model.rank("a ship at night", documents)
    length = len(model.encoder.pairs([("a ship at night", "x")])[0].query)
    assert sum(seen) == len(documents) * length
    assert model.last_stats["tokens"] == sum(seen)


def test_what_the_store_lacks_is_computed_and_kept(zoo, documents) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    expected = model.predict([("bread", document) for document in documents])
    model.document_store = store = MemoryStore()
    np.testing.assert_allclose(model.predict([("bread", document) for document in documents]), expected, atol=1e-5)
    assert len(store) == len(documents)


def test_a_store_too_small_for_the_work_changes_no_score(zoo, documents) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    many = [(query, document) for query in QUERIES for document in documents]
    expected = model.predict(many)
    model.document_store = MemoryStore(max_bytes=1)
    np.testing.assert_allclose(model.predict(many), expected, atol=1e-5)
    assert len(model.document_store) == 0


def test_changed_weights_do_not_meet_old_states(zoo, documents) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    store = MemoryStore()
    model.index(documents, store)
    before = model.predict([("bread", document) for document in documents])
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.mul_(1.5)
    found = model.predict([("bread", document) for document in documents])
    model.document_store = None
    np.testing.assert_allclose(found, model.predict([("bread", document) for document in documents]), atol=1e-5)
    assert np.abs(found - before).max() > 1e-3
    assert len(store) == 2 * len(documents)


def test_sliding_windows_are_refused(zoo, documents) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["gemma2"]))
    with pytest.raises(ModelError, match="cannot be cached"):
        model.index(documents, MemoryStore())


@pytest.mark.parametrize("batch_tokens", [1, 2048, 32768, 1 << 20])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("layers", "heads", "size"), [(30, 3, 64), (32, 8, 128), (80, 64, 128)])
def test_the_states_of_a_batch_are_bounded_in_bytes(layers, heads, size, device, batch_tokens) -> None:
    shapes = [Shape(layers - 1, heads, 1, size, size), Shape(1, heads, 1, size, size)]
    weight = state_weight(shapes, torch.bfloat16, batch_tokens, torch.device(device))
    limit = CPU_STATE_BYTES if device == "cpu" else ACCELERATOR_STATE_BYTES
    held = 2 * 2 * layers * heads * size * batch_tokens
    assert 1 <= weight <= STATE_WEIGHT
    assert weight == 1 or weight * held <= limit
    assert weight == STATE_WEIGHT or (weight + 1) * held > limit, "no smaller than it must be"

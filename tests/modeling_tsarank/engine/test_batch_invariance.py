"""bfloat16 on a CPU: a row's result does not depend on the batch, and is right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank import TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine import batch_invariance
from modeling_tsarank.engine.batch_invariance import (
    TILE,
    RowInvariantLinear,
    agreeing_rows,
    cpu_has_bfloat16,
    invariant_product,
    make_linears_invariant,
    whole_tiles,
)
from modeling_tsarank.engine.grouped_attention import grouped_attention
from modeling_tsarank.engine.read_outs import TokenLogProbs
from modeling_tsarank.engine.state_blocks import Shape, StateBlocks, Workspace
from modeling_tsarank.engine.torch_forward import TorchForward
from modeling_tsarank.ranking_scoring import gathered_log_probs


QUERIES = ["bread", "a ship at night", "which bees live in the old town, and what do they do in winter?"]
# Without it a model's bfloat16 is left as it is; `load_ranker` refuses it there.
in_hardware = pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU has no bfloat16")
COUNTS = (1, 7, 31, 32, 33, 200, 577, 1100, 2300)


def bfloat16(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("inputs", "outputs"), [(576, 192), (96, 40), (33, 7), (64, 9000)])
def test_a_row_is_multiplied_as_if_alone(inputs: int, outputs: int) -> None:
    rows, weight = bfloat16(2300, inputs, seed=1), bfloat16(outputs, inputs, seed=2)
    rows, counts = (rows[:600], COUNTS[:7]) if outputs > 1000 else (rows, COUNTS)
    with torch.inference_mode():
        whole = invariant_product(rows, weight)
        for count in counts:
            torch.testing.assert_close(invariant_product(rows[:count], weight), whole[:count], atol=0, rtol=0)
        moved = invariant_product(rows.roll(5, 0), weight)
    torch.testing.assert_close(moved.roll(-5, 0), whole, atol=0, rtol=0)
    exact = rows[:50].double() @ weight.double().T
    # One rounding to eight bits, of sums that are exact to about float32.
    torch.testing.assert_close(whole[:50].double(), exact, atol=1e-2, rtol=2**-8)


def test_a_plan_covers_the_rows_at_the_least_cost() -> None:
    sizes = (32, 576, 1024)
    for rows in (1, 32, 33, 300, 576, 600, 1025, 5000):
        plan = batch_invariance._plan(rows, sizes, 576)
        assert set(plan) <= set(sizes)
        assert sum(plan) >= rows
        assert sum(plan) - min(plan) < rows
    assert batch_invariance._plan(570, sizes, 576) == (576,)
    assert sorted(batch_invariance._plan(600, sizes, 576)) == [32, 576]
    assert batch_invariance._plan(0, sizes, 576) == ()
    assert batch_invariance._plan(60_010, (32,), 576) == (32,) * 1876


def test_kernels_that_do_not_agree_are_not_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose sums change from 1,000 rows on, and one in which they change with the place of a row."""
    product = torch.mm

    def from_a_thousand(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return product(rows.float(), weight.float()) + (1.0 if len(rows) >= 1000 else 0.0)

    def by_place(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return product(rows.float(), weight.float()) + torch.arange(len(rows))[:, None]

    for library, several in ((from_a_thousand, True), (by_place, False)):
        agreeing_rows.cache_clear()
        monkeypatch.setattr(torch, "mm", library)
        sizes = agreeing_rows(64, 24, torch.get_num_threads())
        monkeypatch.setattr(torch, "mm", product)
        assert len({size >= 1000 for size in sizes}) == 1
        assert (len(sizes) > 1) == several
    agreeing_rows.cache_clear()


def test_a_linear_layer_stays_one_where_it_has_nothing_to_do() -> None:
    layer = torch.nn.Linear(48, 20)
    inputs = torch.randn(2, 3, 48)
    expected = layer(inputs)
    model = torch.nn.Sequential(layer)
    make_linears_invariant(model)
    assert type(layer) is RowInvariantLinear
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    torch.testing.assert_close(layer(inputs), expected, atol=0, rtol=0)
    layer.bfloat16()
    trained = layer(inputs.bfloat16())
    assert trained.requires_grad
    with torch.no_grad():
        found = layer(inputs.bfloat16())
    assert found.shape == (2, 3, 20)
    torch.testing.assert_close(found, trained.detach(), atol=2e-2, rtol=2**-7)


@in_hardware
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("groups", "sizes"), [(6, (64, 64)), (2, (64, 64)), (2, (80, 80)), (6, (48, 32)), (2, (8, 24))]
)
def test_attention_does_not_depend_on_lengths(groups: int, sizes: tuple[int, int], threads: int) -> None:
    """Alone, with more behind it, and a last part read against keys that stand where they stood: the same bits."""
    length = 306
    query = bfloat16(1, 6, length, sizes[0], seed=1)
    key, value = bfloat16(1, groups, length, sizes[0], seed=2), bfloat16(1, groups, length, sizes[1], seed=3)
    module = SimpleNamespace(num_key_value_groups=6 // groups, is_causal=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            whole = grouped_attention(module, query, key, value, None)[0]
            for first in (2, 31, 32, 33, 65, 193, 301):
                parts = (part[:, :, :first] for part in (query, key, value))
                found = grouped_attention(module, *parts, None)[0]
                torch.testing.assert_close(found, whole[:, :first], atol=0, rtol=0)
            for seen in (70, 300):
                for more in (0, 45, 700):
                    longer = [torch.nn.functional.pad(part, (0, 0, 0, more)) for part in (key, value)]
                    shown = torch.arange(length + more) <= torch.arange(seen, length)[:, None]
                    mask = torch.zeros(shown.shape).bfloat16()
                    mask.masked_fill_(~shown, torch.finfo(torch.bfloat16).min)
                    for given in (shown, mask):
                        found = grouped_attention(module, query[:, :, seen:], *longer, given[None, None])[0]
                        torch.testing.assert_close(found, whole[:, seen:], atol=0, rtol=0)
    finally:
        torch.set_num_threads(before)
    doubled = [part.double().repeat_interleave(6 // part.shape[1], 1) for part in (query, key, value)]
    exact = torch.nn.functional.scaled_dot_product_attention(*doubled, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(whole.double(), exact, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_log_probabilities_of_a_row_do_not_depend_on_the_others(threads: int) -> None:
    logits = torch.randn(35, 49_152, generator=torch.Generator().manual_seed(0)) * 4
    targets = torch.arange(35) * 1_000
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = gathered_log_probs(logits, targets)
        alone = [gathered_log_probs(logits[i : i + 1], targets[i : i + 1]) for i in range(35)]
        pairs = [gathered_log_probs(logits[i : i + 2], targets[i : i + 2])[:1] for i in range(34)]
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(torch.cat(alone), together, atol=0, rtol=0)
    torch.testing.assert_close(torch.cat(pairs), together[:-1], atol=0, rtol=0)


def test_blocks_put_what_is_read_right_behind_its_document() -> None:
    counts, room = [5, 0, 3], 2
    blocks = StateBlocks([Shape(2, 2, 0, 4, 4), Shape(1, 1, 0, 3, 5)], counts, room, torch.float32, placed=True)
    workspace = Workspace()
    workspace.reserve(blocks.size, torch.device("cpu"))
    workspace.take((blocks.size // 4,), torch.float32).fill_(torch.nan)  # what an earlier batch left behind
    workspace.reserve(blocks.size, torch.device("cpu"))
    blocks.allocate(workspace)
    for row in range(3):
        for keys, values in blocks.targets(row):
            keys.fill_(10 + row)
            values.fill_(20 + row)
    cache = blocks.cache()
    assert cache.get_seq_length() == whole_tiles(5 + room) == TILE
    for layer, (heads, size) in enumerate([(2, 4), (2, 4), (1, 3)]):
        new = torch.arange(3 * heads * room * size, dtype=torch.float32).view(3, heads, room, size) + 100
        wide = new if layer < 2 else torch.zeros(3, 1, room, 5)
        keys, values = cache.update(new, wide, layer)
        for row, count in enumerate(counts):
            assert (keys[row, :, :count] == 10 + row).all()
            assert (values[row, :, :count] == 20 + row).all()
            torch.testing.assert_close(keys[row, :, count : count + room], new[row])
            torch.testing.assert_close(values[row, :, count : count + room], wide[row])
            assert (keys[row, :, count + room :] == 0).all()


def encoded_query(model: TSARankModel, query: str) -> tuple[int, ...]:
    return model.encoder.pairs([(query, "")])[0].query


def every_way(model: TSARankModel | TwolarModel, queries: list[str], documents: list[str]) -> dict[str, np.ndarray]:
    """Scores `(documents, queries)` of all pairs: together, in small batches, by query, alone, from cached states."""
    pairs = [(query, document) for document in documents for query in queries]
    found = {"together": model.predict(pairs), "small batches": model.predict(pairs, batch_tokens=150)}
    by_query = [model.predict([(query, document) for document in documents]) for query in queries]
    found["by query"] = np.stack(by_query, 1)
    found["alone"] = np.array([model.predict(pair) for pair in pairs])
    if isinstance(model, TSARankModel) or model.encoder.document_first:
        model.index(documents, MemoryStore(dtype="bfloat16"))
        found["kept"] = model.predict(pairs)
        found["kept, by query"] = np.stack([model.predict([(q, d) for d in documents]) for q in queries], 1)
        model.document_store = None
    return {name: scores.reshape(len(documents), len(queries)) for name, scores in found.items()}


@in_hardware
def test_scores_do_not_depend_on_the_batch(zoo, pairs) -> None:
    documents = [*dict.fromkeys(document for _, document in pairs), " ".join(document for _, document in pairs)]
    model = TSARankModel.from_backbone(
        str(zoo.folders["llama"]), dtype=torch.bfloat16, max_length=200, max_query_length=60
    )
    found = every_way(model, QUERIES, documents)
    for name, scores in found.items():
        np.testing.assert_array_equal(scores, found["alone"], err_msg=name)
    assert model.backbone.config._attn_implementation == "sdpa"
    exact = TSARankModel.from_backbone(
        str(zoo.folders["llama"]), dtype=torch.float64, max_length=200, max_query_length=60
    )
    wanted = exact.predict([(query, document) for document in documents for query in QUERIES])
    np.testing.assert_allclose(found["together"].reshape(-1), wanted, atol=0.03)


@in_hardware
@pytest.mark.parametrize("first", ["document", "query"])
def test_true_false_scores_do_not_depend_on_the_batch(zoo, pairs, first: str) -> None:
    documents = [*dict.fromkeys(document for _, document in pairs), " ".join(document for _, document in pairs)]
    parts = ["Document: {document}", "Query: {query}"]
    template = " ".join([*(parts if first == "document" else reversed(parts)), "Relevant:"])
    options: dict[str, Any] = {"template": template, "max_length": 200, "max_query_length": 60}
    model = TwolarModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.bfloat16, **options)
    found = every_way(model, QUERIES, documents)
    for name, scores in found.items():
        np.testing.assert_array_equal(scores, found["alone"], err_msg=name)
    answers = [model.answer_scores(query, document) for document in documents for query in QUERIES]
    differences = [np.subtract(*np.float32(list(one.values()))) for one in answers]
    np.testing.assert_array_equal(differences, found["alone"].reshape(-1))
    exact = TwolarModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float64, **options)
    wanted = exact.predict([(query, document) for document in documents for query in QUERIES])
    np.testing.assert_allclose(found["together"].reshape(-1), wanted, atol=0.03)


@in_hardware
def test_a_kept_document_is_decoded_once_for_its_queries(zoo, pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.bfloat16)
    documents = [*dict.fromkeys(document for _, document in pairs)]
    asked = [(query, document) for document in documents for query in QUERIES]
    cold = model.predict(asked)
    store = MemoryStore(dtype="bfloat16")
    model.index(documents, store)
    fill, keys = store.fill, []
    monkeypatch.setattr(store, "fill", lambda key, target: keys.append(key) or fill(key, target))
    np.testing.assert_array_equal(model.predict(asked), cold)
    assert len(keys) == len(set(keys)) == len(documents)


@in_hardware
def test_very_many_queries_of_a_kept_document_come_in_batches(zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a copy of the document's states, so together they would take any amount of memory."""
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.bfloat16)
    document = "Bees live in the old town, and bread is baked there. " * 4
    asked = [(f"{query} {i}", document) for i in range(40) for query in QUERIES]
    cold = model.predict(asked)
    model.index([document], MemoryStore(dtype="bfloat16"))
    together = model.predict(asked)
    rows = []
    inner = TorchForward.read_behind
    monkeypatch.setattr(
        TorchForward, "read_behind", lambda self, tasks, blocks: rows.append(len(tasks)) or inner(self, tasks, blocks)
    )
    np.testing.assert_array_equal(model.predict(asked, batch_tokens=200), cold)
    np.testing.assert_array_equal(together, cold)
    assert sum(rows) == len(asked)
    assert max(rows) <= 200 // len(encoded_query(model, QUERIES[0]))
    assert len(rows) > 10


@in_hardware
@pytest.mark.parametrize(("name", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("mixtral", "sdpa")])
def test_invariance_is_not_claimed_where_it_is_not_had(zoo, name: str, attention: str) -> None:
    model = TSARankModel.from_backbone(
        str(zoo.folders[name]), dtype=torch.bfloat16, backbone_options={"attn_implementation": attention}
    )
    with torch.inference_mode():
        forward = TorchForward(model.backbone, TokenLogProbs(), 0)
        assert forward.invariant == ((name, attention) == ("llama", "sdpa"))
        assert not TorchForward(model.float().backbone, TokenLogProbs(), 0).invariant


@in_hardware
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tsarank-smollm2-135m", "twolar-smollm2-135m-v2"])
def test_a_release_gives_the_same_scores_however_it_is_asked(name: str) -> None:
    words = " ".join(QUERIES).split()
    documents = [" ".join(words[(n * k) % len(words)] for k in range(40 + 37 * n)) for n in range(1, 8)]
    found = every_way(load_ranker(name, dtype="bfloat16"), [*QUERIES, "how long does a flea live"], documents)
    for name, scores in found.items():
        np.testing.assert_array_equal(scores, found["alone"], err_msg=name)

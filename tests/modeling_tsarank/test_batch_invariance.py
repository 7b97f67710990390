"""bfloat16 on a CPU: a row's result does not depend on the batch, and is right."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_tsarank import TSARankModel, batch_invariance, load_ranker
from modeling_tsarank.batch_invariance import (
    TILE,
    RowInvariantLinear,
    agreeing_rows,
    cpu_has_bfloat16,
    invariant_product,
    make_linears_invariant,
    whole_tiles,
)
from modeling_tsarank.document_blocks import GROUPED, StateBlocks, Workspace, grouped_attention
from modeling_tsarank.document_encoding import Shape
from modeling_tsarank.document_memory import MemoryStore


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
@pytest.mark.parametrize("groups", [6, 2])
def test_attention_does_not_depend_on_lengths(groups: int) -> None:
    """Alone, with more behind it, and a last part read against keys that stand where they stood: the same bits."""
    query, key, value = bfloat16(1, 6, 90, 64, seed=1), *bfloat16(2, 1, groups, 90, 64, seed=2)
    module = SimpleNamespace(num_key_value_groups=6 // groups, is_causal=True)
    with torch.inference_mode():
        whole = grouped_attention(module, query, key, value, None)[0]
        for length in (2, 31, 32, 33, 65):
            found = grouped_attention(module, query[:, :, :length], key[:, :, :length], value[:, :, :length], None)[0]
            torch.testing.assert_close(found, whole[:, :length], atol=0, rtol=0)
        later = torch.nn.functional.pad(key, (0, 0, 0, 45)), torch.nn.functional.pad(value, (0, 0, 0, 45))
        seen = torch.arange(135) <= torch.arange(70, 90)[:, None]
        mask = torch.zeros(seen.shape).bfloat16().masked_fill(~seen, torch.finfo(torch.bfloat16).min)
        for given in (seen, mask):
            found = grouped_attention(module, query[:, :, 70:], *later, given[None, None])[0]
            torch.testing.assert_close(found, whole[:, 70:], atol=0, rtol=0)
    doubled = [part.double().repeat_interleave(6 // part.shape[1], 1) for part in (query, key, value)]
    exact = torch.nn.functional.scaled_dot_product_attention(*doubled, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(whole.double(), exact, atol=2e-2, rtol=2e-2)


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


def every_way(model: TSARankModel, queries: list[str], documents: list[str]) -> dict[str, np.ndarray]:
    """Scores `(documents, queries)` of all pairs: together, in small batches, by query, alone, from kept states."""
    pairs = [(query, document) for document in documents for query in queries]
    found = {"together": model.predict(pairs), "small batches": model.predict(pairs, batch_tokens=150)}
    by_query = [model.predict([(query, document) for document in documents]) for query in queries]
    found["by query"] = np.stack(by_query, 1)
    found["alone"] = np.array([model.predict(pair) for pair in pairs])
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
        np.testing.assert_allclose(scores, found["alone"], atol=1e-3, rtol=0, err_msg=name)
    assert model.backbone.config._attn_implementation == GROUPED
    exact = TSARankModel.from_backbone(
        str(zoo.folders["llama"]), dtype=torch.float64, max_length=200, max_query_length=60
    )
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
    np.testing.assert_allclose(model.predict(asked), cold, atol=1e-3, rtol=0)
    assert len(keys) == len(set(keys)) == len(documents)


@in_hardware
@pytest.mark.slow
def test_the_release_gives_the_same_scores_however_it_is_asked() -> None:
    words = " ".join(QUERIES).split()
    documents = [" ".join(words[(n * k) % len(words)] for k in range(40 + 37 * n)) for n in range(1, 8)]
    found = every_way(load_ranker("default", dtype="bfloat16"), [*QUERIES, "how long does a flea live"], documents)
    for name, scores in found.items():
        np.testing.assert_allclose(scores, found["alone"], atol=1e-3, rtol=0, err_msg=name)

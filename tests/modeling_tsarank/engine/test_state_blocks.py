"""Cached states in place: grouped attention against the equation, blocks against a cache that concatenates."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from modeling_tsarank import TSARankModel
from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine.grouped_attention import grouped_attention
from modeling_tsarank.engine.state_blocks import (
    Groups,
    Layers,
    Shape,
    StateBlocks,
    Workspace,
    aligned_bytes,
    fill_groups,
    shapes_of,
    stack_layers,
)
from modeling_tsarank.engine.torch_forward import TorchForward, _memories


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """softmax(q k / scale) v, one head and one token at a time; query head h reads keys of head h // share."""
    batch, heads, read, _ = query.shape
    share = heads // key.shape[1]
    output = torch.zeros(batch, read, heads, value.shape[-1], dtype=query.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(read):
                weights = [
                    math.exp(float(query[b, h, i] @ key[b, h // share, j]) * scaling) if mask[b, 0, i, j] else 0.0
                    for j in range(key.shape[2])
                ]
                for j, weight in enumerate(weights):
                    output[b, i, h] += weight / sum(weights) * value[b, h // share, j]
    return output


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("additive", [False, True])
def test_grouped_attention_is_the_equation(heads: int, groups: int, additive: bool) -> None:
    generator = torch.Generator().manual_seed(heads)
    batch, read, length, size = 2, 3, 7, 4
    query = torch.randn(batch, heads, read, size, generator=generator, dtype=torch.float64)
    key = torch.randn(batch, groups, length, size, generator=generator, dtype=torch.float64)
    value = torch.randn(batch, groups, length, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, 1, read, length, generator=generator) < 0.6
    mask[..., -1] = True
    given = torch.zeros(mask.shape, dtype=torch.float64).masked_fill_(~mask, -torch.inf) if additive else mask
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    found, weights = grouped_attention(module, query, key, value, given, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(found, plain_attention(query, key, value, mask, 0.3), atol=1e-12, rtol=0)


def test_models_use_it_for_kept_states_and_only_then(zoo, pairs, monkeypatch) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float64)
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention

    def watch(query, key, value, **kwargs):
        calls.append((query.shape[1], key.shape[1]))
        return kernel(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    one_query = [(pairs[0][0], document) for document in {document for _, document in pairs}]
    model.predict(one_query)
    assert (2, 2) not in calls
    model.index([document for _, document in one_query], MemoryStore())
    calls.clear()
    model.predict(one_query)
    assert calls
    assert set(calls) == {(2, 2)}  # four query heads, as rows of the two heads of keys and values
    assert model.backbone.config._attn_implementation == "sdpa"


def test_threads_that_share_a_model_do_not_disturb_each_other(zoo, pairs) -> None:
    """One ranks from cached states; the other shares a document that its queries cut differently."""
    model = TSARankModel.from_backbone(
        str(zoo.folders["llama"]), dtype=torch.float64, max_length=48, max_query_length=24
    )
    long = " ".join([pairs[1][1]] * 8)
    many = [(query, long) for query in ("bread", "a ship at night", "bees and violins in the old town")]
    expected = [model.predict(pair) for pair in many]
    np.testing.assert_allclose(model.predict(many), expected, atol=1e-9)
    kept = TSARankModel.from_backbone(model.backbone, tokenizer=model.tokenizer, max_length=48, max_query_length=24)
    kept.index([document for _, document in pairs], MemoryStore())
    alone = kept.predict(pairs)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            cold, warm = pool.submit(model.predict, many), pool.submit(kept.predict, pairs)
            np.testing.assert_allclose(cold.result(), expected, atol=1e-9)
            np.testing.assert_allclose(warm.result(), alone, atol=1e-9)


SHAPES = [Shape(2, 2, 0, 4, 4), Shape(1, 1, 0, 3, 5)]


def layers_of(tokens: int, seed: int) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(shape.heads, shape.key_dim, shape.value_dim) for shape in SHAPES for _ in range(shape.layers)]
    return [
        (torch.randn(1, h, tokens, k, generator=generator), torch.randn(1, h, tokens, v, generator=generator))
        for h, k, v in sizes
    ]


def test_blocks_read_like_a_cache_that_concatenates() -> None:
    """Documents of 5, 0 and 3 tokens, then two more tokens."""
    counts = [5, 0, 3]
    documents = [layers_of(count, seed) for seed, count in enumerate(counts)]
    blocks = StateBlocks(SHAPES, counts, 2, torch.float32)
    workspace = Workspace()
    workspace.reserve(blocks.size, torch.device("cpu"))
    workspace.take((blocks.size // 4,), torch.float32).fill_(torch.nan)  # what an earlier batch left behind
    workspace.reserve(blocks.size, torch.device("cpu"))
    blocks.allocate(workspace)
    for row, layers in enumerate(documents):
        fill_groups(stack_layers(layers), blocks.targets(row))
    cache, plain = blocks.cache(), DynamicCache()
    assert cache.get_seq_length() == 5
    for number in range(3):
        for part in (0, 1):
            wanted = torch.zeros(3, *documents[0][number][part].shape[1:])
            for row, count in enumerate(counts):
                wanted[row, :, 5 - count :] = documents[row][number][part][0]
            found = cache.layers[number].values if part else cache.layers[number].keys
            assert torch.equal(found, wanted)
        plain.update(cache.layers[number].keys.clone(), cache.layers[number].values.clone(), number)
    more = [tuple(part.expand(3, -1, -1, -1) for part in layer) for layer in layers_of(2, 10)]
    for number, (keys, values) in enumerate(more):
        found, expected = cache.update(keys, values, number), plain.update(keys, values, number)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert cache.get_seq_length() == plain.get_seq_length() == 7


def test_memory_is_cut_without_overlap_and_used_again() -> None:
    workspace, device = Workspace(), torch.device("cpu")
    shapes = [((3, 5), torch.float32), ((7,), torch.bfloat16), ((2, 2, 2), torch.float64)]
    workspace.reserve(sum(aligned_bytes(*one) for one in shapes), device)
    with torch.inference_mode():
        parts = [workspace.take(*one) for one in shapes]
        for number, part in enumerate(parts):
            part.fill_(number + 1)
    for number, (part, (shape, dtype)) in enumerate(zip(parts, shapes, strict=True)):
        assert part.shape == shape
        assert part.dtype == dtype
        assert part.data_ptr() % 64 == 0
        assert bool((part == number + 1).all())
    first = parts[0].data_ptr()
    workspace.reserve(64, device)
    smaller = workspace.take((2,), torch.float32)
    assert smaller.data_ptr() == first
    smaller.fill_(0)  # outside of inference mode as well


def test_a_model_keeps_its_memory_between_calls_and_gives_it_up_after_an_error(zoo, pairs, monkeypatch) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    documents = sorted({document for _, document in pairs})
    expected = model.predict(pairs)
    model.index(documents, MemoryStore())
    np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
    memory = _memories[model.backbone]
    (kept,) = memory.workspaces
    np.testing.assert_allclose(model.predict(pairs[::-1]), expected[::-1], atol=1e-5)
    assert memory.workspaces == [kept]
    monkeypatch.setattr(TorchForward, "_pass", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.predict(pairs)
    assert memory.workspaces == []


def empty_targets(tokens: int, dtype: torch.dtype) -> Groups:
    return [
        (
            torch.full((s.layers, s.heads, tokens, s.key_dim), torch.nan, dtype=dtype),
            torch.full((s.layers, s.heads, tokens, s.value_dim), torch.nan, dtype=dtype),
        )
        for s in SHAPES
    ]


@pytest.mark.parametrize("kept", ["float32", "bfloat16", "int8", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tokens", [20, 100])  # int8 keeps short and long documents in two ways
def test_filling_gives_what_getting_gives(kept, dtype, tokens, tmp_path) -> None:
    layers = layers_of(tokens, 1)
    assert [(s.heads, s.key_dim, s.value_dim) for s in shapes_of(layers)] == [
        (s.heads, s.key_dim, s.value_dim) for s in SHAPES
    ]
    stores = [MemoryStore(dtype=kept)]
    if kept is not None:
        # Waiting to be written, read from the file, and read again out of memory.
        stores += [FolderStore(tmp_path / "s", kept), FolderStore(tmp_path / "s"), FolderStore(tmp_path / "s")]
    for number, store in enumerate(stores):
        if number < 2:
            store.put("a", layers)
        else:
            stores[1].flush()
        if number == 3:
            store.fill("a", empty_targets(tokens, dtype))
        for count in (tokens, tokens - 7):
            targets = empty_targets(count, dtype)
            assert store.fill("a", targets)
            wanted = empty_targets(count, dtype)
            fill_groups(stack_layers(store.get("a", dtype=dtype)), wanted)
            for group, expected in zip(targets, wanted, strict=True):
                assert torch.equal(group[0], expected[0])
                assert torch.equal(group[1], expected[1])
        assert not store.fill("b", empty_targets(tokens, dtype))


def test_states_of_other_shapes_are_not_taken(tmp_path, caplog) -> None:
    with FolderStore(tmp_path / "s", "float32") as store:
        store.put("a", layers_of(9, 1)[:2])
    with FolderStore(tmp_path / "s") as store:
        targets = empty_targets(9, torch.float32)
        assert not store.fill("a", targets)
        assert "their shapes are not this model's" in caplog.text
        assert all(bool(part.isnan().all()) for group in targets for part in group)
        assert "a" not in store


def test_memory_of_a_folder_is_bounded_and_spares_the_second_check(tmp_path) -> None:
    with FolderStore(tmp_path / "s", "float32") as store:
        for seed in range(20):
            store.put(f"a-{seed}", layers_of(9, seed))
    with FolderStore(tmp_path / "s", max_memory_bytes=10_000) as store:
        for seed in range(20):
            assert store.fill(f"a-{seed}", empty_targets(9, torch.float32))
            assert store._checked.bytes <= 10_000
        assert 1 < len(store._checked) < 20
        # A file that changes meanwhile: what was checked stays right, and the rest is found out.
        for path in (tmp_path / "s").glob("*.safetensors"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            path.write_bytes(data)
        targets = empty_targets(9, torch.float32)
        assert store.fill("a-19", targets)
        for group, expected in zip(targets, stack_layers(layers_of(9, 19)), strict=True):
            assert torch.equal(group[0], expected[0])
            assert torch.equal(group[1], expected[1])
        assert not store.fill("a-10", empty_targets(9, torch.float32))

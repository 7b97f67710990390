"""int8 weights: turning changes nothing, rounding is what it says, and no score hangs on its batch."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from modeling_tsarank import InputError, ModelError, TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.engine import int8_linear, int8_weights
from modeling_tsarank.engine.int8_attention import SAME_INPUT, JointAttention, can_be_joint
from modeling_tsarank.engine.int8_linear import Int8Linear, round_tokens
from modeling_tsarank.engine.int8_weights import GatedFeedForward, turn_hidden_states, use_int8_weights
from modeling_tsarank.engine.state_keys import model_identity
from modeling_tsarank.models.loading import resolve_dtype
from modeling_tsarank.ranking_errors import NonFiniteScoreError


# What a sum's last digit makes of a score where it turns the rounding of a byte, in models of two layers.
ROUNDING = 2e-3


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def model(request, zoo) -> TSARankModel:
    """With norms and biases that are not what they begin as."""
    model = TSARankModel.from_backbone(str(zoo.folders[request.param]), dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.backbone.named_parameters():
            if "norm" in name or "bias" in name:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def test_turned_hidden_states_give_the_same_scores(model, pairs) -> None:
    before = model.predict(pairs)
    embedding = model.backbone.model.embed_tokens.weight.clone()
    turn_hidden_states(model.backbone)
    np.testing.assert_allclose(model.predict(pairs), before, atol=2e-5)
    assert not torch.allclose(model.backbone.model.embed_tokens.weight, embedding, atol=1e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_that_of_rounded_numbers(bias) -> None:
    """Against a loop over tokens and outputs, in float64."""
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(7, 24, generator=generator), 5 * torch.randn(2, 3, 24, generator=generator)
    x[0, 1] = 0
    x[1, 2] *= 1000
    added = torch.randn(7, generator=generator) if bias else None
    found = Int8Linear(weight, added)(x)
    expected = torch.zeros(2, 3, 7, dtype=torch.float64)
    for i, j in np.ndindex(2, 3):
        token = x[i, j].double()
        largest = max(float(token.abs().max()), 1e-38)
        levels = [round(float(value) / largest * 127) for value in token]
        for out in range(7):
            step = float(weight[out].abs().max()) / 63
            rounded = [round(float(value) / step) for value in weight[out]]
            assert max(map(abs, rounded)) == 63
            total = sum(a * b for a, b in zip(levels, rounded, strict=True)) * step * largest / 127
            expected[i, j, out] = total + (float(added[out]) if bias else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    exact = torch.nn.functional.linear(x, weight, added)
    assert 0 < float((found - exact).norm() / exact.norm()) < 0.05


def test_the_feed_forward_layer_is_the_plain_one_rounded(model) -> None:
    """And the turn spreads what one channel has too much of."""
    block = model.backbone.model.layers[0]
    norm, plain = block.post_attention_layernorm, block.mlp
    x = 3 * torch.randn(2, 5, norm.weight.shape[0], generator=torch.Generator().manual_seed(2))
    errors = []
    with torch.no_grad():
        plain.up_proj.weight[5] *= 50
        expected = plain(torch.nn.functional.rms_norm(x, x.shape[-1:], eps=norm.variance_epsilon))
        rounded = GatedFeedForward(plain, norm.variance_epsilon)
        errors.append((rounded(x) - expected).norm())
        rounded.turn = torch.eye(len(rounded.turn))
        rounded.down_proj = Int8Linear(plain.down_proj.weight)
        errors.append((rounded(x) - expected).norm())
    assert 0 < errors[0] < errors[1] < 0.1 * expected.norm()


def test_a_bias_inside_the_feed_forward_layer_is_added_in_its_place(model) -> None:
    plain = model.backbone.model.layers[0].mlp
    size, inner = plain.down_proj.weight.shape
    generator = torch.Generator().manual_seed(3)
    for name, out, read in (("gate_proj", inner, size), ("up_proj", inner, size), ("down_proj", size, inner)):
        layer = torch.nn.Linear(read, out)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(out, read, generator=generator) / read**0.5)
            layer.bias.copy_(torch.randn(out, generator=generator))
        setattr(plain, name, layer)
    x = 3 * torch.randn(2, 5, size, generator=generator)
    with torch.no_grad():
        expected = plain(torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-5))
        found = GatedFeedForward(plain, 1e-5)(x)
    assert 0 < float((found - expected).norm()) < 0.05 * float(expected.norm())


def test_scores_are_near_and_hang_on_their_batch_by_rounding_only(model, pairs) -> None:
    exact = model.predict(pairs)
    assert use_int8_weights(model) is model
    scores = model.predict(pairs)
    assert 0 < np.abs(scores - exact).max() < 0.3 * max(float(exact.std()), 0.1)
    one_by_one = [float(model.predict([pair])[0]) for pair in pairs]
    np.testing.assert_allclose(one_by_one, scores, atol=ROUNDING)
    np.testing.assert_allclose(model.predict(pairs[::-1], batch_tokens=60), scores[::-1], atol=ROUNDING)
    linear = [name for name, part in model.backbone.named_modules() if isinstance(part, torch.nn.Linear)]
    assert linear == []


def test_an_input_is_rounded_once_for_all_that_read_it(model, pairs, monkeypatch) -> None:
    """Seven layers a block read four inputs; no rounded input outlives its readers. In the last block, what queries
    are made of is a part of what keys and values are."""
    use_int8_weights(model)
    rounded = []

    def watch(rows, own=False):
        rounded.append(rows.shape)
        return round_tokens(rows, own)

    for module in (int8_linear, int8_weights):
        monkeypatch.setattr(module, "round_tokens", watch)
    model.predict(pairs[:1])
    assert len(rounded) == 4 * len(model.backbone.model.layers) + 1 + 1
    layers = [part for part in model.backbone.modules() if isinstance(part, Int8Linear)]
    assert all(layer._source._last is None for layer in layers)


def test_rotating_in_place_is_the_rotation(zoo) -> None:
    """Against transformers' own, on halves, in float64; every product of a query and a key is the same."""
    generator = torch.Generator().manual_seed(4)
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype="float32")
    plain = model.backbone.model.layers[0].self_attn
    size, dim = model.backbone.config.hidden_size, plain.head_dim
    attention = JointAttention(plain, 1e-5)
    x = torch.randn(2, 7, size, dtype=torch.float64, generator=generator)
    angles = torch.rand(2, 7, dim // 2, dtype=torch.float64, generator=generator) * 6
    cos, sin = angles.repeat(1, 1, 2).cos() * 1.1, angles.repeat(1, 1, 2).sin() * 1.1
    weights = [getattr(plain, name).weight.detach().double() for name in SAME_INPUT]
    halves = [(x @ weight.T).unflatten(-1, (-1, dim)).transpose(1, 2) for weight in weights]
    query, key = apply_rotary_pos_emb(*halves[:2], cos, sin)
    joint = x @ attention._joined(weights).T
    attention._rotate(joint, cos, sin)
    found = [part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in joint.split(attention._sizes, -1)]
    groups = query.shape[1] // key.shape[1]
    expected = query @ key.repeat_interleave(groups, 1).transpose(-1, -2)
    torch.testing.assert_close(found[0] @ found[1].repeat_interleave(groups, 1).transpose(-1, -2), expected)
    torch.testing.assert_close(found[2], halves[2])
    # Position 0 of a head: the first pair of channels, turned by its angle.
    first = complex(*(float(half) for half in halves[0][1, 0, 3, [0, dim // 2]]))
    first *= complex(cos[1, 3, 0], sin[1, 3, 0])
    assert found[0][1, 0, 3, :2].tolist() == pytest.approx([first.real, first.imag])


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_joint_attention_is_that_of_three_products(zoo, kind, tmp_path, monkeypatch) -> None:
    """Cold, with padding on the left, and behind a cache."""
    folder = str(zoo.folders["llama" if kind == "mistral" else kind])
    if kind == "mistral":  # whose weights have Llama's names
        shutil.copytree(folder, tmp_path / kind)
        config = json.loads((tmp_path / kind / "config.json").read_text())
        config |= {"model_type": kind, "architectures": ["MistralForCausalLM"], "sliding_window": None}
        (tmp_path / kind / "config.json").write_text(json.dumps(config))
        folder = str(tmp_path / kind)
    joint = use_int8_weights(TSARankModel.from_backbone(folder, dtype="float32")).backbone
    assert joint.config.model_type == kind
    assert [isinstance(block.self_attn, JointAttention) for block in joint.model.layers] == [True, False]
    monkeypatch.setattr(int8_weights, "can_be_joint", lambda *_: False)
    apart = use_int8_weights(TSARankModel.from_backbone(folder, dtype="float32")).backbone
    assert not any(isinstance(part, JointAttention) for part in apart.modules())
    ids = torch.randint(5, 60, (2, 11), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    places = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.inference_mode():
        for implementation in ("sdpa", "eager"):
            found = []
            for backbone in (joint, apart):
                backbone.set_attn_implementation(implementation)
                whole = backbone(ids, attention_mask=mask, position_ids=places)
                head = backbone(ids[:, :6], use_cache=True)
                tail = backbone(ids[:, 6:], past_key_values=head.past_key_values)
                found.append(torch.cat([whole.logits[mask.bool()], tail.logits.flatten(0, 1)]))
            torch.testing.assert_close(*found, atol=ROUNDING, rtol=0)


def test_attention_of_other_kinds_stays(zoo) -> None:
    """Queries and keys that are normed, and heads of which a part is rotated."""
    normed = use_int8_weights(TSARankModel.from_backbone(str(zoo.folders["qwen3"]), dtype="float32")).backbone
    assert not any(isinstance(part, JointAttention) for part in normed.modules())
    inner = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype="float32").backbone.model
    attention = inner.layers[0].self_attn
    assert can_be_joint(attention, inner.rotary_emb)
    inner.rotary_emb.inv_freq = inner.rotary_emb.inv_freq[:-1]
    assert not can_be_joint(attention, inner.rotary_emb)


def test_threads_do_not_meet(model, pairs) -> None:
    use_int8_weights(model)
    expected = model.predict(pairs)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: model.predict(pairs), range(12)):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_copies_and_kept_states(model, pairs) -> None:
    identity = model_identity(model.backbone)
    use_int8_weights(model)
    assert model_identity(model.backbone) != identity
    scores = model.predict(pairs)
    np.testing.assert_array_equal(copy.deepcopy(model).predict(pairs), scores)
    layer = pickle.loads(pickle.dumps(model.backbone.model.layers[0].mlp.up_proj))
    x = torch.ones(1, layer.levels.shape[1])
    torch.testing.assert_close(layer(x), model.backbone.model.layers[0].mlp.up_proj(x))
    model.index([document for _, document in pairs], MemoryStore())
    np.testing.assert_allclose(model.predict(pairs), scores, atol=ROUNDING)


def test_a_true_false_ranker_keeps_its_head(zoo, pairs) -> None:
    exact = TwolarModel.from_backbone(str(zoo.folders["llama"]), dtype="float32")
    rounded = use_int8_weights(copy.deepcopy(exact))
    assert isinstance(rounded.backbone.lm_head, torch.nn.Linear)
    difference = np.abs(rounded.predict(pairs) - exact.predict(pairs))
    assert 0 < difference.max() < 0.1


def test_by_name_and_what_is_refused(zoo, pairs, tmp_path) -> None:
    folder = str(zoo.folders["llama"])
    expected = use_int8_weights(load_ranker(folder, device="cpu", dtype="float32")).predict(pairs)
    model = load_ranker(folder, dtype="int8")
    np.testing.assert_array_equal(model.predict(pairs), expected)
    with pytest.raises(ModelError, match="int8 weights cannot be saved"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ModelError, match="support llama, mistral, qwen2, qwen3, not gpt2"):
        load_ranker(str(zoo.folders["gpt2"]), dtype="int8")
    with pytest.raises(InputError, match=r"need a float32 model on the CPU, got torch\.float64"):
        use_int8_weights(TSARankModel.from_backbone(folder, dtype=torch.float64))
    with pytest.raises(InputError, match="int8 is for ranking only"):
        resolve_dtype("int8", torch.device("cpu"))
    with pytest.raises(InputError, match="no device 'meta' here to compute on"):
        load_ranker(folder, device="meta", dtype="int8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_rounded_away(model, pairs, value) -> None:
    use_int8_weights(model)
    with torch.no_grad():
        model.backbone.model.embed_tokens.weight[:, 0] = value
    with pytest.raises(NonFiniteScoreError):
        model.predict(pairs)

"""Which states may be used again: an identity changes with what changes a model's states, and with nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_tsarank import TSARankModel
from modeling_tsarank.engine.state_keys import model_identity, state_key
from modeling_tsarank.engine.tasks import Task, common_length
from modeling_tsarank.ranking_text import cacheable_ids


@pytest.fixture
def model(zoo) -> TSARankModel:
    return TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)


def test_the_same_model_loaded_from_elsewhere_has_the_same_identity(model, zoo, tmp_path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = TSARankModel.from_pretrained(tmp_path / "saved")
    assert model_identity(again.backbone) == model_identity(model.backbone)
    again.set_options(aggregation="sum")
    assert model_identity(again.backbone) == model_identity(model.backbone)
    others = [TSARankModel.from_backbone(str(zoo.folders[name])) for name in ("qwen2", "gemma", "gpt2")]
    assert len({model_identity(other.backbone) for other in [model, *others]}) == 4


def test_one_changed_weight_changes_the_identity(model) -> None:
    identities = [model_identity(model.backbone)]
    with torch.no_grad():
        model.backbone.model.layers[1].mlp.down_proj.weight[17, 33] += 1e-3
        identities.append(model_identity(model.backbone))
        # One row of embeddings, as for a token that was added later.
        model.backbone.model.embed_tokens.weight[400] += 1e-6
        identities.append(model_identity(model.backbone))
    model.backbone.model.rotary_emb.inv_freq *= 1.01
    identities.append(model_identity(model.backbone))
    model.to(torch.bfloat16)
    identities.append(model_identity(model.backbone))
    assert len(set(identities)) == 5


def test_a_training_step_changes_the_identity(model) -> None:
    before = model_identity(model.backbone)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.arange(5, 25)[None]
    model.backbone(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert model_identity(model.backbone) != before


def test_an_adapter_changes_the_identity_while_it_is_switched_on(zoo) -> None:
    peft = pytest.importorskip("peft")
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model.backbone.add_adapter(config)
    active = model_identity(model.backbone)
    model.backbone.disable_adapters()
    disabled = model_identity(model.backbone)
    model.backbone.enable_adapters()
    assert disabled != active
    assert model_identity(model.backbone) == active


def test_weights_merged_behind_the_write_counters_are_noticed(model) -> None:
    before = model_identity(model.backbone)
    for parameter in model.backbone.parameters():
        parameter.data += 1e-3
    assert model_identity(model.backbone) != before


def test_a_quantized_model_has_an_identity_of_its_own(model) -> None:
    backbone = copy.deepcopy(model.backbone)
    quantized = torch.ao.quantization.quantize_dynamic(backbone, {torch.nn.Linear}, dtype=torch.qint8)
    other = copy.copy(model)
    other._modules = {**model._modules, "backbone": quantized}
    assert model_identity(other.backbone) != model_identity(model.backbone)
    with torch.no_grad():
        changed = torch.ao.quantization.quantize_dynamic(_scaled(model.backbone), {torch.nn.Linear}, dtype=torch.qint8)
    third = copy.copy(model)
    third._modules = {**model._modules, "backbone": changed}
    assert len({model_identity(other.backbone), model_identity(model.backbone), model_identity(third.backbone)}) == 3


def _scaled(backbone: torch.nn.Module) -> torch.nn.Module:
    backbone = copy.deepcopy(backbone)
    backbone.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    return backbone


def test_keys_differ_by_model_and_by_every_token(model) -> None:
    identity = model_identity(model.backbone)
    assert state_key(identity, [1, 2, 3]) == state_key(identity, (1, 2, 3))
    keys = {state_key(identity, ids) for ids in ([1, 2, 3], [1, 2], [1, 2, 4], [3, 2, 1], [], [0], [0, 0])}
    assert len(keys) == 7
    assert all(key.startswith(f"{identity}-") for key in keys)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.text(alphabet="ab é漢.", max_size=120),
    query=st.text(alphabet="xy ", min_size=1, max_size=80).filter(str.strip),
    max_length=st.integers(40, 90),
)
def test_cacheable_ids_serve_every_query(model, document, query, max_length) -> None:
    model.set_options(max_length=max_length, max_query_length=25)
    pair = model.encoder.pairs([(query.strip(), document.strip())])[0]
    prompt = model.encoder.prompts([document.strip()])[0]
    kept = cacheable_ids(prompt, model.options)
    assert len(kept) < max_length
    seen = common_length(kept, Task(*model._task(pair)))
    assert kept[:seen] == pair.prompt[:seen]
    # Of the document nothing is left to be read with the query; only the prompt's own end may be.
    assert len(pair.prompt) - 1 - len(prompt.after) <= seen <= len(pair.prompt) - 1
    if len(prompt) + 25 <= max_length:
        assert seen == len(pair.prompt) - 1

"""Which parameters are trained, on any architecture, and how they are exported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    Gemma2Config,
    GPTNeoXConfig,
    MixtralConfig,
    OPTConfig,
)

from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.trainable import (
    block_stacks,
    disable_dropout,
    export_state_dict,
    make_trainable,
    save_ranker,
    trained_parameters,
)


PAIRS = [("bread oven", "yeast and flour"), ("ship", "the pilot climbs aboard"), ("bee hive", "ice")]
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
OTHERS = {
    "gpt_neox": (GPTNeoXConfig(**SMALL, intermediate_size=24), "gpt_neox.layers"),
    "opt": (OPTConfig(**SMALL, ffn_dim=24, word_embed_proj_dim=16), "model.decoder.layers"),
    "gemma2": (Gemma2Config(**SMALL, intermediate_size=24, num_key_value_heads=1, head_dim=8), "model.layers"),
    # As many experts in every block as there are blocks.
    "mixtral": (
        MixtralConfig(**SMALL, intermediate_size=24, num_key_value_heads=1, num_local_experts=3),
        "model.layers",
    ),
}


def snapshot(ranker: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in ranker.backbone.state_dict().items()}


def randomize(ranker: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in trained_parameters(ranker.backbone):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("llama", "model.layers"), ("qwen3", "model.layers"), ("gpt2", "transformer.h"), ("bloom", "transformer.h")],
)
def test_blocks_are_found_by_their_number(architecture: str, name: str, make_ranker: Any) -> None:
    backbone = make_ranker(architecture=architecture).backbone
    (stack,) = block_stacks(backbone)
    assert stack.name == name
    assert stack.blocks is backbone.get_submodule(name)
    assert getattr(stack.parent, stack.attribute) is stack.blocks


@pytest.mark.parametrize("architecture", sorted(OTHERS))
def test_blocks_are_found_in_other_architectures(architecture: str) -> None:
    config, name = OTHERS[architecture]
    (stack,) = block_stacks(AutoModelForCausalLM.from_config(config))
    assert stack.name == name


def test_both_stacks_of_an_encoder_decoder_are_found(make_ranker: Any) -> None:
    names = [stack.name for stack in block_stacks(make_ranker("twolar_t5").backbone)]
    assert names == ["encoder.block", "decoder.block"]
    bart = BartConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
    )
    stacks = block_stacks(AutoModelForSeq2SeqLM.from_config(bart))
    assert [len(stack.blocks) for stack in stacks] == [3, 2]


def test_a_model_without_such_a_list_is_an_error(make_ranker: Any) -> None:
    backbone = make_ranker().backbone
    backbone.config.num_hidden_layers = 9
    with pytest.raises(ModelError, match="cannot find the transformer blocks"):
        block_stacks(backbone)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_top_blocks_alone_are_trained(architecture: str, make_ranker: Any) -> None:
    ranker = make_ranker(architecture=architecture)
    part = make_trainable(ranker, "top_blocks", top_blocks=2)
    stack = part.stacks[0]
    expected = {f"{stack.name}.{i}.{name}" for i in (2, 3) for name, _ in stack.blocks[i].named_parameters()}
    assert {name for name, _ in trained_parameters(ranker.backbone)} == expected


def test_top_blocks_of_t5_are_those_of_both_stacks(make_ranker: Any) -> None:
    ranker = make_ranker("twolar_t5")
    make_trainable(ranker, "top_blocks", top_blocks=1)
    prefixes = {".".join(name.split(".")[:3]) for name, _ in trained_parameters(ranker.backbone)}
    assert prefixes == {"encoder.block.3", "decoder.block.3"}


@pytest.mark.parametrize("count", [0, 5])
def test_number_of_blocks_is_checked(count: int, make_ranker: Any) -> None:
    with pytest.raises(InputError, match=f"between 1 and 4, the blocks of model.layers, got {count}"):
        make_trainable(make_ranker(), "top_blocks", top_blocks=count)


def test_unknown_part_is_an_error(make_ranker: Any) -> None:
    with pytest.raises(InputError, match="unknown trainable part 'head'"):
        make_trainable(make_ranker(), "head")


def test_lora_goes_to_the_named_modules_only(make_ranker: Any) -> None:
    ranker = make_ranker()
    make_trainable(ranker, "lora", lora_target_modules=["q_proj", "down_proj"])
    names = [name for name, _ in trained_parameters(ranker.backbone)]
    assert len(names) == 4 * 2 * 2
    assert all(".lora_" in name and ("q_proj" in name or "down_proj" in name) for name in names)


@pytest.mark.parametrize(("kind", "architecture"), [("tsarank", "llama"), ("tsarank", "gpt2"), ("twolar_t5", None)])
def test_lora_in_the_top_blocks_only(kind: str, architecture: str | None, make_ranker: Any, tmp_path: Path) -> None:
    """The same layers as LoRA everywhere, in the upper half; the adapter loads on the plain model."""
    names = []
    for count in (None, 2):
        options = {} if architecture is None else {"architecture": architecture}
        ranker = make_ranker(kind, **options)
        part = make_trainable(ranker, "lora", lora_top_blocks=count)
        names.append({name for name, _ in trained_parameters(ranker.backbone)})
    everywhere, top = names
    assert top == {name for name in everywhere if re.search(r"\.(?:layers|h|block)\.[23]\.", name)}
    assert len(top) * 2 == len(everywhere)
    part.adapter.save_pretrained(tmp_path)
    plain = make_ranker(kind, **options).backbone
    loaded = PeftModel.from_pretrained(plain, str(tmp_path))
    assert {name for name in loaded.state_dict() if "lora" in name} == {
        name for name in part.adapter.state_dict() if "lora" in name
    }


def test_lora_in_the_top_blocks_keeps_to_the_named_modules(make_ranker: Any) -> None:
    ranker = make_ranker()
    make_trainable(ranker, "lora", lora_target_modules=["q_proj", "down_proj"], lora_top_blocks=1)
    names = [name for name, _ in trained_parameters(ranker.backbone)]
    assert len(names) == 2 * 2
    assert all(".layers.3." in name and ("q_proj" in name or "down_proj" in name) for name in names)
    with pytest.raises(ModelError, match="cannot put LoRA"):
        make_trainable(make_ranker(), "lora", lora_target_modules=["nothing_like_it"], lora_top_blocks=1)
    with pytest.raises(InputError, match=r"lora_top_blocks must be between 1 and 4, the blocks of .*, got 5"):
        make_trainable(make_ranker(), "lora", lora_top_blocks=5)


def test_lora_leaves_the_head_alone(make_ranker: Any) -> None:
    for kind in ("tsarank", "twolar_t5"):
        ranker = make_ranker(kind)
        make_trainable(ranker, "lora")
        names = [name for name, _ in trained_parameters(ranker.backbone)]
        assert names
        assert not any("lm_head" in name or "embed" in name or "shared" in name for name in names)


def test_unknown_lora_module_is_one_line(make_ranker: Any) -> None:
    with pytest.raises(ModelError, match="cannot put LoRA on LlamaForCausalLM") as caught:
        make_trainable(make_ranker(), "lora", lora_target_modules=["nothing_like_it"])
    assert "\n" not in str(caught.value)


def test_lora_starts_at_the_same_scores(make_ranker: Any) -> None:
    ranker = make_ranker()
    before = ranker.predict(PAIRS)
    make_trainable(ranker, "lora")
    assert np.array_equal(ranker.predict(PAIRS), before)


@pytest.mark.parametrize("part", ["lora", "top_blocks"])
@pytest.mark.parametrize("kind", ["tsarank", "twolar_t5"])
def test_frozen_weights_can_be_kept_in_bfloat16(part: str, kind: str, make_ranker: Any) -> None:
    ranker = make_ranker(kind, sharpen=False)
    before = ranker.predict(PAIRS)
    make_trainable(ranker, part, top_blocks=2, frozen_dtype="bfloat16")
    dtypes = {parameter.requires_grad: parameter.dtype for parameter in ranker.backbone.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert np.abs(ranker.predict(PAIRS) - before).max() < 0.1


def test_dropout_is_switched_off(make_ranker: Any) -> None:
    ranker = make_ranker("twolar_t5", dropout_rate=0.5)
    ids = torch.randint(3, 20, (2, 12))
    ranker.train()
    assert not torch.equal(ranker.answer_logits(ids), ranker.answer_logits(ids))
    disable_dropout(ranker.backbone)
    ranker.train()
    assert torch.equal(ranker.answer_logits(ids), ranker.answer_logits(ids))
    attention = make_ranker(attention_dropout=0.5)
    disable_dropout(attention.backbone)
    attention.train()
    keep = torch.zeros(2, 12, dtype=torch.bool)
    keep[:, -3:] = True
    assert torch.equal(attention.query_logits(ids, keep), attention.query_logits(ids, keep))


# ---- export ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "architecture"), [("tsarank", "llama"), ("tsarank", "gpt2"), ("twolar", "qwen3"), ("twolar_t5", "t5")]
)
@pytest.mark.parametrize("part", ["lora", "top_blocks"])
def test_saved_folder_scores_like_the_trained_model(
    part: str, kind: str, architecture: str, make_ranker: Any, tmp_path: Path
) -> None:
    ranker = make_ranker(kind, architecture, sharpen=False)
    before = ranker.predict(PAIRS)
    trained = make_trainable(ranker, part, top_blocks=2)
    randomize(ranker)
    in_memory = snapshot(ranker)
    scores = ranker.predict(PAIRS)
    assert np.abs(scores - before).max() > 1e-3
    save_ranker(ranker, trained, tmp_path)
    assert all(torch.equal(value, in_memory[name]) for name, value in ranker.backbone.state_dict().items())
    loaded = type(ranker).from_pretrained(tmp_path)
    assert np.abs(loaded.predict(PAIRS) - scores).max() < 1e-4
    assert loaded.options == ranker.options
    remote = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert np.allclose(remote.predict(PAIRS), loaded.predict(PAIRS))
    plain = AutoModelForSeq2SeqLM if kind == "twolar_t5" else AutoModelForCausalLM
    state = plain.from_pretrained(tmp_path).state_dict()
    exported = export_state_dict(ranker.backbone, trained)
    assert all(torch.equal(state[name], value) for name, value in exported.items())
    assert not list(tmp_path.glob(".unfinished*"))


def test_adapter_is_one_of_the_plain_model(make_ranker: Any, tmp_path: Path) -> None:
    """Anybody's PEFT loads it on the plain causal language model."""
    from peft import PeftModel

    ranker = make_ranker()
    part = make_trainable(ranker, "lora", lora_r=4, lora_alpha=8)
    randomize(ranker)
    scores = ranker.predict(PAIRS)
    part.adapter.save_pretrained(str(tmp_path / "adapter"))
    plain = make_ranker()
    adapted = PeftModel.from_pretrained(plain.backbone, str(tmp_path / "adapter"))
    assert np.array_equal(plain.predict(PAIRS), scores)
    assert adapted.peft_config["default"].task_type == "CAUSAL_LM"


@pytest.mark.parametrize("part", ["lora", "top_blocks"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_has_the_original_dtype(part: str, dtype: torch.dtype, make_ranker: Any, tmp_path: Path) -> None:
    ranker = make_ranker(dtype=dtype)
    trained = make_trainable(ranker, part, top_blocks=2, frozen_dtype="bfloat16")
    randomize(ranker)
    assert {value.dtype for value in export_state_dict(ranker.backbone, trained).values()} == {dtype}
    save_ranker(ranker, trained, tmp_path)
    assert TSARankModel.from_pretrained(tmp_path).dtype == dtype


def test_tied_embeddings_stay_tied(make_ranker: Any, tmp_path: Path) -> None:
    ranker = make_ranker(tie_word_embeddings=True)
    part = make_trainable(ranker, "lora")
    randomize(ranker)
    scores = ranker.predict(PAIRS)
    save_ranker(ranker, part, tmp_path)
    loaded = TSARankModel.from_pretrained(tmp_path)
    assert loaded.backbone.lm_head.weight is loaded.backbone.model.embed_tokens.weight
    assert np.abs(loaded.predict(PAIRS) - scores).max() < 1e-4

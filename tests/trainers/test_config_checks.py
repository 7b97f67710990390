"""Configurations: every number has its bounds, and the defaults run on every machine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers import cpt_config
from modeling_tsarank.trainers.config_checks import BOUNDS
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.cpt_trainer import CPTTrainer
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.sft_config import RankingSFTConfig


CONFIGS = (CPTConfig, RankingSFTConfig, RankingDistillConfig)
# Taken as any number, or checked elsewhere.
UNBOUNDED = {"max_steps", "local_rank", "num_input_tokens_seen", "alpha", "teacher_weight", "router_aux_loss_coef"}


def _numbers(config: type) -> set[str]:
    kinds = ("int", "float", "<class 'int'>", "<class 'float'>", "int | None", "float | None")
    return {field.name for field in dataclasses.fields(config) if str(field.type) in kinds}


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_of_a_training_has_bounds(config: type, tmp_path: Path) -> None:
    known = {field.name for field in dataclasses.fields(config)}
    own = known - {field.name for field in dataclasses.fields(TrainingArguments)}
    assert _numbers(config) - UNBOUNDED - set(BOUNDS) == set()
    tried = 0
    for name, bounds in BOUNDS.items():
        if name not in known:
            continue
        outside = [math.nan, math.inf, -math.inf, -1, True, "3"]
        outside += [bounds.above] if bounds.least is None else [bounds.least - 1]
        outside += [value for value in (bounds.below, bounds.most and bounds.most + 1) if value is not None]
        outside += [2.5] if bounds.kind is int else []
        for value in outside:
            with pytest.raises(InputError, match=rf"^{name} must be a"):
                config(str(tmp_path), **{name: value})
            tried += 1
    assert tried > 150
    assert own


@pytest.mark.parametrize("value", [0, -2, 1.5, True, None])
def test_max_steps_is_a_number_of_steps_or_minus_one(value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_steps must be a whole number from 1, or -1"):
        RankingSFTConfig(str(tmp_path), max_steps=value)


@pytest.mark.parametrize("in_hardware", [False, True], ids=["without bfloat16", "with bfloat16"])
def test_the_defaults_train_on_a_cpu(
    in_hardware: bool,
    make_ranker: Callable[..., Any],
    sft_rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CPT takes bfloat16 by itself where the processor has it; transformers must be told of the CPU then."""
    monkeypatch.setattr(cpt_config, "cpu_has_bfloat16", lambda: in_hardware)
    ranker = make_ranker("tsarank")
    args = CPTConfig(str(tmp_path / "run"))
    assert (args.bf16, args.use_cpu) == (in_hardware, True)
    args.max_length = 120
    args.max_query_length = 30
    pairs = [{"query": row["query"], "document": row["positives"][0]} for row in sft_rows[:2]]
    trainer = CPTTrainer(ranker.backbone, args, train_dataset=pairs, tokenizer=ranker.tokenizer)
    assert math.isfinite(trainer.train().training_loss)


@pytest.mark.parametrize("kind", ["sft", "distill"])
def test_mixed_precision_needs_no_further_word_on_a_cpu(kind: str, make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(kind, use_cpu=False, bf16=True, max_steps=1)
    assert math.isfinite(trainer.train().training_loss)


@pytest.mark.parametrize("config", CONFIGS)
def test_pefts_word_for_all_linear_layers_is_understood(config: type, tmp_path: Path) -> None:
    assert config(str(tmp_path), lora_target_modules="all-linear").lora_target_modules is None
    assert config(str(tmp_path), lora_target_modules=["all-linear"]).lora_target_modules is None
    assert config(str(tmp_path), lora_target_modules="q_proj").lora_target_modules == ["q_proj"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainable": "some"}, "unknown trainable 'some'"),
        ({"top_blocks": 0}, "top_blocks must be a whole number from 1"),
        ({"lora_dropout": 1.0}, "lora_dropout must be a number from 0 to below 1"),
        ({"max_length": None}, "max_length must be a number"),
        ({"max_length": 20, "max_query_length": 20}, "must be smaller than max_length"),
        ({"document_template": "no place"}, "must contain {document}"),
        ({"prompt_style": "glued"}, "unknown prompt_style"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be a whole number from 1"),
    ],
)
def test_bad_settings_of_continual_pre_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CPTConfig("unused", use_cpu=True, **changes)


def test_bfloat16_only_where_it_is_in_hardware() -> None:
    from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16

    assert CPTConfig("unused", use_cpu=True).bf16 == cpu_has_bfloat16()
    assert CPTConfig("unused", use_cpu=True, bf16=False).bf16 is False

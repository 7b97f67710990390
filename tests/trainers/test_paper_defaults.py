"""Every default that a paper gives, in one table: configurations, losses, data commands and recipes."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_tsarank.eval import first_stages
from modeling_tsarank.eval.bm25 import BM25Index
from modeling_tsarank.eval.commands import register as register_evaluation
from modeling_tsarank.modeling_tsarank import QueryLikelihoodOptions
from modeling_tsarank.modeling_twolar import LogitOptions
from modeling_tsarank.rankers import listwise_prompt
from modeling_tsarank.rankers.chat import ChatSettings
from modeling_tsarank.rankers.first import FirstOptions
from modeling_tsarank.rankers.in_context import InContextOptions
from modeling_tsarank.rankers.listwise import ListwiseOptions
from modeling_tsarank.rankers.pairwise import PairwiseOptions
from modeling_tsarank.rankers.setwise import SetwiseOptions
from modeling_tsarank.trainers import losses_likelihood, losses_listwise, losses_pairwise, losses_targets
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.data import list_building, list_making
from modeling_tsarank.trainers.data.commands import register_commands
from modeling_tsarank.trainers.data.data_options import MiningOptions
from modeling_tsarank.trainers.data.list_building import FirstStage
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.sft_config import RankingSFTConfig


# Class, field, value: TSARankLLM (Zhang et al., 2023) and TWOLAR (Baldelli et al., 2024), as decided where a paper is
# garbled or its published code does something else; the docstrings say which.
FIELDS: list[tuple[type, str, Any]] = [
    # TSARankLLM, section 3.1 and Eq. 2: continual pre-training.
    (CPTConfig, "num_train_epochs", 1.0),
    (CPTConfig, "learning_rate", 5e-5),
    (CPTConfig, "lr_scheduler_type", "cosine"),
    (CPTConfig, "warmup_steps", 0.1),
    (CPTConfig, "max_length", 512),
    (CPTConfig, "completion_only_loss", True),
    (CPTConfig, "train_eos", True),
    (CPTConfig, "trainable", "full"),
    (CPTConfig, "document_template", "Document: {document} Query:"),
    (CPTConfig, "prompt_style", "separate_space"),
    # TSARankLLM, section 3.1, 4.1 and Eq. 3 to 5: fine-tuning.
    (RankingSFTConfig, "num_train_epochs", 1.0),
    (RankingSFTConfig, "per_device_train_batch_size", 32),
    (RankingSFTConfig, "learning_rate", 3e-5),
    (RankingSFTConfig, "lr_scheduler_type", "cosine"),
    (RankingSFTConfig, "warmup_steps", 0.03),
    (RankingSFTConfig, "max_length", 160),
    (RankingSFTConfig, "max_query_length", 32),
    (RankingSFTConfig, "document_sampling", "one_positive"),
    (RankingSFTConfig, "num_negatives", 48),
    (RankingSFTConfig, "loss", "listwise_softmax"),
    (RankingSFTConfig, "alpha", 0.6),
    (RankingSFTConfig, "score_form", "geometric_mean"),
    (RankingSFTConfig, "temperature", 0.001),
    (RankingSFTConfig, "ntp", True),
    (RankingSFTConfig, "ntp_reduction", "mean"),
    (RankingSFTConfig, "dp", True),
    (RankingSFTConfig, "ref_model", None),
    (RankingSFTConfig, "teacher_weight", 0.0),
    (RankingSFTConfig, "trainable", "top_blocks"),
    (RankingSFTConfig, "top_blocks", 16),
    # TWOLAR, section 4.1 and Eq. 2: distillation.
    (RankingDistillConfig, "num_train_epochs", 1.0),
    (RankingDistillConfig, "per_device_train_batch_size", 32),
    (RankingDistillConfig, "learning_rate", 5e-5),
    (RankingDistillConfig, "lr_scheduler_type", "constant"),
    (RankingDistillConfig, "warmup_steps", 0),
    (RankingDistillConfig, "weight_decay", 0.0),
    (RankingDistillConfig, "max_grad_norm", 1.0),
    (RankingDistillConfig, "optim", "adamw_torch_fused"),
    (RankingDistillConfig, "trainable", "full"),
    (RankingDistillConfig, "num_documents", 30),
    (RankingDistillConfig, "document_sampling", "first"),
    (RankingDistillConfig, "loss", "ranknet"),
    (RankingDistillConfig, "loss_options", None),
    (RankingDistillConfig, "temperature", 1.0),
    # TSARankLLM, Eq. 1, section 4.1: the score; documents up to 512 tokens less the query's, 256 and 256 for ArguAna.
    (QueryLikelihoodOptions, "document_template", "Document: {document} Query:"),
    (QueryLikelihoodOptions, "prompt_style", "separate_space"),
    (QueryLikelihoodOptions, "aggregation", "mean"),
    (QueryLikelihoodOptions, "max_length", 512),
    (QueryLikelihoodOptions, "max_query_length", 256),
    # TWOLAR, section 3.1 and 4.1: the score.
    (LogitOptions, "template", "Query: {query} Document: {document} Relevant:"),
    (LogitOptions, "strategy", "difference"),
    (LogitOptions, "true_text", "true"),
    (LogitOptions, "false_text", "false"),
    (LogitOptions, "max_length", 500),
    (LogitOptions, "score_text", "<extra_id_10>"),
    # TSARankLLM, section 3.1: 48 negatives of the first 1,000. TWOLAR, section 3.2: a reranker over 100 documents.
    (MiningOptions, "depth", 1000),
    (MiningOptions, "count", 48),
    (MiningOptions, "sampling", "random"),
    (FirstStage, "rerank_depth", 100),
    # TWOLAR, section 3.2, with RankGPT's prompt: all 30 passages in one, cut to 300 words, at temperature 0.
    (ListwiseOptions, "window", None),
    (ListwiseOptions, "passage_words", 300),
    (ListwiseOptions, "prompt", "conversation"),
    (ChatSettings, "temperature", 0.0),
    # PRP (Qin et al., 2024), setwise (Zhuang et al., 2024), FIRST (Reddy et al., 2024).
    (PairwiseOptions, "method", "sliding"),
    (PairwiseOptions, "passes", 10),
    (SetwiseOptions, "method", "heapsort"),
    (SetwiseOptions, "labels", 4),
    (SetwiseOptions, "best", 10),
    (FirstOptions, "window", 20),
    (FirstOptions, "step", None),
    # In-context re-ranking (Chen et al., 2025).
    (InContextOptions, "calibrate", True),
]
ARGUMENTS: list[tuple[Any, str, Any]] = [
    (losses_likelihood.ranking_score, "form", "geometric_mean"),
    (losses_likelihood.next_token_loss, "reduction", "mean"),
    (losses_pairwise.ranknet_loss, "reduction", "mean"),
    (losses_pairwise.margin_mse_loss, "pairs", "all"),
    (losses_listwise.listwise_softmax_loss, "temperature", 1.0),
    (losses_listwise.listnet_loss, "temperature", 1.0),
    (losses_listwise.listnet_loss, "teacher_temperature", 1.0),
    (losses_listwise.kl_to_teacher, "temperature", 1.0),
    # LambdaLoss (Wang et al., 2018), with trec_eval's gain.
    (losses_listwise.lambdarank_loss, "gain", "linear"),
    (losses_listwise.lambdarank_loss, "k", None),
    (losses_listwise.lambdarank_loss, "sigma", 1.0),
    (losses_listwise.lambdarank_loss, "reduction", "sum"),
    # DeAR (Abdallah et al., 2025), by its released code.
    (losses_listwise.dear_loss, "cross_entropy_weight", 0.45),
    (losses_listwise.dear_loss, "ranknet_weight", 0.45),
    (losses_listwise.dear_loss, "kl_weight", 0.1),
    (losses_listwise.dear_loss, "temperature", 2.0),
    (losses_targets.in_batch_ndcg, "k", 10),
    # TWOLAR, section 3.2.
    (list_building.collect_lists, "list_size", 30),
    (list_building.parse_stage, "rerank_depth", 100),
    (list_making.stratified_split, "share", Fraction(1, 20)),
    (listwise_prompt.listwise_messages, "max_words", 300),
    (listwise_prompt.listwise_messages, "prompt", "conversation"),
    # Cormack et al., 2009; Anserini's BM25.
    (first_stages.reciprocal_rank_fusion, "k", 60),
    (BM25Index.build, "k1", 0.9),
    (BM25Index.build, "b", 0.4),
]
OPTIONS: list[tuple[str, str, Any]] = [
    ("lists", "list_size", 30),
    ("lists", "rerank_depth", 100),
    ("lists", "validation_share", 0.05),
    ("mine", "depth", 1000),
    ("mine", "count", 48),
    ("mine", "sampling", "random"),
    ("mine", "rerank_depth", 100),
    ("evaluate", "top_k", 100),
]
RECIPES: dict[str, dict[str, Any]] = {
    "tsarankllm-cpt": {
        "num_train_epochs": 1,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_length": 512,
        "train_eos": True,
    },
    "tsarankllm-sft": {
        "num_train_epochs": 1,
        "learning_rate": 3e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "num_negatives": 48,
        "score_form": "geometric_mean",
        "temperature": 0.001,
        "alpha": 0.6,
        "ntp": True,
        "dp": True,
        "max_length": 160,
        "max_query_length": 32,
        "trainable": "top_blocks",
        "top_blocks": 16,
    },
    "twolar-distill": {
        "num_train_epochs": 1,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "loss": "ranknet",
        "num_documents": 30,
        "max_length": 500,
        "trainable": "full",
    },
}
# Rows an update on the eight processes that the recipes' first lines name: 256 pairs, and 32 queries each.
PROCESSES, UPDATES = 8, {"tsarankllm-cpt": 256, "tsarankllm-sft": 32, "twolar-distill": 32}
CONFIGS = {"tsarankllm-cpt": CPTConfig, "tsarankllm-sft": RankingSFTConfig, "twolar-distill": RankingDistillConfig}


def default_of(cls: type, name: str) -> Any:
    field = next(one for one in dataclasses.fields(cls) if one.name == name)
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


def recipe(name: str) -> dict[str, Any]:
    path = Path(inspect.getfile(CPTConfig)).parent / "recipes" / f"{name}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def same(found: Any, expected: Any) -> bool:
    """Equal, and a number no truth value."""
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)


@pytest.mark.parametrize(("cls", "name", "value"), FIELDS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_field_has_the_papers_default(cls: type, name: str, value: Any) -> None:
    assert same(default_of(cls, name), value)


@pytest.mark.parametrize(
    ("function", "name", "value"), ARGUMENTS, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_a_function_has_the_papers_default(function: Any, name: str, value: Any) -> None:
    assert same(inspect.signature(function).parameters[name].default, value)


@pytest.mark.parametrize(("command", "name", "value"), OPTIONS)
def test_a_command_has_the_papers_default(command: str, name: str, value: Any) -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    register_commands(commands)
    register_evaluation(commands)
    assert same(commands.choices[command].get_default(name), value)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, values in RECIPES.items() for key in values])
def test_a_recipe_has_the_papers_value(name: str, key: str) -> None:
    assert same(recipe(name)[key], RECIPES[name][key])


@pytest.mark.parametrize("name", UPDATES)
def test_a_recipe_updates_with_as_many_rows_as_the_paper(name: str) -> None:
    values = recipe(name)
    rows = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] * PROCESSES
    assert rows == UPDATES[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_nothing_else_that_the_table_knows(name: str) -> None:
    known = {field for cls, field, _ in FIELDS if cls is CONFIGS[name]}
    apart = {"per_device_train_batch_size"}
    assert set(recipe(name)) & known - apart <= set(RECIPES[name])


@pytest.mark.parametrize("cls", [CPTConfig, RankingSFTConfig, RankingDistillConfig])
def test_a_configuration_keeps_the_defaults_when_it_is_made(cls: type, tmp_path: Path) -> None:
    made = cls(output_dir=str(tmp_path), use_cpu=True)
    for owner, name, value in FIELDS:
        if owner is cls:
            found = getattr(made, name)
            assert getattr(found, "value", found) == value, name


@pytest.mark.parametrize("cls", [CPTConfig, RankingConfig, RankingSFTConfig, RankingDistillConfig])
def test_documented_defaults_are_the_defaults(cls: type) -> None:
    text = " ".join((cls.__doc__ or "").split())
    documented = re.findall(r"(\w+) \(`[^)]*?\*optional\*, defaults to `([^`]*)`\)", text)
    documented += re.findall(r"- `(\w+)`: Defaults to `([^`]*)`", text)
    assert len(documented) >= 2
    for name, value in documented:
        found = default_of(cls, name)
        shown = {"True": True, "False": False, "None": None}.get(value, value.strip('"'))
        if name != "bf16":
            assert found == (
                float(shown) if isinstance(found, float) else int(shown) if type(found) is int else shown
            ), name

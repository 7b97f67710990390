"""The module in training: its values are the ranker's own scores, and only query positions reach the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank.ranking_engine import gathered_log_probs
from modeling_tsarank.trainers.collators import pad_pairs
from modeling_tsarank.trainers.ranking_module import token_log_probs


@pytest.mark.parametrize("architecture", ["llama", "bloom", "gpt2", "qwen3"])
def test_values_are_the_scores_of_predict(
    architecture: str, make_ranker: Any, make_trainer: Any, first_batch: Any
) -> None:
    """Right padding without an attention mask gives the scores of unpadded pairs."""
    ranker = make_ranker(architecture=architecture)
    trainer = make_trainer("sft", ranker=ranker, trainable="lora")
    batch = first_batch(trainer)
    pairs = [(row["query"], document) for row in batch["rows"] for document in row["documents"]]
    values = trainer.model(**pad_pairs(batch, range(len(pairs)), 3))
    scores = trainer.pair_scores(values, batch)
    one_by_one = np.array([ranker.predict(pair) for pair in pairs])
    assert np.abs(scores.detach().numpy() - one_by_one).max() < 1e-5


@pytest.mark.parametrize("kind", ["twolar", "twolar_t5"])
def test_twolar_scores(kind: str, make_ranker: Any, make_trainer: Any, first_batch: Any) -> None:
    ranker = make_ranker(kind, sharpen=False)
    trainer = make_trainer("distill", ranker=ranker, trainable="lora")
    batch = first_batch(trainer)
    pairs = [(row["query"], document) for row in batch["rows"] for document in row["documents"]]
    values = trainer.model(**pad_pairs(batch, range(len(pairs)), 0))
    assert set(values) == {"scores"}
    assert np.abs(values["scores"].detach().numpy() - ranker.predict(pairs)).max() < 1e-5


def test_only_query_positions_reach_the_head(make_trainer: Any, first_batch: Any) -> None:
    trainer = make_trainer("sft", trainable="top_blocks")
    batch = first_batch(trainer)
    seen: list[int] = []
    head = trainer.ranker.backbone.lm_head
    head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1].numel()))
    trainer.training_step(trainer.model, batch)
    # Once for the model and once for the reference.
    assert seen == [int(batch["query_lengths"].sum())] * 2


@pytest.mark.parametrize("part", ["lora", "top_blocks", "full"])
def test_activation_checkpointing_changes_no_gradient(
    part: str, make_trainer: Any, first_batch: Any, perturb: Any, gradients: Any
) -> None:
    found = []
    for checkpointing in (False, True):
        trainer = make_trainer("sft", trainable=part, chunk_tokens=60)
        perturb(trainer)
        if checkpointing:
            trainer.model.activation_checkpointing_enable()
            assert trainer.ranker.backbone.is_activation_checkpointing
        trainer.training_step(trainer.model, first_batch(trainer))
        found.append(gradients(trainer))
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-5), name


def test_a_frozen_trunk_keeps_no_graph_under_checkpointing(make_trainer: Any, first_batch: Any) -> None:
    trainer = make_trainer("sft", trainable="top_blocks")
    trainer.model.activation_checkpointing_enable()
    outputs: list[Any] = []
    blocks = trainer.ranker.backbone.model.layers
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    trainer.model.train()
    trainer.model(**pad_pairs(first_batch(trainer), range(3), 3))
    needs = [(value[0] if isinstance(value, tuple) else value).requires_grad for value in outputs]
    assert needs == [False, False, True, True]


def test_log_probs_of_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 70, generator=generator) * 5
    targets = torch.randint(0, 70, (50,), generator=generator)
    assert torch.allclose(token_log_probs(logits, targets), gathered_log_probs(logits, targets, chunk=7))
    assert token_log_probs(logits.double(), targets).dtype == torch.float64
    assert token_log_probs(logits.bfloat16(), targets).dtype == torch.float32


def test_training_does_not_touch_the_ranker_configuration(make_ranker: Any, make_trainer: Any) -> None:
    ranker = make_ranker()
    before = ranker.config.to_dict()
    trainer = make_trainer("sft", ranker=ranker, trainable="lora", max_steps=1)
    trainer.train()
    assert ranker.config.to_dict() == before

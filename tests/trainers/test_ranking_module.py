"""The module in training: its values are the ranker's own scores, and only query positions reach the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_scoring import gathered_log_probs
from modeling_tsarank.trainers.collators import pad_pairs
from modeling_tsarank.trainers.mixture import pair_scores
from modeling_tsarank.trainers.ranking_module import PASS_TOKENS, plan_passes, token_log_probs


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
    scores = pair_scores(ranker, values, batch)
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
    # Once for the model and once for the reference, however many passes they take.
    assert sum(seen) == 2 * int(batch["query_lengths"].sum())


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


PARTS = {
    "lora": {"trainable": "lora"},
    "lora in top blocks": {"trainable": "lora", "lora_top_blocks": 2},
    "top_blocks": {"trainable": "top_blocks", "top_blocks": 2},
    "full": {"trainable": "full"},
}


@pytest.mark.parametrize("kind", ["sft", "distill"])
@pytest.mark.parametrize("part", sorted(PARTS))
def test_passes_of_like_length_change_no_value_and_no_gradient(
    kind: str,
    part: str,
    make_ranker: Any,
    make_trainer: Any,
    first_batch: Any,
    perturb: Any,
    gradients: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every length a pass of its own, against one padded pass; in float64, with the penalty's reference."""
    monkeypatch.setitem(PASS_TOKENS, "cpu", 0)
    found = []
    for split in (False, True):
        ranker = make_ranker("tsarank" if kind == "sft" else "twolar").double()
        trainer = make_trainer(kind, ranker=ranker, **PARTS[part])
        perturb(trainer)
        trainer.module.splits_by_length = split
        batch = first_batch(trainer)
        assert len(set(batch["lengths"].tolist())) > 1
        runs: list[int] = []
        handle = ranker.backbone.model.layers[-1].register_forward_hook(lambda *_, runs=runs: runs.append(1))
        trainer.training_step(trainer.model, batch)
        handle.remove()
        found.append((trainer._last_batch[1], gradients(trainer), len(runs)))
    (values, one, few), (others, other, many) = found
    assert many > few
    assert values.keys() == others.keys()
    for name, value in values.items():
        torch.testing.assert_close(others[name], value, rtol=1e-9, atol=1e-12)
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-7, atol=1e-10)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(0, 20))
def test_no_plan_is_cheaper(lengths: list[int], overhead: int) -> None:
    def cost(passes: list[list[int]]) -> int:
        return sum(len(rows) * max(lengths[i] for i in rows) + overhead for rows in passes)

    passes = plan_passes(lengths, overhead)
    assert sorted(i for rows in passes for i in rows) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # Every way to cut the sorted rows.
    for cuts in range(2 ** (len(order) - 1)):
        other: list[list[int]] = [[order[0]]]
        for n, i in enumerate(order[1:]):
            if cuts >> n & 1:
                other.append([])
            other[-1].append(i)
        assert cost(passes) <= cost(other)

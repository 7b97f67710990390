"""Distillation for both families: the loss that is named, lists of uneven length, and that it learns."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.modeling_twolar import TwolarModel
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
from modeling_tsarank.trainers.losses import OBJECTIVES


FAMILIES = ["tsarank", "twolar", "twolar_t5"]
FAST_LEARNERS = {("top_blocks", "tsarank"), ("lora", "twolar"), ("full", "twolar_t5")}


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_ranknet_of_predicted_scores(
    family: str, make_ranker: Any, make_trainer: Any, first_batch: Any
) -> None:
    """TWOLAR's Eq. 2 with its sign put right, written out, for lists of three to seven documents."""
    ranker = make_ranker(family, sharpen=False)
    trainer = make_trainer("distill", ranker=ranker, temperature=0.5)
    batch = first_batch(trainer, 5)
    losses = []
    for row in batch["rows"]:
        scores = [float(ranker.predict((row["query"], document))) / 0.5 for document in row["documents"]]
        order = row["permutation"]
        pairs = [
            math.log1p(math.exp(scores[worse] - scores[better]))
            for place, better in enumerate(order)
            for worse in order[place + 1 :]
        ]
        losses.append(sum(pairs) / len(pairs))
    expected = sum(losses) / len(losses)
    for chunk_tokens in (0, 60):
        trainer.args.chunk_tokens = chunk_tokens
        assert trainer.training_step(trainer.model, batch).item() == pytest.approx(expected, rel=1e-5)


def test_teacher_temperature_divides_the_teachers_scores(
    make_ranker: Any, make_trainer: Any, first_batch: Any, distill_rows: list[Any]
) -> None:
    """A temperature of 0.25 is the loss on scores four times as large."""
    larger = [{**row, "teacher_scores": [4 * score for score in row["teacher_scores"]]} for row in distill_rows]
    found = []
    for rows, temperature in ((larger, 1.0), (distill_rows, 0.25), (distill_rows, 1.0)):
        options = {"loss": "dear", "teacher_temperature": temperature}
        trainer = make_trainer("distill", rows=rows, ranker=make_ranker("twolar"), **options)
        found.append(trainer.training_step(trainer.model, first_batch(trainer)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert abs(found[2] - found[0]) > 0.01


RANKING = [name for name, objective in OBJECTIVES.items() if not objective.linear]
# One part of each family in every run of the tests, the other combinations among the slow ones.
LEARNERS = [
    pytest.param(part, family, marks=() if (part, family) in FAST_LEARNERS else pytest.mark.slow)
    for part in ("lora", "top_blocks", "full")
    for family in FAMILIES
]


@pytest.mark.parametrize(("part", "family"), LEARNERS)
def test_it_learns_a_teachers_order(
    part: str, family: str, make_ranker: Any, make_trainer: Any, distill_rows: list[Any]
) -> None:
    trainer = make_trainer(
        "distill",
        ranker=make_ranker(family, sharpen=False),
        eval_rows=distill_rows,
        trainable=part,
        learning_rate=2e-3,
        num_train_epochs=8,
        temperature=0.2,
        chunk_tokens=0,
        logging_steps=50,
    )
    before = trainer.evaluate()
    weights = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.05
    assert after["eval_pairwise_accuracy"] > before["eval_pairwise_accuracy"] + 0.1
    for name, parameter in trainer.model.named_parameters():
        # T5's score is read at the first decoder step, whose self-attention has one position to look at: its weight
        # is 1 whatever query and key are, so that they have no gradient but rounding errors.
        idle = family == "twolar_t5" and re.search(r"decoder.*SelfAttention\.(q|k|relative)", name)
        if not (idle and parameter.requires_grad):
            assert torch.equal(parameter, weights[name]) != parameter.requires_grad, name


@pytest.mark.slow
@pytest.mark.parametrize("loss", RANKING)
def test_every_loss_falls(loss: str, make_ranker: Any, make_trainer: Any, distill_rows: list[Any]) -> None:
    ranker = make_ranker("twolar", sharpen=False)
    trainer = make_trainer(
        "distill", ranker=ranker, eval_rows=distill_rows, loss=loss, learning_rate=2e-3, num_train_epochs=6
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_in_batch_ndcg"] > before["eval_in_batch_ndcg"]


def test_options_reach_the_loss(make_ranker: Any, make_trainer: Any, first_batch: Any) -> None:
    found = []
    for options in (None, {"reduction": "sum"}, '{"reduction": "sum"}'):
        trainer = make_trainer("distill", ranker=make_ranker("twolar"), loss_options=options)
        found.append(trainer.training_step(trainer.model, first_batch(trainer)).item())
    assert found[1] == found[2] > found[0] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"loss_options": {"margin": 1}}, "does not take the options {'margin': 1}"),
        ({"loss_options": {"reduction": "max"}}, "reduction"),
        ({"loss_options": "reduction"}, "loss_options must be a JSON object"),
        ({"temperature": 0}, "temperature must be a number above 0"),
        ({"num_documents": 1}, "num_documents is 1"),
        ({"document_sampling": "best"}, "unknown document_sampling"),
    ],
)
def test_bad_configuration(change: dict[str, Any], message: str, make_trainer: Any) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer("distill", **change)


def test_a_loss_without_its_targets_is_an_error_before_training(make_trainer: Any, distill_rows: list[Any]) -> None:
    rows = [{name: row[name] for name in ("query", "documents", "permutation")} for row in distill_rows]
    with pytest.raises(InputError, match="the loss listnet needs teacher_scores"):
        make_trainer("distill", rows=rows, loss="listnet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"permutation": [0, 0, 1]}, r"row 2: permutation\[1\]: 0 is repeated"),
        ({"permutation": [0, 1, 3]}, r"permutation\[2\]: 3 is out of range"),
        ({"teacher_scores": [1.0, float("nan"), 0.0]}, "expected a finite number"),
        ({"labels": [1.0]}, "expected one for each of 3 documents"),
    ],
)
def test_bad_rows_stop_before_training(
    change: dict[str, Any], message: str, make_trainer: Any, distill_rows: list[Any]
) -> None:
    three = distill_rows[5]
    assert len(three["documents"]) == 3
    with pytest.raises(InputError, match=message):
        make_trainer("distill", rows=[distill_rows[0], {**three, **change}])


@pytest.mark.parametrize("family", FAMILIES)
def test_final_folder_and_name_as_model(
    family: str, make_ranker: Any, make_trainer: Any, distill_rows: list[Any], tmp_path: Path
) -> None:
    """What was saved can be given by name to the next training, which finds its family."""
    trainer = make_trainer("distill", ranker=make_ranker(family, sharpen=False), trainable="lora", max_steps=2)
    trainer.train()
    trainer.save_model()
    pairs = [("bread oven", "yeast flour"), ("ship", "pilot")]
    scores = trainer.model.predict(pairs)
    folder = trainer.args.output_dir
    args = RankingDistillConfig(str(tmp_path / "next"), use_cpu=True, trainable="lora")
    following = RankingDistillTrainer(folder, args, distill_rows)
    assert type(following.ranker) is (TSARankModel if family == "tsarank" else TwolarModel)
    assert np.abs(following.model.predict(pairs) - scores).max() < 1e-5

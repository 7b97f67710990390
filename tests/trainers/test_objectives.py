"""Objectives by name: any mixture against plain loops in float64, a new one in one function, and wrong names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loss_references
import pytest
import torch
from torch import Tensor

from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers import losses_listwise
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.losses import OBJECTIVES
from modeling_tsarank.trainers.objectives import objective, parse_objectives
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.ranking_trainer import RankingTrainer
from modeling_tsarank.trainers.script_utils import parse_arguments
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.training_record import settings


def query_logits(backbone: Any, ids: Tensor, count: int) -> Tensor:
    """log p over the vocabulary at the query's tokens of one unpadded sequence."""
    return backbone(input_ids=ids[None]).logits[0, -count - 1 : -1].log_softmax(-1)


def mixture_by_loops(trainer: Any, start: Any, batch: Any, weights: dict[str, float], temperature: float) -> Tensor:
    """RankNet, softmax cross-entropy, next-token prediction and penalty, one document after the other."""
    pair, total = 0, torch.zeros((), dtype=torch.float64)
    rows = batch["token_ids"].split(batch["lengths"].tolist())
    for group, size in enumerate(batch["group_sizes"].tolist()):
        likelihoods, scores, divergences = [], [], []
        for _ in range(size):
            count = int(batch["query_lengths"][pair])
            now = query_logits(trainer.ranker.backbone, rows[pair], count)
            with torch.no_grad():
                old = query_logits(start, rows[pair], count)
            likelihoods.append(sum(now[i, token] for i, token in enumerate(rows[pair][-count:].tolist())) / count)
            scores.append(likelihoods[-1] / temperature)
            divergences += list((old.exp() * (old - now)).sum(-1))
            pair += 1
        order = batch["rows"][group]["permutation"]
        positives = [i for i in range(size) if batch["labels"][group, i] > 0]
        negatives = [i for i in range(size) if i not in positives]
        pairs = [(order[i], order[j]) for i in range(size) for j in range(i + 1, size)]
        terms = {
            "ranknet": sum(torch.log1p(torch.exp(scores[j] - scores[i])) for i, j in pairs) / len(pairs),
            "listwise_softmax": sum(
                torch.logsumexp(torch.stack([scores[k] for k in (i, *negatives)]), 0) - scores[i] for i in positives
            )
            / max(1, len(positives))
            * bool(negatives),
            "next_token": -sum(likelihoods[i] for i in positives) / max(1, len(positives)),
            "penalty": sum(divergences) / len(divergences),
        }
        total = total + sum(weight * terms[name] for name, weight in weights.items()) / len(batch["group_sizes"])
    return total


@pytest.mark.parametrize("chunk_tokens", [0, 60])
@pytest.mark.parametrize("part", ["full", "top_blocks"])
@pytest.mark.parametrize(
    "weights",
    [
        {"ranknet": 0.6, "next_token": 0.2, "penalty": 0.2},
        {"listwise_softmax": 0.5, "penalty": 2.0},
        {"next_token": 1.0},
        {"next_token": 0.7, "penalty": 0.3},
    ],
    ids=lambda weights: "+".join(weights),
)
def test_any_mixture_equals_plain_loops_and_so_does_its_gradient(
    weights: dict[str, float],
    part: str,
    chunk_tokens: int,
    make_ranker: Any,
    make_trainer: Any,
    first_batch: Any,
    perturb: Any,
    gradients: Any,
) -> None:
    ranker = make_ranker("tsarank", dtype=torch.float64, sharpen=False)
    given = [f"{name}:{weight}" for name, weight in weights.items()]
    trainer = make_trainer(
        "distill", ranker=ranker, trainable=part, objectives=given, temperature=0.5, chunk_tokens=chunk_tokens
    )
    start = make_ranker("tsarank", dtype=torch.float64, sharpen=False).backbone
    perturb(trainer)
    batch = first_batch(trainer, 5)
    expected = mixture_by_loops(trainer, start, batch, weights, 0.5)
    expected.backward()
    by_loops = gradients(trainer)
    loss = trainer.training_step(trainer.model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, value in gradients(trainer).items():
        torch.testing.assert_close(value, by_loops[name], rtol=1e-9, atol=1e-12, msg=name)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected.item(), rel=1e-12)
    noted = trainer._averages("train")
    assert sum(weight * noted[f"{name}_loss"] for name, weight in weights.items()) == pytest.approx(loss.item())


def test_the_reference_is_there_only_for_the_penalty(make_ranker: Any, make_trainer: Any) -> None:
    for objectives, used in ((["ranknet:1"], False), (["ranknet:1", "penalty:0.1"], True)):
        trainer = make_trainer("distill", ranker=make_ranker(), objectives=objectives)
        assert (trainer.model.reference is not None) == used


@pytest.mark.parametrize(("objectives", "passes"), [(["next_token:1"], 1), (["next_token:1", "ranknet:1"], 2)])
def test_a_batch_in_chunks_is_run_twice_only_for_losses_that_compare_documents(
    objectives: list[str], passes: int, make_ranker: Any, make_trainer: Any, first_batch: Any
) -> None:
    trainer = make_trainer("distill", ranker=make_ranker(), objectives=objectives, chunk_tokens=60)
    batch = first_batch(trainer)
    calls: list[int] = []
    trainer.model.register_forward_hook(lambda *_: calls.append(1))
    trainer.training_step(trainer.model, batch)
    chunks = len(trainer._plan(batch)[0])
    assert chunks > 1
    assert len(calls) == passes * chunks


def test_fine_tuning_takes_any_ranking_loss(make_trainer: Any, first_batch: Any) -> None:
    """With one positive every order of the negatives is right, so RankNet is the mean over its pairs with them."""
    trainer = make_trainer("sft", loss="ranknet", alpha=1.0, temperature=0.5)
    batch = first_batch(trainer, 3)
    loss = trainer.training_step(trainer.model, batch).item()
    expected = []
    for row in batch["rows"]:
        pairs = [(row["query"], document) for document in row["documents"]]
        positive, *negatives = trainer.ranker.predict(pairs) / 0.5
        expected.append(sum(torch.nn.functional.softplus(torch.tensor(n - positive)) for n in negatives) / 3)
    assert loss == pytest.approx(float(sum(expected)) / 3, rel=1e-4)


# ---- a new one -------------------------------------------------------------------------------------


@pytest.fixture
def toy() -> Iterator[str]:
    """An objective that pulls the score of every document towards its label."""

    @objective("toy_regression", "squared error of scores and labels", needs=("labels",))
    def toy_regression(scores: Tensor, labels: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        errors = torch.where(mask, (scores - scale * labels) ** 2, torch.zeros_like(scores))
        return (errors.sum(dim=1) / mask.sum(dim=1)).mean()

    yield "toy_regression"
    del OBJECTIVES["toy_regression"]


def test_a_new_objective_trains_by_its_name(
    toy: str, make_ranker: Any, distill_rows: list[Any], tmp_path: Path
) -> None:
    args = RankingConfig(
        str(tmp_path / "run"),
        objectives=[f"{toy}:0.9", "ranknet:0.1"],
        objective_options={toy: {"scale": 3.0}},
        trainable="lora",
        learning_rate=5e-3,
        num_train_epochs=3,
        per_device_train_batch_size=8,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        chunk_tokens=100,
    )
    ranker = make_ranker("twolar", sharpen=False)
    trainer = RankingTrainer(ranker, args, distill_rows, eval_dataset=distill_rows)
    scores = [float(ranker.predict((row["query"], text))) for row in distill_rows for text in row["documents"]]
    labels = [label for row in distill_rows for label in row["labels"]]
    sizes = [len(row["documents"]) for row in distill_rows for _ in row["documents"]]
    errors = [(s - 3 * y) ** 2 / n for s, y, n in zip(scores, labels, sizes, strict=True)]
    before = trainer.evaluate()
    assert before[f"eval_{toy}_loss"] == pytest.approx(sum(errors) / len(distill_rows), rel=1e-4)
    trainer.train()
    assert trainer.evaluate()[f"eval_{toy}_loss"] < 0.8 * before[f"eval_{toy}_loss"]


@pytest.mark.parametrize("padded", [False, True])
def test_the_example_in_contributing_works(
    padded: bool, make_ranker: Any, make_trainer: Any, first_batch: Any
) -> None:
    """Its loss equals the loops of its test, and trains by its name and option."""
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    loss, test = re.findall(r"```python\n(.*?)```", text[text.index("## A new loss") :], flags=re.DOTALL)[:2]
    names = {**vars(losses_listwise), "ref": loss_references, "pytest": pytest}
    try:
        exec(loss, names)
        exec(test, names)
        names["test_squared_hinge_equals_equation"]((3, 4), padded)
        options = {"squared_hinge": {"margin": 0.5}}
        weights = ["squared_hinge:0.8", "next_token:0.2"]
        trainer = make_trainer("distill", ranker=make_ranker(), objectives=weights, objective_options=options)
        assert trainer.training_step(trainer.model, first_batch(trainer)).item() > 0
    finally:
        OBJECTIVES.pop("squared_hinge", None)


# ---- naming them -----------------------------------------------------------------------------------


def test_objectives_come_from_the_command_line_or_a_config(tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(
        "objectives: [lambdarank:0.8, penalty]\nobjective_options: {lambdarank: {k: 5}}\nscore_form: mean_log_prob\n"
    )
    common = ["--output_dir", str(tmp_path), "--use_cpu"]
    (args,) = parse_arguments([RankingConfig], [*common, "--config", str(config)], "test", "")
    assert args.weights() == {"lambdarank": 0.8, "penalty": 1.0}
    assert args.options_of("lambdarank") == {"k": 5}
    assert args.default_family == "query_likelihood"
    line = ["--objectives", "listwise_softmax:0.6", "next_token:0.2", "penalty:0.2"]
    options = ["--objective_options", '{"next_token": {"reduction": "sum"}}']
    (args,) = parse_arguments([RankingConfig], [*common, *line, *options], "test", "")
    assert args.weights() == {"listwise_softmax": 0.6, "next_token": 0.2, "penalty": 0.2}
    assert args.options_of("next_token") == {"reduction": "sum"}
    assert args.evaluation_figures()[:3] == ["listwise_softmax_loss", "next_token_loss", "penalty_loss"]


def test_a_record_holds_the_settings_that_have_an_effect(tmp_path: Path) -> None:
    common = {"output_dir": str(tmp_path), "use_cpu": True}
    found = settings(RankingDistillConfig(**common, temperature=0.1))
    assert found["temperature"] == 0.1
    assert {"num_documents", "loss"} <= found.keys()
    assert not {"num_negatives", "objectives"} & found.keys()
    found = settings(RankingSFTConfig(**common, alpha=1.0))
    assert {"alpha", "num_negatives", "loss", "temperature"} <= found.keys()
    assert not {"num_documents", "ntp_reduction", "teacher_temperature"} & found.keys()
    found = settings(RankingSFTConfig(**common, objectives=["ranknet:1"]))
    assert found["objectives"] == ["ranknet:1"]
    assert not {"alpha", "dp", "ntp", "loss"} & found.keys()


def test_weights_in_any_form() -> None:
    assert parse_objectives(["ranknet"]) == {"ranknet": 1.0}
    assert parse_objectives({"ranknet": 2, "penalty": "0.5"}) == {"ranknet": 2.0, "penalty": 0.5}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("distill", {"objectives": ["ranket:1"]}, "unknown loss 'ranket'; did you mean ranknet?"),
        ("distill", {"objectives": ["ranknet:0"]}, "the weight of ranknet must be a positive number, got '0'"),
        ("distill", {"objectives": ["ranknet:much"]}, "the weight of ranknet must be a positive number, got 'much'"),
        ("distill", {"objectives": ["ranknet:nan"]}, "must be a positive number"),
        ("distill", {"objectives": ["ranknet:1", "ranknet:2"]}, "ranknet is given twice"),
        ("distill", {"objectives": []}, "give at least one"),
        ("distill", {"objective_options": {"dear": {}}}, "'dear' is not in the objectives ranknet"),
        ("distill", {"objective_options": {"ranknet": 3}}, "ranknet must have a JSON object"),
        ("distill", {"objective_options": {"ranknet": {"margin": 1}}}, "does not take the options {'margin': 1}"),
        ("distill", {"ref_model": "x"}, "the objectives do not include penalty"),
        ("sft", {"objectives": ["ranknet:1"], "alpha": 0.5}, "objectives replace alpha"),
        ("sft", {"objectives": ["dear:1"]}, "the loss dear needs teacher_scores, but the rows have labels"),
    ],
)
def test_wrong_objectives_are_named(kind: str, change: dict[str, Any], message: str, make_trainer: Any) -> None:
    with pytest.raises(InputError) as caught:
        make_trainer(kind, **change)
    assert message in str(caught.value)


@pytest.mark.parametrize("change", [{"objectives": ["penalty"]}, {"score_form": "geometric_mean"}])
def test_token_values_need_query_likelihood(change: dict[str, Any], make_ranker: Any, make_trainer: Any) -> None:
    with pytest.raises(ModelError, match="needs a ranker that scores query tokens"):
        make_trainer("distill", ranker=make_ranker("twolar"), **change)

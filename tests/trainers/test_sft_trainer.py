"""Mixed-loss fine-tuning: the loss of Eq. 5 written out, the penalty's zero, what moves, and that it learns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loss_references import with_scores

from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.ranking_errors import InputError, ModelError, NonFiniteScoreError


PARTS = ["lora", "top_blocks", "full"]


def full_distributions(ranker: Any, batch: Any) -> list[torch.Tensor]:
    """log p over the vocabulary at each pair's query tokens, one unpadded pair at a time, in float64."""
    result = []
    rows = batch["token_ids"].split(batch["lengths"].tolist())
    for ids, count in zip(rows, batch["query_lengths"].tolist(), strict=True):
        with torch.no_grad():
            logits = ranker.backbone(input_ids=ids[None]).logits[0].double()
        result.append(logits[-count - 1 : -1].log_softmax(-1))
    return result


def written_out_loss(trainer: Any, batch: Any, start: list[torch.Tensor]) -> dict[str, float]:
    """Eq. 2 to 5 with plain loops over the batch's groups."""
    args = trainer.args
    now = full_distributions(trainer.ranker, batch)
    rows = batch["token_ids"].split(batch["lengths"].tolist())
    pair, terms = 0, {"rank": [], "teacher": [], "ntp": [], "dp": []}
    for size in batch["group_sizes"].tolist():
        scores, divergences = [], []
        for place in range(size):
            count = int(batch["query_lengths"][pair])
            targets = rows[pair][-count:].tolist()
            log_probs = [float(now[pair][i][token]) for i, token in enumerate(targets)]
            if place == 0:
                ntp = -sum(log_probs)
                terms["ntp"].append(ntp / count if args.ntp_reduction == "mean" else ntp)
            mean = sum(log_probs) / count
            forms = {
                "mean_log_prob": mean,
                "sum_log_prob": sum(log_probs),
                "geometric_mean": math.exp(mean),
                "product": math.exp(sum(log_probs)),
            }
            scores.append(forms[args.score_form] / args.temperature)
            for old, new in zip(start[pair], now[pair], strict=True):
                divergences.append(float((old.exp() * (old - new)).sum()))
            pair += 1
        top = max(scores)
        normalizer = top + math.log(sum(math.exp(score - top) for score in scores))
        terms["rank"].append(normalizer - scores[0])
        if args.teacher_weight:
            given = batch["teacher_scores"][len(terms["teacher"])][:size].double() / args.teacher_temperature
            shares = zip(given.softmax(0).tolist(), scores, strict=True)
            terms["teacher"].append(sum(share * (normalizer - score) for share, score in shares))
        terms["dp"].append(sum(divergences) / len(divergences))
    means = {name: sum(values) / len(values) for name, values in terms.items() if values}
    ranking = (1 - args.teacher_weight) * means["rank"] + args.teacher_weight * means.get("teacher", 0)
    rest = (means["ntp"] if args.ntp else 0) + (means["dp"] if args.dp else 0)
    return {**means, "loss": args.alpha * ranking + (1 - args.alpha) * rest}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"score_form": "geometric_mean", "temperature": 0.001, "alpha": 0.3},
        {"score_form": "sum_log_prob", "temperature": 2.0, "ntp_reduction": "sum"},
        {"score_form": "product", "ntp": False},
        {"dp": False, "alpha": 0.9},
        {"alpha": 1.0},
        {"alpha": 0.0, "trainable": "lora"},
        {"trainable": "full"},
        {"teacher_weight": 0.3, "teacher_temperature": 0.05},
        {"teacher_weight": 1.0, "dp": False},
    ],
    ids=str,
)
def test_loss_is_the_mixture_written_out(
    changes: dict[str, Any], make_trainer: Any, sft_rows: list[Any], first_batch: Any, perturb: Any
) -> None:
    rows = [dict(row) for row in sft_rows]
    rows[1] = {**rows[1], "negatives": rows[1]["negatives"][:1]}
    if "teacher_weight" in changes:
        rows = [with_scores(row) for row in rows]
    trainer = make_trainer("sft", rows=rows, allow_fewer_negatives=True, **changes)
    batch = first_batch(trainer, 3)
    assert batch["group_sizes"].tolist() == [4, 2, 4]
    start = full_distributions(trainer.ranker, batch)
    perturb(trainer)
    expected = written_out_loss(trainer, batch, start)
    for chunk_tokens in (0, 60):
        trainer.args.chunk_tokens = chunk_tokens
        assert trainer.training_step(trainer.model, batch).item() == pytest.approx(expected["loss"], rel=1e-5)
    noted = trainer._averages("train")
    names = {"listwise_softmax": "rank", "listnet": "teacher", "next_token": "ntp", "penalty": "dp"}
    for name, term in names.items():
        assert (f"{name}_loss" in noted) == (name in trainer.args.weights())
        if name in trainer.args.weights():
            assert noted[f"{name}_loss"] == pytest.approx(expected[term], rel=1e-5, abs=1e-6)


def test_a_teacher_alone_makes_the_model_rank_as_it_does(make_trainer: Any, sft_rows: list[Any]) -> None:
    """With a teacher against the labels, and its word alone, the labelled document comes last."""
    rows = [
        {**row, "positive_scores": [0.0] * len(row["positives"]), "negative_scores": [1.0] * len(row["negatives"])}
        for row in sft_rows
    ]
    options = {"teacher_weight": 1.0, "teacher_temperature": 0.05, "alpha": 1.0, "trainable": "full"}
    trainer = make_trainer("sft", rows=rows, max_steps=40, learning_rate=3e-3, **options)
    trainer.train()
    accuracies = [entry["ranking_accuracy"] for entry in trainer.state.log_history if "ranking_accuracy" in entry]
    assert sum(accuracies[-5:]) / 5 < 0.1


def test_a_teacher_needs_its_scores(make_trainer: Any, sft_rows: list[Any]) -> None:
    with pytest.raises(InputError, match="the loss listnet needs teacher_scores, but the rows have labels"):
        make_trainer("sft", rows=sft_rows, teacher_weight=0.5)
    rows = [with_scores(row) for row in sft_rows]
    rows[2]["negative_scores"] = rows[2]["negative_scores"][:1]
    with pytest.raises(InputError, match=r"row 3: negative_scores: expected one for each of \d+ documents, got 1"):
        make_trainer("sft", rows=rows, teacher_weight=0.5)
    rows[2] = with_scores(sft_rows[2]) | {"positive_scores": [float("nan")] * len(rows[2]["positives"])}
    with pytest.raises(InputError, match=r"row 3: teacher_scores\[0\]: expected a finite number"):
        make_trainer("sft", rows=rows)


@pytest.mark.parametrize("chunk_tokens", [0, 60])
@pytest.mark.parametrize("part", PARTS)
def test_penalty_and_its_gradient_are_exactly_zero_at_the_start(
    part: str, chunk_tokens: int, make_trainer: Any, first_batch: Any, gradients: Any, perturb: Any
) -> None:
    trainer = make_trainer("sft", trainable=part, chunk_tokens=chunk_tokens)
    batch = first_batch(trainer)
    trainer.training_step(trainer.model, batch)
    assert trainer._averages("train")["penalty_loss"] == 0.0
    with_penalty = gradients(trainer)
    trainer.args.dp, reference, trainer.model.reference = False, trainer.model.reference, None
    trainer.training_step(trainer.model, batch)
    without = gradients(trainer)
    assert all(torch.equal(with_penalty[name], without[name]) for name in without)
    # Once the model has moved, neither is zero.
    trainer.args.dp, trainer.model.reference = True, reference
    trainer._averages("train")
    perturb(trainer)
    trainer.training_step(trainer.model, batch)
    assert trainer._averages("train")["penalty_loss"] > 0


@pytest.mark.parametrize("part", PARTS)
def test_every_trained_parameter_moves_and_every_other_stays(part: str, make_ranker: Any, make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable=part, max_steps=3, chunk_tokens=100)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert not any(name.startswith("reference.") for name in trained)


def test_lora_touches_only_the_named_modules(make_ranker: Any, make_trainer: Any) -> None:
    ranker = make_ranker()
    before = {name: value.clone() for name, value in ranker.backbone.state_dict().items()}
    trainer = make_trainer("sft", ranker=ranker, trainable="lora", lora_target_modules=["v_proj"], max_steps=3)
    trainer.train()
    trainer.save_model()
    after = TSARankModel.from_pretrained(trainer.args.output_dir).backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{i}.self_attn.v_proj.weight" for i in range(4)}


def test_frozen_bfloat16_weights_stay_bit_identical(make_trainer: Any) -> None:
    for part in ("lora", "top_blocks"):
        trainer = make_trainer("sft", trainable=part, frozen_dtype="bfloat16", max_steps=3, chunk_tokens=60)
        before = {name: value.clone() for name, value in trainer.model.named_parameters()}
        assert {value.dtype for value in before.values()} == {torch.float32, torch.bfloat16}
        trainer.train()
        for name, parameter in trainer.model.named_parameters():
            assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("part", PARTS)
def test_it_learns_a_separable_set(part: str, make_ranker: Any, make_trainer: Any, sft_rows: list[Any]) -> None:
    trainer = make_trainer(
        "sft",
        ranker=make_ranker(sharpen=False),
        eval_rows=sft_rows,
        trainable=part,
        learning_rate=5e-3,
        num_train_epochs=8,
        chunk_tokens=0,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.2
    assert after["eval_ranking_accuracy"] > max(before["eval_ranking_accuracy"], 0.9)
    assert after["eval_in_batch_ndcg"] > before["eval_in_batch_ndcg"]
    log = [entry for entry in trainer.state.log_history if "listwise_softmax_loss" in entry]
    assert len(log) == trainer.state.global_step
    assert {"loss", "next_token_loss", "penalty_loss", "ranking_accuracy", "in_batch_ndcg"} <= log[0].keys()


def test_final_folder_ranks_like_the_trained_model(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", max_steps=4)
    trainer.train()
    pairs = [("bread oven", "yeast and flour"), ("ship", "the pilot climbs aboard")]
    scores = trainer.model.predict(pairs)
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert np.abs(TSARankModel.from_pretrained(folder).predict(pairs) - scores).max() < 1e-5
    assert {path.name for path in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # The lengths of training are not those of use.
    assert TSARankModel.from_pretrained(folder).options.max_query_length == 30


def test_adapter_alone(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", max_steps=1, merge_adapter=False)
    trainer.train()
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert not (folder / "config.json").exists()


def test_a_reference_can_be_named(make_ranker: Any, make_trainer: Any, first_batch: Any, tmp_path: Path) -> None:
    make_ranker(architecture="qwen3").save_pretrained(tmp_path / "other")
    trainer = make_trainer("sft", trainable="lora", ref_model=str(tmp_path / "other"))
    batch = first_batch(trainer)
    trainer.training_step(trainer.model, batch)
    start = full_distributions(TSARankModel.from_pretrained(tmp_path / "other"), batch)
    expected = written_out_loss(trainer, batch, start)["dp"]
    assert expected > 1e-3
    assert trainer._averages("train")["penalty_loss"] == pytest.approx(expected, rel=1e-4)


def test_training_lengths_cut_the_document(make_trainer: Any, first_batch: Any) -> None:
    trainer = make_trainer("sft", max_length=14, max_query_length=2)
    batch = first_batch(trainer)
    assert int(batch["lengths"].max()) == 14
    assert int(batch["query_lengths"].max()) == 2
    assert trainer.ranker.options.max_length == 120


# ---- what goes wrong -------------------------------------------------------------------------------


def test_another_family_is_refused(make_ranker: Any, make_trainer: Any) -> None:
    with pytest.raises(ModelError, match=r"needs a ranker that scores query tokens \(TSARankModel\), got TwolarModel"):
        make_trainer("sft", ranker=make_ranker("twolar"))
    with pytest.raises(ModelError, match="needs a ranking model, got LlamaForCausalLM"):
        make_trainer("sft", ranker=make_ranker().backbone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": []}, "row 2: negatives: no document has the label 0"),
        ({"negatives": ["bread yeast", "x", "y"], "positives": ["bread yeast"]}, "has the text of a positive"),
        ({"negatives": ["x"]}, "expected at least 3, got 1"),
        ({"positives": [" "]}, r"documents\[0\]: the document is empty"),
        ({"query": ""}, "query: the text is empty"),
    ],
)
def test_bad_rows_stop_before_training(
    change: dict[str, Any], message: str, make_trainer: Any, sft_rows: list[Any]
) -> None:
    rows = [sft_rows[0], {**sft_rows[1], **change}, sft_rows[2]]
    with pytest.raises(InputError, match=message):
        make_trainer("sft", rows=rows)


def test_one_row_is_refused(make_trainer: Any, sft_rows: list[Any]) -> None:
    with pytest.raises(InputError, match="the training data have 1 row; training needs at least 2"):
        make_trainer("sft", rows=sft_rows[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be a number above 0"),
        ({"alpha": 1.5}, "alpha must be between 0 and 1"),
        ({"teacher_weight": 2}, "teacher_weight must be between 0 and 1, got 2"),
        ({"teacher_temperature": 0}, "teacher_temperature must be a number above 0"),
        ({"alpha": 0.0, "ntp": False}, "nothing is left to train on"),
        ({"num_negatives": 0}, "num_negatives must be a whole number from 1"),
        ({"score_form": "median"}, "unknown score_form 'median'"),
        ({"ntp_reduction": "max"}, "unknown ntp_reduction"),
        ({"trainable": "head"}, "unknown trainable 'head'"),
        ({"top_blocks": 0}, "top_blocks must be a whole number from 1"),
        ({"top_blocks": 9}, "top_blocks must be between 1 and 4"),
        ({"chunk_tokens": -1}, "chunk_tokens must be a whole number from 0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be a number from 0 to below 1"),
        ({"frozen_dtype": "int8"}, "unknown frozen_dtype"),
        ({"ref_model": "x", "dp": False}, "ref_model was given, but the objectives do not include"),
        ({"max_length": 20, "max_query_length": 30}, "max_query_length"),
    ],
)
def test_bad_configuration(change: dict[str, Any], message: str, make_trainer: Any) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer("sft", **change)


@pytest.mark.parametrize("chunk_tokens", [0, 60])
def test_nan_stops_with_the_batch_saved_and_no_checkpoint(chunk_tokens: int, make_trainer: Any) -> None:
    trainer = make_trainer(
        "sft", trainable="top_blocks", chunk_tokens=chunk_tokens, save_strategy="steps", save_steps=2, max_steps=6
    )
    step = trainer.training_step
    calls: list[int] = []

    def spoiled(model: Any, inputs: Any, items: Any = None) -> Any:
        calls.append(1)
        if len(calls) == 4:
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad)[0, 0] = float("nan")
        return step(model, inputs, items)

    trainer.training_step = spoiled
    with pytest.raises(NonFiniteScoreError, match="the loss became nan at step 4; the batch was saved to"):
        trainer.train()
    folder = Path(trainer.args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "failed_batch-step4-process0.json"]
    record = json.loads((folder / "failed_batch-step4-process0.json").read_text())
    assert record["step"] == 4
    assert len(record["groups"]) == 4
    group = record["groups"][0]
    assert len(group["scores"]) == len(group["documents"]) == 4
    # Not every one: what attention makes of a NaN depends on the processor's kernel.
    assert any(map(math.isnan, group["scores"]))
    assert isinstance(group["query"], str)
    assert math.isnan(record["losses"]["listwise_softmax_loss"])


def test_infinite_gradient_stops_before_the_weights_change(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="top_blocks", max_steps=2)
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(NonFiniteScoreError, match="the norm of the gradient became"):
        trainer.train()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    record = json.loads((Path(trainer.args.output_dir) / "failed_batch-step1-process0.json").read_text())
    assert len(record["groups"]) == 4

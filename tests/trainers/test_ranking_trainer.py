"""One mean over all queries: accumulation and processes change nothing; and evaluation, logs, epochs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from process_training import train_together
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from modeling_tsarank.trainers.gradient_cache import plan_chunks


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters() if value.requires_grad}


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("kind", ["sft", "distill"])
def test_accumulation_changes_nothing(
    kind: str, make_trainer: Any, sft_rows: list[Any], distill_rows: list[Any], perturb: Any
) -> None:
    """6 queries at once, in 3 steps of 2, and in 2 uneven ones (4 + 2), groups and chunks of uneven size."""
    rows = (sft_rows if kind == "sft" else distill_rows)[:12]
    if kind == "sft":
        rows = [{**row, "negatives": row["negatives"][: 1 + i % 3]} for i, row in enumerate(rows)]
    found = []
    for batch_size, steps in ((6, 1), (2, 3), (1, 6)):
        extra = {"allow_fewer_negatives": True} if kind == "sft" else {}
        trainer = make_trainer(
            kind,
            rows=rows,
            trainable="top_blocks",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            num_train_epochs=2,
            chunk_tokens=50,
            **extra,
        )
        perturb(trainer)
        trainer.train()
        assert trainer.state.global_step == 4
        found.append((trained(trainer), losses(trainer.state.log_history)))
    for weights, log in found[1:]:
        assert log == pytest.approx(found[0][1], rel=1e-4)
        for name, value in weights.items():
            assert torch.allclose(value, found[0][0][name], atol=1e-4), name


def test_an_incomplete_last_update_is_a_mean_as_well(
    make_trainer: Any, sft_rows: list[Any], gradients: Any, first_batch: Any
) -> None:
    """3 + 1 queries accumulated: each counts a quarter, not the last one a half."""
    trainer = make_trainer("sft", trainable="top_blocks")
    whole = first_batch(trainer, 4)
    loss = trainer.training_step(trainer.model, whole, torch.tensor(4))
    expected = gradients(trainer)
    parts = [first_batch(trainer, 3), first_batch(trainer, 1, start=3)]
    count = trainer._get_num_items_in_batch(parts, torch.device("cpu"))
    assert int(count) == 4
    total = sum(trainer.training_step(trainer.model, part, count) for part in parts)
    assert total.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, value in gradients(trainer).items():
        assert torch.allclose(value, expected[name], rtol=1e-4, atol=1e-5), name


def test_two_processes_give_the_weights_of_one(
    make_ranker: Any, make_trainer: Any, sft_rows: list[Any], distill_rows: list[Any], tmp_path: Path
) -> None:
    """Gloo, DistributedDataParallel, uneven numbers of chunks per process, and accumulation on top.

    Tolerance: losses 1e-4 relative, weights 1e-4 absolute after 2 or 3 steps of 1e-3, that is at most 5 % of the way
    each could have moved; float32 rounding differs, and AdamW's first steps magnify it where gradients are tiny.
    """
    shared = {"learning_rate": 1e-3, "num_train_epochs": 1, "chunk_tokens": 70, "adam_epsilon": 1e-6, "top_blocks": 2}
    # Everything `make_trainer` would choose otherwise is said here, so that both runs have one configuration.
    scores = {"score_form": "mean_log_prob", "temperature": 0.1, "max_length": 120}
    sft = {**shared, **scores, "trainable": "top_blocks", "num_negatives": 3, "allow_fewer_negatives": True}
    uneven = [{**row, "negatives": row["negatives"][: 1 + 3 * (i % 2)]} for i, row in enumerate(sft_rows[:12])]
    cases = [
        ("sft", "tsarank", uneven, sft),
        ("sft", "tsarank", uneven, {**sft, "trainable": "lora", "score_form": "geometric_mean", "temperature": 0.01}),
        ("distill", "twolar_t5", distill_rows[:12], {**shared, "trainable": "lora"}),
    ]
    jobs, expected = [], []
    for i, (kind, family, rows, config) in enumerate(cases):
        folder, output = tmp_path / f"start-{i}", tmp_path / f"run-{i}"
        make_ranker(family, sharpen=False).save_pretrained(folder)
        output.mkdir()
        common = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
        sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1 + i % 2}
        config = {**common, **config, **sizes, "output_dir": str(output)}
        jobs.append({"kind": kind, "folder": str(folder), "rows": rows, "config": config, "output": str(output)})
        ranker = type(make_ranker(family)).from_pretrained(folder)
        trainer = make_trainer(kind, ranker=ranker, rows=rows, **{**config, "per_device_train_batch_size": 4})
        trainer.train()
        expected.append((trained(trainer), trainer.state.log_history))
    train_together(jobs, 2)
    for job, (weights, history) in zip(jobs, expected, strict=True):
        record = json.loads((Path(job["output"]) / "log.json").read_text())
        assert record["processes"] == 2
        assert record["settles_at_exit"], "a Gloo thread may abort a process that ends at once"
        assert losses(record["log"]) == pytest.approx(losses(history), rel=1e-4)
        name = "ranking_accuracy" if job["kind"] == "sft" else "pairwise_accuracy"
        figures = [[entry[name] for entry in log if name in entry] for log in (record["log"], history)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-5)
        found = load_file(Path(job["output"]) / "trained.safetensors")
        assert found.keys() == weights.keys()
        for name, value in found.items():
            # The self-attention of T5's only decoder step has one position to look at: query and key get no gradient
            # but rounding errors, which AdamW blows up to steps of full size. They change no score.
            if not re.search(r"decoder.*SelfAttention\.(q|k|relative)", name):
                assert torch.allclose(value, weights[name], atol=1e-4), name


def test_processes_of_the_test_above_do_have_uneven_chunks(make_trainer: Any, sft_rows: list[Any]) -> None:
    rows = [{**row, "negatives": row["negatives"][: 1 + 3 * (i % 2)]} for i, row in enumerate(sft_rows[:12])]
    trainer = make_trainer("sft", rows=rows, num_negatives=3, allow_fewer_negatives=True)
    counts = []
    for i in range(12):
        batch = trainer.data_collator([trainer.train_dataset[i]])
        counts.append(len(plan_chunks(batch["lengths"].tolist(), batch["query_lengths"].tolist(), 70)))
    assert len(set(counts)) > 1


def test_evaluation_has_every_figure_and_repeats_itself(make_trainer: Any, sft_rows: list[Any]) -> None:
    trainer = make_trainer("sft", eval_rows=sft_rows[:10], trainable="lora", per_device_eval_batch_size=5)
    first, second = trainer.evaluate(), trainer.evaluate()
    names = ["loss", "listwise_softmax_loss", "next_token_loss", "penalty_loss", "ranking_accuracy", "in_batch_ndcg"]
    assert [first[f"eval_{name}"] for name in names] == [second[f"eval_{name}"] for name in names]
    mixed = 0.6 * first["eval_listwise_softmax_loss"] + 0.4 * (
        first["eval_next_token_loss"] + first["eval_penalty_loss"]
    )
    assert first["eval_loss"] == pytest.approx(mixed, rel=1e-5)
    # In one chunk or many, of given rows or of those named at the start.
    trainer.args.chunk_tokens = 30
    third = trainer.evaluate(sft_rows[:10], metric_key_prefix="test")
    assert third["test_loss"] == pytest.approx(first["eval_loss"], rel=1e-5)


def test_evaluation_of_several_sets(make_trainer: Any, distill_rows: list[Any]) -> None:
    trainer = make_trainer("distill", eval_rows={"a": distill_rows[:4], "b": distill_rows[4:8]}, trainable="lora")
    metrics = trainer.evaluate()
    assert {"eval_a_loss", "eval_b_loss", "eval_a_pairwise_accuracy", "eval_b_in_batch_ndcg"} <= metrics.keys()


def test_best_checkpoint_and_early_stopping(make_ranker: Any, make_trainer: Any, sft_rows: list[Any]) -> None:
    trainer = make_trainer(
        "sft",
        ranker=make_ranker(sharpen=False),
        eval_rows=sft_rows,
        trainable="lora",
        learning_rate=5e-3,
        num_train_epochs=20,
        save_strategy="epoch",
        eval_strategy="epoch",
        metric_for_best_model="eval_ranking_accuracy",
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert trainer.state.epoch < 20
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == Path(trainer.args.output_dir)
    assert best.is_dir()
    assert trainer.evaluate()["eval_ranking_accuracy"] == pytest.approx(trainer.state.best_metric)
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)


def test_every_epoch_draws_anew(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", num_train_epochs=3, chunk_tokens=0)
    seen: list[list[tuple[int, tuple[str, ...]]]] = []
    step = trainer.training_step

    def noting(model: Any, inputs: Any, items: Any = None) -> Any:
        seen.append([(row["row"], tuple(row["documents"])) for row in inputs["rows"]])
        return step(model, inputs, items)

    trainer.training_step = noting
    trainer.train()
    epochs = [[row for batch in seen[i : i + 6] for row in batch] for i in (0, 6, 12)]
    assert [sorted(row for row, _ in epoch) for epoch in epochs] == [list(range(24))] * 3
    assert len({tuple(row for row, _ in epoch) for epoch in epochs}) == 3
    drawn = [dict(epoch) for epoch in epochs]
    assert sum(drawn[0][i] != drawn[1][i] for i in range(24)) > 15


def test_workers_give_the_same_training(make_trainer: Any) -> None:
    found = []
    for workers in (0, 1):
        trainer = make_trainer("sft", trainable="lora", max_steps=3, dataloader_num_workers=workers)
        trainer.train()
        found.append(trained(trainer))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_clipping_acts_once_per_update(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(
        "distill", trainable="lora", per_device_train_batch_size=2, gradient_accumulation_steps=3, chunk_tokens=60
    )
    calls: list[int] = []
    clip = trainer._clip_grad_norm
    monkeypatch.setattr(trainer, "_clip_grad_norm", lambda model: (calls.append(1), clip(model))[1])
    trainer.train()
    assert len(calls) == trainer.state.global_step == 4

"""Checkpoints: whole or not there, resumed bit for bit, never overwritten by another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.checkpointing import TRAINED_WEIGHTS, UNFINISHED, whole_checkpoints
from modeling_tsarank.trainers.trainable import export_adapter


PAIRS = [("bread oven", "yeast and flour"), ("ship", "the pilot climbs aboard")]
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "cosine",
    "chunk_tokens": 150,
}


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.module.ranker.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("sft", {"trainable": "lora", "lora_dropout": 0.3}),
        ("sft", {"trainable": "top_blocks", "frozen_dtype": "bfloat16", "gradient_accumulation_steps": 2}),
        ("sft", {"trainable": "full"}),
        ("distill", {"trainable": "lora", "document_sampling": "random", "num_documents": 3}),
    ],
    ids=str,
)
def test_resuming_gives_the_uninterrupted_run_bit_for_bit(
    kind: str, changes: dict[str, Any], make_trainer: Any, sft_rows: list[Any], distill_rows: list[Any], tmp_path: Path
) -> None:
    """From the middle of an epoch and from its end, with dropout in front of the LoRA matrices."""
    settings = {**SETTINGS, **changes}
    # 3 updates an epoch.
    settings["rows"] = (sft_rows if kind == "sft" else distill_rows)[:12]
    settings["per_device_train_batch_size"] = 4 // settings.get("gradient_accumulation_steps", 1)
    settings |= {"save_steps": 1, "checkpoint_ranker": False}
    whole = make_trainer(kind, **settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    expected = weights(whole)
    log = [entry for entry in whole.state.log_history if "loss" in entry]
    assert whole.state.global_step == 6
    for step in (2, 3):
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = make_trainer(kind, **settings, output_dir=str(tmp_path / f"from-{step}"))
        torch.manual_seed(999)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        found = weights(resumed)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        resumed_log = [entry for entry in resumed.state.log_history if "loss" in entry]
        assert [entry["loss"] for entry in resumed_log] == [entry["loss"] for entry in log]


def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(make_trainer: Any, tmp_path: Path) -> None:
    whole = make_trainer("sft", trainable="lora", **SETTINGS, output_dir=str(tmp_path / "whole"))
    whole.train()
    killed = make_trainer("sft", trainable="lora", **SETTINGS, output_dir=str(tmp_path / "killed"))
    step = killed.training_step

    def stopping(model: Any, inputs: Any, items: Any = None) -> Any:
        if killed.state.global_step == 5:
            raise KeyboardInterrupt
        return step(model, inputs, items)

    killed.training_step = stopping
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    # What a kill in the middle of writing would leave.
    (tmp_path / "killed" / UNFINISHED / "checkpoint-6").mkdir(parents=True)
    (tmp_path / "killed" / "checkpoint-8").mkdir()
    assert [path.name for path in whole_checkpoints(tmp_path / "killed")] == ["checkpoint-2", "checkpoint-4"]
    again = make_trainer("sft", trainable="lora", **SETTINGS, output_dir=str(tmp_path / "killed"))
    again.train(resume_from_checkpoint=True)
    found, expected = weights(again), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (tmp_path / "killed" / UNFINISHED).exists()
    assert "checkpoint-8" in [path.name for path in whole_checkpoints(tmp_path / "killed")]


def test_another_run_does_not_overwrite_checkpoints(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2})
    trainer.train()
    file = Path(trainer.args.output_dir) / "checkpoint-2" / TRAINED_WEIGHTS
    before = file.read_bytes()
    other = make_trainer("sft", trainable="lora", seed=7, **{**SETTINGS, "max_steps": 2})
    with pytest.raises(InputError, match="already holds checkpoint-2 of another run"):
        other.train()
    assert file.read_bytes() == before


def test_a_failure_while_writing_leaves_the_old_checkpoint(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, "max_steps": 4}
    first = make_trainer("sft", trainable="lora", **settings)
    first.train()
    folder = Path(first.args.output_dir)
    before = {path.name: path.read_bytes() for path in (folder / "checkpoint-4").iterdir() if path.is_file()}
    second = make_trainer("sft", trainable="lora", **{**settings, "learning_rate": 0.1})

    def full_disk(output_dir: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(second, "_save_optimizer_and_scheduler", full_disk)
    with pytest.raises(OSError, match="No space left"):
        second.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    after = {path.name: path.read_bytes() for path in (folder / "checkpoint-4").iterdir() if path.is_file()}
    assert after == before


def test_old_checkpoints_are_deleted_up_to_the_limit(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", save_total_limit=2, **SETTINGS)
    trainer.train()
    names = [path.name for path in whole_checkpoints(trainer.args.output_dir)]
    assert names == ["checkpoint-10", "checkpoint-12"]


def test_checkpoints_load_as_rankers(make_ranker: Any, make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer("sft", trainable="top_blocks", **{**SETTINGS, "max_steps": 2})
    trainer.train()
    scores = trainer.model.predict(PAIRS)
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-2"
    assert np.array_equal(TSARankModel.from_pretrained(checkpoint).predict(PAIRS), scores)
    small = make_trainer(
        "sft",
        trainable="top_blocks",
        checkpoint_ranker=False,
        output_dir=str(tmp_path / "s"),
        save_steps=1,
        save_strategy="steps",
        max_steps=1,
    )
    small.train()
    assert not (tmp_path / "s" / "checkpoint-1" / "config.json").exists()
    assert (tmp_path / "s" / "checkpoint-1" / TRAINED_WEIGHTS).is_file()
    lora = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2}, output_dir=str(tmp_path / "lora"))
    lora.train()
    export_adapter(make_ranker(), tmp_path / "lora" / "checkpoint-2" / "adapter", tmp_path / "merged")
    merged = TSARankModel.from_pretrained(tmp_path / "merged").predict(PAIRS)
    assert np.abs(merged - lora.model.predict(PAIRS)).max() < 1e-5


def test_wrong_checkpoints_are_errors(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2})
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="is no whole checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path))
    trainer.train()
    checkpoint = str(Path(trainer.args.output_dir) / "checkpoint-2")
    other = make_trainer("sft", trainable="top_blocks", output_dir=str(tmp_path / "other"))
    with pytest.raises(InputError, match="was written with other trained parameters"):
        other.train(resume_from_checkpoint=checkpoint)
    wider = make_trainer("sft", trainable="lora", lora_r=4, output_dir=str(tmp_path / "wider"))
    with pytest.raises(InputError, match="has the shape"):
        wider.train(resume_from_checkpoint=checkpoint)
    (Path(checkpoint) / TRAINED_WEIGHTS).unlink()
    same = make_trainer("sft", trainable="lora", output_dir=str(tmp_path / "same"))
    with pytest.raises(InputError, match=f"holds no {TRAINED_WEIGHTS}"):
        same.train(resume_from_checkpoint=checkpoint)


def test_no_card_is_written(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2})
    trainer.train()
    trainer.create_model_card()
    trainer.save_model()
    assert not list(Path(trainer.args.output_dir).rglob("README.md"))

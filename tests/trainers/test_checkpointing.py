"""Checkpoints: whole or not there, resumed bit for bit, never overwritten by another run."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import begin
from peft import PeftModel
from short_trainings import SHORT, weights

from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers import checkpointing
from modeling_tsarank.trainers.checkpoint_files import (
    LOCK_NAME,
    asked_checkpoint,
    checkpoint_folders,
    checkpoint_problem,
    only_training_in,
)
from modeling_tsarank.trainers.checkpointing import TRAINED_WEIGHTS, UNFINISHED
from modeling_tsarank.trainers.early_checks import output_folder
from modeling_tsarank.trainers.stopping import StoppedError, stopping


PAIRS = [("bread oven", "yeast and flour"), ("ship", "the pilot climbs aboard")]
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "cosine",
    "chunk_tokens": 150,
}


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
    assert [path.name for path in checkpoint_folders(tmp_path / "killed")] == ["checkpoint-2", "checkpoint-4"]
    again = make_trainer("sft", trainable="lora", **SETTINGS, output_dir=str(tmp_path / "killed"))
    again.train(resume_from_checkpoint=True)
    found, expected = weights(again), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not (tmp_path / "killed" / UNFINISHED).exists()
    assert "checkpoint-8" in [path.name for path in checkpoint_folders(tmp_path / "killed")]


def test_another_run_does_not_overwrite_checkpoints(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2})
    trainer.train()
    file = Path(trainer.args.output_dir) / "checkpoint-2" / TRAINED_WEIGHTS
    before = file.read_bytes()
    other = make_trainer("sft", trainable="lora", seed=7, **{**SETTINGS, "max_steps": 2})
    with pytest.raises(InputError, match="already contains checkpoint-2 of another run"):
        other.train()
    assert file.read_bytes() == before


def test_a_failure_while_writing_leaves_the_old_checkpoint(make_trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, "max_steps": 4}
    first = make_trainer("sft", trainable="lora", **settings)
    first.train()
    folder = Path(first.args.output_dir)
    before = {path.name: path.read_bytes() for path in (folder / "checkpoint-4").iterdir() if path.is_file()}
    second = make_trainer("sft", trainable="lora", **settings)

    def full_disk(output_dir: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(second, "_save_optimizer_and_scheduler", full_disk)
    with pytest.raises(ResourceError, match=r"checkpoint-4 cannot be written to .*: No space left on device; free"):
        second.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    after = {path.name: path.read_bytes() for path in (folder / "checkpoint-4").iterdir() if path.is_file()}
    assert after == before
    assert not (folder / UNFINISHED).exists()


def test_old_checkpoints_are_deleted_up_to_the_limit(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", save_total_limit=2, **SETTINGS)
    trainer.train()
    names = [path.name for path in checkpoint_folders(trainer.args.output_dir)]
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
    base = make_ranker()
    PeftModel.from_pretrained(base.backbone, tmp_path / "lora" / "checkpoint-2" / "adapter")
    assert np.abs(base.predict(PAIRS) - lora.model.predict(PAIRS)).max() < 1e-5


def test_wrong_checkpoints_are_errors(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2})
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="is not a complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path))
    trainer.train()
    checkpoint = str(Path(trainer.args.output_dir) / "checkpoint-2")
    other = make_trainer("sft", trainable="top_blocks", output_dir=str(tmp_path / "other"))
    with pytest.raises(InputError, match='trainable was "lora", now "top_blocks"'):
        other.train(resume_from_checkpoint=checkpoint)
    wider = make_trainer("sft", trainable="lora", lora_r=4, output_dir=str(tmp_path / "wider"))
    for changed in (other, wider):
        with pytest.raises(InputError, match=r"was written with other trained parameters \(.*lora_"):
            changed._load_trained(Path(checkpoint))


@pytest.mark.parametrize("word", ["False", "none", ""])
def test_a_word_for_no_is_a_new_start_and_no_folder(word: Any, make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer("sft", **{**SHORT, "max_steps": 1}, output_dir=str(tmp_path / "run"))
    trainer.args.resume_from_checkpoint = word
    with output_folder(trainer.args):
        trainer.train(resume_from_checkpoint=word)
    with (
        pytest.raises(InputError, match="already contains checkpoint-1 of another run"),
        output_folder(trainer.args),
    ):
        pass
    assert asked_checkpoint("AUTO", tmp_path / "run") is True
    assert asked_checkpoint("auto", tmp_path) is False
    assert asked_checkpoint("./false", tmp_path) == "./false"


@pytest.mark.parametrize("what", ["a link to nothing", "a file", "a link to a folder"])
def test_whatever_has_the_name_of_a_checkpoint_gives_way(what: str, make_trainer: Any, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("kept")
    if what == "a file":
        (run / "checkpoint-1").write_text("x")
    else:
        (run / "checkpoint-1").symlink_to(elsewhere if what == "a link to a folder" else tmp_path / "nothing")
    trainer = make_trainer("sft", **{**SHORT, "max_steps": 1}, output_dir=str(run))
    trainer.train()
    assert not (run / "checkpoint-1").is_symlink()
    assert checkpoint_problem(run / "checkpoint-1") is None
    assert (elsewhere / "kept.txt").read_text() == "kept"
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_a_checkpoint_that_cannot_be_deleted_does_not_stop_the_training(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = shutil.rmtree

    def refuse(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == "checkpoint-1":
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    trainer = make_trainer("sft", **{**SHORT, "max_steps": 3, "save_total_limit": 1})
    trainer.train()
    assert checkpoint_problem(Path(trainer.args.output_dir) / "checkpoint-3") is None
    assert "an old checkpoint" in caplog.text


@pytest.mark.parametrize("moment", ["saving", "evaluating"])
def test_a_signal_while_saving_or_evaluating_leaves_whole_checkpoints_alone(
    moment: str, make_trainer: Any, sft_rows: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real SIGTERM, in the middle of the second checkpoint or of the evaluation after it."""
    calls: list[None] = []

    def signalled(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*args, **kwargs)

        return call

    settings = {**SHORT, "output_dir": str(tmp_path / "run"), "eval_strategy": "steps", "eval_steps": 1}
    trainer = make_trainer("sft", **settings, eval_rows=sft_rows[:4])
    if moment == "saving":
        monkeypatch.setattr(checkpointing, "write_manifest", signalled(checkpointing.write_manifest))
    else:
        trainer.prediction_step = signalled(trainer.prediction_step)
    with pytest.raises(StoppedError), stopping():
        trainer.train()
    monkeypatch.undo()
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left == [f"checkpoint-{step}" for step in range(1, len(left) + 1)]
    assert left
    assert all(checkpoint_problem(tmp_path / "run" / name) is None for name in left)
    again = make_trainer("sft", **settings, eval_rows=sft_rows[:4])
    again.train(resume_from_checkpoint="auto")
    assert again.state.global_step == 3


def test_what_publishes_is_given_or_the_one_that_is_installed(make_trainer: Any, monkeypatch: Any) -> None:
    from modeling_tsarank.hub_cards import trainer_publishing
    from modeling_tsarank.trainers import publishing

    assert publishing.installed_publisher() is trainer_publishing
    asked: list[Any] = []

    class Recorder:
        def write_card(self, trainer: Any) -> None:
            asked.append(("card", trainer))

        def push(self, trainer: Any, message: str | None = None, token: str | None = None) -> str:
            asked.append((message, token, Path(trainer.args.output_dir, "training_run.json").is_file()))
            return "https://hub/commit/1"

    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 1})
    trainer.publisher, trainer.hub_model_id = Recorder(), "org/trained"
    trainer.train()
    trainer.create_model_card()
    assert trainer.push_to_hub("first", token="t") == "https://hub/commit/1"
    assert asked == [("card", trainer), ("first", "t", True)]
    monkeypatch.setattr(publishing, "GROUP", "tsarank.nobody")
    with pytest.raises(ResourceError, match="no publisher of models is installed"):
        publishing.installed_publisher()


def test_no_card_is_written(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2})
    trainer.train()
    trainer.create_model_card()
    trainer.save_model()
    assert not list(Path(trainer.args.output_dir).rglob("README.md"))


# ---- two trainings in one folder -------------------------------------------------------------------


def test_a_second_training_in_the_folder_is_refused_and_names_the_first(make_trainer: Any, tmp_path: Path) -> None:
    def work() -> None:
        with only_training_in(tmp_path / "run"):
            (tmp_path / "locked").touch()
            time.sleep(600)

    trainer = make_trainer("sft", **SHORT, output_dir=str(tmp_path / "run"))
    first = begin(work)
    while not (tmp_path / "locked").exists() and first.is_alive():
        time.sleep(0.01)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"running in .*run \(process {first.pid} on .*, since 20\d\d-"):
            trainer.train()
    assert first.is_alive()
    first.kill()
    first.join()
    # The system drops the lock with the process.
    trainer.train()
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_a_folder_that_nothing_was_written_to_goes_again(tmp_path: Path) -> None:
    with only_training_in(tmp_path / "new" / "run"), only_training_in(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / LOCK_NAME).exists()
    assert not (tmp_path / "new" / "run").exists()
    (tmp_path / "file").write_text("")
    message = r"cannot write to the output folder .*; choose another output_dir"
    with pytest.raises(ResourceError, match=message), only_training_in(tmp_path / "file"):
        pass

"""Checkpoints: whole or not there, resumed bit for bit, never overwritten by another run."""

from __future__ import annotations

import copy
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
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers import checkpointing
from modeling_tsarank.trainers.checkpoint_files import (
    LOCK_NAME,
    MANIFEST,
    asked_checkpoint,
    checkpoint_folders,
    checkpoint_problem,
    newest_whole_checkpoint,
    only_training_in,
    write_manifest,
)
from modeling_tsarank.trainers.checkpointing import TRAINED_WEIGHTS, UNFINISHED
from modeling_tsarank.trainers.early_checks import output_folder
from modeling_tsarank.trainers.resuming import RUN_SETTINGS
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer
from modeling_tsarank.trainers.stopping import StoppedError, stopping
from modeling_tsarank.trainers.training_record import training_record


PAIRS = [("bread oven", "yeast and flour"), ("ship", "the pilot climbs aboard")]
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "cosine",
    "chunk_tokens": 150,
}
# Three updates with a checkpoint of each.
SHORT: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "trainable": "lora",
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "num_negatives": 3,
    "score_form": "mean_log_prob",
    "temperature": 0.1,
    "max_length": 120,
    "max_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
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
    with pytest.raises(InputError, match="already holds checkpoint-2 of another run"):
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
    with pytest.raises(ResourceError, match=r"checkpoint-4 cannot be written to .*: No space left on device; make"):
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
    with pytest.raises(InputError, match="is no whole checkpoint"):
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
        pytest.raises(InputError, match="already holds checkpoint-1 of another run"),
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
    with pytest.raises(ResourceError, match="nothing installed publishes models"):
        publishing.installed_publisher()


def test_no_card_is_written(make_trainer: Any) -> None:
    trainer = make_trainer("sft", trainable="lora", **{**SETTINGS, "max_steps": 2})
    trainer.train()
    trainer.create_model_card()
    trainer.save_model()
    assert not list(Path(trainer.args.output_dir).rglob("README.md"))


# ---- damage ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(make_ranker: Any, sft_rows: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with checkpoints of updates 1 to 3."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {**SHORT, "output_dir": str(folder), "save_total_limit": None}
    RankingSFTTrainer(make_ranker(), RankingSFTConfig(**settings), sft_rows).train()
    return folder


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "altered"])
def test_every_damaged_file_is_noticed_and_auto_takes_the_newest_whole_checkpoint(
    how: str, trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = sorted(
        path.relative_to(trained / "checkpoint-3").as_posix()
        for path in (trained / "checkpoint-3").rglob("*")
        if path.is_file()
    )
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", TRAINED_WEIGHTS} <= set(names)
    for name in names:
        if name == MANIFEST and how == "altered":
            continue
        folder = tmp_path / f"run-{name.replace('/', '-')}"
        shutil.copytree(trained, folder)
        damage(folder / "checkpoint-3" / name, how)
        problem = checkpoint_problem(folder / "checkpoint-3")
        assert problem is not None, name
        caplog.clear()
        assert newest_whole_checkpoint(folder) == folder / "checkpoint-2"
        assert f"checkpoint-3 is not whole ({problem})" in caplog.text
        shutil.rmtree(folder)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        path.write_bytes(content[: len(content) // 2] if how == "cut" else b"")


def test_damage_is_one_line_and_nothing_is_lost(make_trainer: Any, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for number in (1, 2, 3):
        damage(folder / f"checkpoint-{number}" / "optimizer.pt", "missing")
    settings = {**SHORT, "output_dir": str(folder)}
    with pytest.raises(InputError, match=r"checkpoint-3 is no whole checkpoint \(optimizer.pt is missing\)"):
        make_trainer("sft", **settings).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole \(checkpoint-3: optimizer.pt is missing"):
        make_trainer("sft", **settings).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="already holds checkpoint-3 of another run"):
        make_trainer("sft", **settings).train()


def test_a_checkpoint_without_optimizer_on_purpose_is_not_resumed(make_trainer: Any) -> None:
    settings = {**SHORT, "max_steps": 1, "save_only_model": True}
    first = make_trainer("sft", **settings)
    first.train()
    with pytest.raises(InputError, match=r"optimizer.pt is missing, as save_only_model leaves it"):
        make_trainer("sft", **settings).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("version", ["of before run settings", "of other run settings"])
def test_a_checkpoint_of_another_version_is_refused(
    version: str, make_trainer: Any, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "checkpoint-2"
    shutil.copytree(trained / "checkpoint-2", folder)
    recorded = read_json_object(folder / RUN_SETTINGS)
    if version == "of before run settings":
        (folder / RUN_SETTINGS).unlink()
    else:
        write_json(folder / RUN_SETTINGS, {name: value for name, value in recorded.items() if name != "version"})
    write_manifest(folder)
    again = make_trainer("sft", **SHORT, output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError, match="checkpoint-2 was written by another version of tsarank, whose trainings"):
        again.train(resume_from_checkpoint=True)
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 1


# ---- other settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.1}, "learning_rate was 0.001, now 0.1"),
        ({"lr_scheduler_type": "linear"}, 'lr_scheduler_type was "constant", now "linear"'),
        ({"optim": "adafactor"}, 'optim was "adamw_torch_fused", now "adafactor"'),
        ({"weight_decay": 0.1}, "weight_decay was 0.0, now 0.1"),
        ({"seed": 7}, "seed was 42, now 7"),
        ({"alpha": 0.1, "temperature": 0.5}, "alpha was 0.6, now 0.1; temperature was 0.1, now 0.5"),
        ({"num_negatives": 2}, "num_negatives was 3, now 2"),
        ({"bf16": True}, "bf16 was false, now true"),
        ({"per_device_train_batch_size": 2}, "rows in an update .* was 4, now 2"),
        ({"lora_r": 4}, "lora_r was 16, now 4"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last was null, now true"),
        ({"max_length": 100}, "max_length was 120, now 100"),
        ({"rows": 12}, "the training rows are others"),
        ({"max_steps": 2}, "is at update 3 of 3 already, and 2 are asked for: nothing is left to train"),
    ],
    ids=str,
)
def test_resuming_with_other_settings_is_refused_by_name(
    changes: dict[str, Any], message: str, make_trainer: Any, sft_rows: list[Any], trained: Path, tmp_path: Path
) -> None:
    settings = {**SHORT, **changes, "output_dir": str(tmp_path / "run")}
    if "rows" in settings:
        settings["rows"] = sft_rows[: settings["rows"]]
    with pytest.raises(InputError, match=message):
        make_trainer("sft", **settings).train(resume_from_checkpoint=str(trained / "checkpoint-3"))
    assert not list((tmp_path / "run").iterdir())


def test_another_base_model_is_refused(make_ranker: Any, make_trainer: Any, trained: Path, tmp_path: Path) -> None:
    other = make_trainer("sft", ranker=make_ranker(sharpen=False), **SHORT, output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError, match="the weights of the model it starts from are others"):
        other.train(resume_from_checkpoint=str(trained / "checkpoint-3"))


def test_another_tokenizer_is_refused(make_ranker: Any, make_trainer: Any, trained: Path, tmp_path: Path) -> None:
    ranker = make_ranker()
    ranker.tokenizer = copy.deepcopy(ranker.tokenizer)  # all tests share it
    ranker.tokenizer.add_tokens(["bread"])
    other = make_trainer("sft", ranker=ranker, **SHORT, output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"settings: the tokenizer's vocabulary or settings are others\. Resume"):
        other.train(resume_from_checkpoint=str(trained / "checkpoint-3"))


@pytest.mark.parametrize("change", ["weights", "dtype"])
def test_another_base_model_is_refused_where_all_of_it_is_trained(
    change: str, make_ranker: Any, make_trainer: Any, tmp_path: Path
) -> None:
    """All weights are in the checkpoint, and yet the record would name a model that it never started from."""
    settings = {**SHORT, "trainable": "full", "num_negatives": None, "score_form": None, "temperature": None}
    settings = {name: value for name, value in settings.items() if value is not None}
    make_trainer("distill", **settings).train()
    changes = {"sharpen": False} if change == "weights" else {"dtype": torch.bfloat16}
    other = make_trainer("distill", ranker=make_ranker("twolar", **changes), **settings)
    with pytest.raises(InputError, match=r"settings: the weights of the model it starts from are others\. Resume"):
        other.train(resume_from_checkpoint=True)
    make_trainer("distill", **settings).train(resume_from_checkpoint=True)


BEST: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}


def test_other_evaluation_rows_do_not_choose_among_the_checkpoints_of_a_resumed_training(
    make_trainer: Any, sft_rows: list[Any]
) -> None:
    settings = {**SHORT, **BEST}
    make_trainer("sft", **settings, eval_rows=sft_rows[:2]).train()
    for others in (sft_rows[:3], {"a": sft_rows[:2]}):
        changed = {"metric_for_best_model": "a_loss"} if isinstance(others, dict) else {}
        with pytest.raises(InputError, match="the rows or collections that choose the best checkpoint are others"):
            make_trainer("sft", **{**settings, **changed}, eval_rows=others).train(resume_from_checkpoint=True)
    make_trainer("sft", **settings, eval_rows=sft_rows[:2]).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("fate", ["moved", "damaged"])
def test_the_best_checkpoint_is_found_where_the_folder_was_moved_and_not_taken_where_it_is_damaged(
    fate: str, make_trainer: Any, sft_rows: list[Any], tmp_path: Path
) -> None:
    """With a learning rate this high the first checkpoint stays the best."""
    settings = {
        **SHORT,
        **BEST,
        "learning_rate": 0.5,
        "metric_for_best_model": "next_token_loss",
        "eval_rows": sft_rows[:4],
    }
    first = make_trainer("sft", **settings, output_dir=str(tmp_path / "first"))
    first.train()
    assert first.state.best_global_step == 1
    shutil.move(tmp_path / "first", tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "checkpoint-3")
    if fate == "damaged":
        damage(tmp_path / "second" / "checkpoint-1" / TRAINED_WEIGHTS, "cut")
    again = make_trainer("sft", **settings, output_dir=str(tmp_path / "second"))
    again.train(resume_from_checkpoint=True)
    best = tmp_path / "second" / f"checkpoint-{1 if fate == 'moved' else 3}"
    assert again.state.best_model_checkpoint == str(best)
    expected = load_file(best / TRAINED_WEIGHTS)
    assert all(torch.equal(value, weights(again)[f"backbone.{name}"]) for name, value in expected.items())


def test_a_resumed_training_stops_as_early_as_one_that_was_not_interrupted(
    make_trainer: Any, sft_rows: list[Any], tmp_path: Path
) -> None:
    # Nothing moves, and so no evaluation is better than the first.
    settings = {**SHORT, **BEST, "learning_rate": 0.0, "max_steps": 9, "eval_rows": sft_rows[:4]}
    ends = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-3"), True):
        trainer = make_trainer("sft", **settings)
        trainer.add_callback(EarlyStoppingCallback(4))
        trainer.train(resume_from_checkpoint=resume)
        ends.append(trainer.state.global_step)
    assert ends == [5, 5, 5]


def test_a_finished_training_that_is_resumed_takes_no_further_update(make_trainer: Any, trained: Path) -> None:
    """As after a kill while the model was saved; 3 updates end in the middle of an epoch."""
    again = make_trainer("sft", **SHORT)
    again.train(resume_from_checkpoint=str(trained / "checkpoint-3"))
    assert again.state.global_step == 3
    expected = load_file(trained / "checkpoint-3" / TRAINED_WEIGHTS)
    assert all(torch.equal(value, weights(again)[f"backbone.{name}"]) for name, value in expected.items())


def test_a_later_end_is_carried_out_and_recorded(make_trainer: Any, trained: Path, tmp_path: Path) -> None:
    longer = make_trainer("sft", **{**SHORT, "max_steps": 5}, output_dir=str(tmp_path / "run"))
    longer.train(resume_from_checkpoint=str(trained / "checkpoint-3"))
    record = training_record(longer)
    assert (record["steps"], record["resumed_from_step"]) == (5, 3)
    assert record["changed_on_resuming"] == {"steps": [3, 5]}
    # The same batch in other parts, and a finished training once more, are no other training.
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    again = make_trainer("sft", **{**SHORT, **parts}, output_dir=str(tmp_path / "again"))
    again.train(resume_from_checkpoint=str(trained / "checkpoint-3"))
    assert training_record(again)["changed_on_resuming"] is None


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
        with pytest.raises(InputError, match=rf"at work in .*run \(process {first.pid} on .*, since 20\d\d-"):
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
    message = r"cannot write to the output folder .*; name another output_dir"
    with pytest.raises(ResourceError, match=message), only_training_in(tmp_path / "file"):
        pass

"""Resuming: from whole checkpoints alone, with the same settings, rows and model, to the same end."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from short_trainings import SHORT, weights
from transformers import EarlyStoppingCallback

from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.checkpoint_files import (
    MANIFEST,
    checkpoint_problem,
    newest_whole_checkpoint,
    write_manifest,
)
from modeling_tsarank.trainers.checkpointing import TRAINED_WEIGHTS
from modeling_tsarank.trainers.resuming import RUN_SETTINGS
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer
from modeling_tsarank.trainers.training_record import training_record


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
        assert f"checkpoint-3 is incomplete ({problem})" in caplog.text
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
    with pytest.raises(InputError, match=r"checkpoint-3 is not a complete checkpoint \(optimizer.pt is missing\)"):
        make_trainer("sft", **settings).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    with pytest.raises(InputError, match=r"no checkpoint in .* is complete \(checkpoint-3: optimizer.pt is missing"):
        make_trainer("sft", **settings).train(resume_from_checkpoint=True)
    with pytest.raises(InputError, match="already contains checkpoint-3 of another run"):
        make_trainer("sft", **settings).train()


def test_a_checkpoint_without_optimizer_on_purpose_is_not_resumed(make_trainer: Any) -> None:
    settings = {**SHORT, "max_steps": 1, "save_only_model": True}
    first = make_trainer("sft", **settings)
    first.train()
    with pytest.raises(InputError, match=r"optimizer.pt is missing, as with save_only_model"):
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
    with pytest.raises(
        InputError, match="checkpoint-2 was written by another version of tsarank and cannot be resumed"
    ):
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
        ({"per_device_train_batch_size": 2}, "rows per update .* was 4, now 2"),
        ({"lora_r": 4}, "lora_r was 16, now 4"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last was null, now true"),
        ({"max_length": 100}, "max_length was 120, now 100"),
        ({"rows": 12}, "the training rows are different"),
        ({"max_steps": 2}, "is already at update 3 of 3, and 2 are requested: nothing is left to train"),
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
    with pytest.raises(InputError, match="the weights of the model it starts from are different"):
        other.train(resume_from_checkpoint=str(trained / "checkpoint-3"))


def test_another_tokenizer_is_refused(make_ranker: Any, make_trainer: Any, trained: Path, tmp_path: Path) -> None:
    ranker = make_ranker()
    ranker.tokenizer = copy.deepcopy(ranker.tokenizer)  # all tests share it
    ranker.tokenizer.add_tokens(["bread"])
    other = make_trainer("sft", ranker=ranker, **SHORT, output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"settings: the tokenizer's vocabulary or settings are different\. Resume"):
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
    with pytest.raises(InputError, match=r"settings: the weights of the model it starts from are different\. Resume"):
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
        with pytest.raises(InputError, match="the rows or collections that select the best checkpoint are different"):
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

"""Cross-encoder teachers: what they are trained on, that they learn it, and that a stopped training goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from modeling_tsarank.files.writing import write_json
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers import recipe_commands, run_lock
from modeling_tsarank.trainers.checkpoint_files import checkpoint_folders
from modeling_tsarank.trainers.losses import kl_to_teacher, margin_mse_loss
from modeling_tsarank.trainers.recipe_files import RECIPES
from modeling_tsarank.trainers.recipes import cross_encoder
from modeling_tsarank.trainers.recipes.cross_encoder import (
    CrossEncoderPlan,
    ListLoss,
    Lists,
    draw_lists,
    read_plan,
    train_cross_encoder,
)
from modeling_tsarank.trainers.run_lock import only_training_in


@pytest.fixture
def plan(tiny_bert: Path, tmp_path: Path) -> CrossEncoderPlan:
    rows = [
        {
            "query": "bread",
            "documents": [f"bread {word}" for word in ("rye", "oat")] + ["tea"],
            "teacher_scores": [3, 1, -4],
        }
    ] * 12
    labels = [{"query": "tea", "documents": ["tea leaf", "rye", "oat"], "labels": [1, 0, 0]}] * 4
    for name, one in (("scored", rows), ("labelled", labels)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in one))
    lists = (
        {"file": str(tmp_path / "scored.jsonl"), "documents": 3, "margin_weight": 0.1, "passes": 2},
        {"file": str(tmp_path / "labelled.jsonl"), "documents": 2, "scale": 5.0},
    )
    return CrossEncoderPlan(str(tiny_bert), lists, learning_rate=0.01, save_steps=3, bf16=False, max_length=32)


def test_the_loss_of_uneven_lists_in_small_batches_is_kl_and_margins_of_each_list(tiny_bert: Path) -> None:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(tiny_bert), num_labels=1, device="cpu")
    model.eval()
    lists = [["a long text about bread and tea", "rye", "oat"], ["tea", "bread"]]
    targets = [torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 3.0])]
    found = ListLoss(model, 0.5, pairs=2)([["bread", "tea"], lists], targets)
    expected = []
    for query, texts, wanted in zip(("bread", "tea"), lists, targets, strict=True):
        scores = torch.tensor(model.predict([(query, text) for text in texts], activation_fn=torch.nn.Identity()))
        parts = kl_to_teacher(scores[None], wanted[None]), margin_mse_loss(scores[None], wanted[None])
        expected.append(float(parts[0] + 0.5 * parts[1]))
    assert found.item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_every_drawn_list_holds_a_best_document_and_passes_differ() -> None:
    row = {
        "query": "q",
        "documents": [{"title": "", "text": str(n)} for n in range(9)],
        "teacher_scores": [float(n) for n in range(9)],
    }
    drawn = draw_lists([row], Lists("f", passes=5, documents=3, scale=2.0), random.Random(0))
    assert len(drawn) == 5
    assert all("8" in one["documents"] and max(one["label"]) == 16.0 for one in drawn)
    assert len({tuple(one["documents"]) for one in drawn}) > 1
    same = {**row, "teacher_scores": [1.0] * 9}
    assert draw_lists([same], Lists("f"), random.Random(0)) == []


def test_a_stopped_training_goes_on_and_ends_like_one_that_was_not(plan: CrossEncoderPlan, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from transformers import TrainerCallback
    from transformers.trainer_callback import CallbackHandler

    whole = train_cross_encoder(plan, tmp_path / "whole")
    losses = [one["loss"] for one in whole["log"] if "loss" in one]
    assert whole["lists"] == {"1-scored": 24, "2-labelled": 4}
    assert losses

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    original = CallbackHandler.__init__
    with pytest.MonkeyPatch.context() as patch:

        def with_stop(self: Any, callbacks: Any, *others: Any, **named: Any) -> None:
            original(self, [*callbacks, Stop()], *others, **named)

        patch.setattr(CallbackHandler, "__init__", with_stop)
        with pytest.raises(KeyboardInterrupt):
            train_cross_encoder(plan, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model").exists()
    train_cross_encoder(plan, tmp_path / "stopped")
    pairs = [("bread", "bread rye"), ("bread", "tea"), ("tea", "oat")]
    scores = [
        CrossEncoder(str(tmp_path / name / "model"), device="cpu").predict(pairs) for name in ("whole", "stopped")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert scores[0][0] > scores[0][1]


@pytest.mark.parametrize("edited", ["the lists", "the base", "the plan"])
def test_a_folder_begun_with_other_lists_base_or_plan_is_refused(
    plan: CrossEncoderPlan, tmp_path: Path, edited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names stay: what is compared is the content."""
    base = shutil.copytree(plan.base, tmp_path / "base")
    plan = replace(plan, base=str(base))
    monkeypatch.setattr(cross_encoder, "make_model", Mock(side_effect=InterruptedError))
    with pytest.raises(ModelError, match="cannot load"):
        train_cross_encoder(plan, tmp_path / "out")
    write_json(tmp_path / "out" / "settings.json", cross_encoder._settings(plan))
    with pytest.raises(ModelError, match="cannot load"):
        train_cross_encoder(plan, tmp_path / "out")
    if edited == "the plan":
        plan = replace(plan, seed=1)
    else:
        path = tmp_path / "scored.jsonl" if edited == "the lists" else base / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-4] ^= 1
        path.write_bytes(content)
    with pytest.raises(InputError, match="begun with another plan, or the base model or lists have changed"):
        train_cross_encoder(plan, tmp_path / "out")


def test_a_finished_training_is_not_repeated_and_a_damaged_one_ends_as_before(
    plan: CrossEncoderPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(plan, lists=plan.lists[1:], save_steps=2)
    report = train_cross_encoder(plan, tmp_path / "out")
    weights = tmp_path / "out" / "model" / "model.safetensors"
    before = weights.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(cross_encoder, "make_model", Mock(side_effect=AssertionError))
        assert train_cross_encoder(plan, tmp_path / "out") == report
        with only_training_in(tmp_path / "out"):
            patch.setattr(run_lock, "_held", set())  # as in another process
            with pytest.raises(InputError, match="another training is at work"):
                train_cross_encoder(plan, tmp_path / "out")
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    newest = checkpoint_folders(tmp_path / "out" / "checkpoints")[-1]
    os.truncate(newest / "optimizer.pt", 100)
    train_cross_encoder(plan, tmp_path / "out")
    assert weights.read_bytes() == before
    assert "is not the model that was trained" in caplog.text
    assert f"{newest.name} is not whole (optimizer.pt has 100 bytes" in caplog.text


@pytest.mark.parametrize("name", sorted(path.stem for path in (RECIPES / "smollm2_135m").glob("cross_encoder_*.yaml")))
def test_the_shipped_plans_are_understood(name: str, tmp_path: Path) -> None:
    plan = read_plan(RECIPES / "smollm2_135m" / f"{name}.yaml", tmp_path, "elsewhere")
    assert plan.base == "elsewhere"
    assert all(one.file.startswith(str(tmp_path)) for one in plan.sources)


def test_the_command_says_what_is_wrong_with_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.yaml").write_text("base: x\nlists: []\n")
    command = ["cross-encoder", str(tmp_path / "plan.yaml"), "--lists", str(tmp_path), "--output", str(tmp_path / "o")]
    assert recipe_commands.main(command) == 2
    assert "needs lists" in capsys.readouterr().err

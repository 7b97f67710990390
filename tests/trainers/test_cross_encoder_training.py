"""Training of cross-encoders: every part, from a head that exists and from a new one, saved as ordinary folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_classifiers import ENCODERS, save_classifier, word_piece_tokenizer
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from modeling_tsarank import CrossEncoderModel, ModelError, TSARankError, load_ranker
from modeling_tsarank.trainers import distill
from modeling_tsarank.trainers.base_models import load_base_ranker
from modeling_tsarank.trainers.losses import OBJECTIVES
from modeling_tsarank.trainers.objectives import TOKEN_VALUES


PARTS = ("full", "top_blocks", "lora")
PAIRS = [("bread", "yeast dough oven"), ("ship", "harbour pilot"), ("bees?", "flower honey bees dance")]


@pytest.fixture
def save(tmp_path: Path, causal_tokenizer: Any) -> Callable[..., Path]:
    """Saves a tiny cross-encoder."""

    def make(kind: str, name: str = "start") -> Path:
        causal_tokenizer.save_pretrained(tmp_path / "tokenizer")
        sizes = {} if kind in ENCODERS else {"vocab_size": len(causal_tokenizer)}
        return save_classifier(kind, tmp_path / name, tmp_path / "tokenizer", **sizes)

    return make


def own_scores(folder: Path) -> np.ndarray:
    """Of sentence-transformers, whose `CrossEncoder` reads the folder as it reads any other."""
    package = pytest.importorskip("sentence_transformers")
    return package.CrossEncoder(str(folder), device="cpu").predict(PAIRS)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_it_learns_and_its_folder_is_an_ordinary_one(
    kind: str, part: str, save: Any, make_trainer: Any, tmp_path: Path
) -> None:
    start = save(kind)
    ranker = load_base_ranker(start, default_family="true_false_logits")
    assert isinstance(ranker, CrossEncoderModel)
    before = {name: value.clone() for name, value in ranker.backbone.state_dict().items()}
    trainer = make_trainer("distill", ranker=ranker, trainable=part, top_blocks=1, max_steps=60, learning_rate=5e-3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.05
    trainer.save_model()
    folder = tmp_path / "run"
    scores = trainer.ranker.predict(PAIRS)
    np.testing.assert_allclose(load_ranker(folder, device="cpu", dtype="float32").predict(PAIRS), scores, atol=1e-5)
    np.testing.assert_allclose(own_scores(folder), scores, atol=1e-5)
    plain, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    head = "score.weight" if kind == "llama" else "classifier.weight"
    changed = {name for name, value in plain.state_dict().items() if not torch.equal(value, before[name])}
    assert head in changed
    assert ("embed" in " ".join(changed)) == (part == "full")
    if part == "lora":
        adapter = load_ranker(folder / "adapter", device="cpu", dtype="float32")
        np.testing.assert_allclose(adapter.predict(PAIRS), scores, atol=1e-5)
        saved = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert f"base_model.model.{head}" in saved
        assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize("part", ["top_blocks", "lora"])
def test_frozen_weights_in_bfloat16_leave_the_head_in_float32(part: str, save: Any, make_trainer: Any) -> None:
    for kind in ("bert", "llama"):
        ranker = load_base_ranker(save(kind, f"start-{kind}"), default_family="none")
        changes = {"frozen_dtype": "bfloat16", "top_blocks": 1, "max_steps": 1}
        trainer = make_trainer("distill", ranker=ranker, trainable=part, **changes)
        trainer.train()
        heads = [
            weight
            for name, weight in ranker.backbone.named_parameters()
            if weight.requires_grad and "lora" not in name
        ]
        assert heads
        assert {weight.dtype for weight in heads} == {torch.float32}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_of_pointwise_scores(name: str, save: Any, make_trainer: Any) -> None:
    ranker = load_base_ranker(save("llama"), default_family="none")
    if any(map(OBJECTIVES[name].takes, TOKEN_VALUES)):
        with pytest.raises(ModelError, match=f"{name} needs a ranker that scores query tokens") as caught:
            make_trainer("distill", ranker=ranker, loss=name)
        assert "\n" not in str(caught.value)
        return
    trainer = make_trainer("distill", ranker=ranker, loss=name, max_steps=1)
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_the_mixture_of_fine_tuning_says_what_it_needs(save: Any, make_trainer: Any) -> None:
    ranker = load_base_ranker(save("bert"), default_family="none")
    with pytest.raises(ModelError, match="next_token needs a ranker that scores query tokens"):
        make_trainer("sft", ranker=ranker)
    trainer = make_trainer(
        "sft", ranker=ranker, objectives=["listwise_softmax"], score_form="model", max_steps=1, max_length=90
    )
    trainer.train()


@pytest.mark.parametrize("base", ["decoder", "encoder", "bi-encoder"])
def test_a_new_head_on_a_base_without_one(base: str, make_ranker: Any, distill_rows: Any, tmp_path: Path) -> None:
    """Only where the family is named, and the same one for the same seed."""
    folder = tmp_path / "base"
    if base == "decoder":
        ranker = make_ranker("tsarank")
        ranker.backbone.save_pretrained(folder)
        ranker.tokenizer.save_pretrained(folder)
    else:
        AutoModelForMaskedLM.from_config(ENCODERS["bert"]()).save_pretrained(folder)
        word_piece_tokenizer().save_pretrained(folder)
    if base == "bi-encoder":
        modules = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
        (folder / "modules.json").write_text(json.dumps([{"type": name, "path": ""} for name in modules]))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in distill_rows))

    def train(output: str, *arguments: str) -> dict[str, torch.Tensor]:
        common = [
            "--train_data",
            str(tmp_path / "rows.jsonl"),
            "--model_name_or_path",
            str(folder),
            "--max_steps",
            "1",
        ]
        common += ["--save_strategy", "no", "--use_cpu", "true", "--disable_tqdm", "true", "--learning_rate", "1e-3"]
        distill.main([*common, "--output_dir", str(tmp_path / output), *arguments])
        return load_file(tmp_path / output / "model.safetensors")

    first, again = (train(name, "--family", "cross_encoder", "--seed", "7") for name in ("first", "again"))
    other = train("other", "--family", "cross_encoder", "--seed", "8")
    (head,) = (name for name in first if name in ("score.weight", "classifier.weight"))
    assert first[head].shape[0] == 1
    assert torch.equal(first[head], again[head])
    assert not torch.equal(first[head], other[head])
    ranker = load_ranker(tmp_path / "first", device="cpu", dtype="float32")
    assert isinstance(ranker, CrossEncoderModel)
    np.testing.assert_allclose(own_scores(tmp_path / "first"), ranker.predict(PAIRS), atol=1e-5)
    refused = {"encoder": "is an encoder", "bi-encoder": "is a model of sentence-transformers"}
    if base in refused:
        with pytest.raises(TSARankError, match=refused[base]):
            train("without")

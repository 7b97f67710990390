"""What `rank` and `predict` can do beside scoring: fusion, probabilities, thresholds, CrossEncoder's options."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank import InputError, TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.scores.calibration import Calibration
from modeling_tsarank.scores.fusion import FusionSetting
from modeling_tsarank.scores.passages import PassageRanker
from modeling_tsarank.scores.ranking import rank
from modeling_tsarank.trainers.trainable import make_trainable


QUERY = "why does bread rise"
DOCUMENTS = ["Bees dance.", "Bread dough rises because yeast turns sugar into gas.", "A pilot guides a ship.", "Bees"]
FIRST = [3.5, 12.0, -1.0, 3.5]


@pytest.fixture(scope="module")
def model(zoo: Any) -> Any:
    return TwolarModel.from_backbone(str(zoo.folders["llama"]), true_text="true", false_text="false")


@pytest.fixture
def calibration() -> Calibration:
    return Calibration("platt", "none", (0.7, -0.2))


def scaled(values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return (values - values.min()) / (values.max() - values.min())


def test_fused_scores_follow_the_definition(model: Any, tmp_path: Path) -> None:
    own = model.predict([(QUERY, document) for document in DOCUMENTS])
    expected = 0.7 * scaled(own) + 0.3 * scaled(FIRST)
    rows = model.rank(QUERY, DOCUMENTS, first_stage_scores=FIRST, weight=0.3)
    assert [row["corpus_id"] for row in rows] == np.argsort(-expected, kind="stable").tolist()
    np.testing.assert_allclose([row["score"] for row in rows], sorted(expected, reverse=True), atol=1e-6)
    for weight, scores in ((0.0, own), (1.0, np.array(FIRST))):
        rows = model.rank(QUERY, DOCUMENTS, first_stage_scores=FIRST, weight=weight, top_k=3)
        assert [row["corpus_id"] for row in rows] == np.argsort(-scores, kind="stable")[:3].tolist()

    # Reciprocal rank fusion, where equal scores share the best rank.
    ranks = [[1 + sum(other > one for other in scores) for one in scores] for scores in (list(own), FIRST)]
    expected = np.array([0.5 / (60 + a) + 0.5 / (60 + b) for a, b in zip(*ranks, strict=True)])
    FusionSetting(0.5, "rrf").save(tmp_path / "fusion.json")
    rows = model.rank(QUERY, DOCUMENTS, first_stage_scores=FIRST, fusion=tmp_path / "fusion.json")
    assert [row["score"] for row in rows] == pytest.approx(sorted(expected, reverse=True))


def test_rankers_of_lists_and_of_passages_take_the_same_options(model: Any, zoo: Any) -> None:
    lists = load_ranker(str(zoo.folders["llama"]), ranker="pairwise", dtype="float32")
    own = {row["corpus_id"]: row["score"] for row in lists.rank(QUERY, DOCUMENTS)}
    expected = 0.6 * scaled([own[i] for i in range(4)]) + 0.4 * scaled(FIRST)
    rows = rank(lists, QUERY, DOCUMENTS, top_k=2, return_documents=True, first_stage_scores=FIRST, weight=0.4)
    best = np.argsort(-expected, kind="stable")[:2].tolist()
    assert [(row["corpus_id"], row["text"]) for row in rows] == [(i, DOCUMENTS[i]) for i in best]
    rows = rank(PassageRanker(model, "max", 6, 3), QUERY, DOCUMENTS, first_stage_scores=FIRST, weight=1.0)
    assert rows[0]["corpus_id"] == 1
    assert rows[0]["passage"]["text"] in DOCUMENTS[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.3}, "need first_stage_scores"),
        ({"first_stage_scores": FIRST}, "need a weight in"),
        ({"first_stage_scores": FIRST, "weight": 2}, r"must be in \[0, 1\]"),
        ({"first_stage_scores": FIRST[:2], "weight": 0.3}, "must be 4 finite numbers"),
        ({"first_stage_scores": [1, 2, 3, float("nan")], "weight": 0.3}, "must be 4 finite numbers"),
        ({"first_stage_scores": ["1", "2", "3", "4"], "weight": 0.3}, "must be 4 finite numbers"),
        ({"output": "probability"}, "needs a calibration of this ranker"),
        ({"output": "logit"}, "unknown output 'logit'"),
        ({"threshold": float("nan")}, "threshold must be a finite number, got nan"),
        ({"threshold": "0.5"}, "threshold must be a finite number, got '0.5'"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_scoring(model: Any, options: Any, message: str) -> None:
    model.last_stats = {}
    with pytest.raises(InputError, match=message):
        model.rank(QUERY, DOCUMENTS, **options)
    assert model.last_stats == {}


def test_probabilities_and_thresholds(model: Any, calibration: Calibration, caplog: Any) -> None:
    own = model.rank(QUERY, DOCUMENTS)
    expected = [1 / (1 + np.exp(-(0.7 * row["score"] - 0.2))) for row in own]
    rows = model.rank(QUERY, DOCUMENTS, output="probability", calibration=calibration)
    assert [row["corpus_id"] for row in rows] == [row["corpus_id"] for row in own]
    assert [row["probability"] for row in rows] == pytest.approx(expected)
    middle = (expected[1] + expected[2]) / 2
    assert expected[1] > middle > expected[2]
    kept = model.rank(QUERY, DOCUMENTS, threshold=middle, calibration=calibration)
    assert [row["corpus_id"] for row in kept] == [row["corpus_id"] for row in own[:2]]
    # The probability is of the model's own score, whatever is mixed in.
    fused = model.rank(QUERY, DOCUMENTS, threshold=middle, calibration=calibration, first_stage_scores=FIRST, weight=1)
    assert {row["corpus_id"] for row in fused} == {row["corpus_id"] for row in own[:2]}
    with pytest.raises(InputError, match=r"a probability is in \[0, 1\]"):
        model.rank(QUERY, DOCUMENTS, threshold=2, calibration=calibration)

    caplog.set_level(logging.WARNING)
    middle = (own[0]["score"] + own[1]["score"]) / 2
    assert [row["corpus_id"] for row in model.rank(QUERY, DOCUMENTS, threshold=middle)] == [own[0]["corpus_id"]]
    assert "applies to raw scores" in caplog.text


def test_a_calibration_travels_with_its_ranker_and_no_further(
    model: Any, zoo: Any, calibration: Calibration, tmp_path: Path
) -> None:
    folder = tmp_path / "calibrated"
    ranker = TwolarModel.from_backbone(str(zoo.folders["llama"]))
    assert ranker.calibration is None
    ranker.calibration = calibration
    ranker.save_pretrained(folder)
    loaded = load_ranker(str(folder), dtype="float32")
    assert loaded.calibration == calibration
    assert "probability" in loaded.rank(QUERY, DOCUMENTS, output="probability")[0]
    assert load_ranker(str(folder), max_length=300).calibration == calibration
    assert load_ranker(str(folder), strategy="softmax").calibration is None, "these are other scores"
    make_trainable(loaded, "full")
    assert loaded.calibration is None, "training changes the scores"
    (folder / "calibration.json").write_text('{"method": "platt"}')
    with pytest.raises(InputError, match=r"calibration\.json: .*expected a file of `tsarank calibrate`"):
        load_ranker(str(folder))


def test_the_options_of_the_real_cross_encoder(zoo: Any, tmp_path: Path) -> None:
    cross_encoder = pytest.importorskip("sentence_transformers").CrossEncoder
    TSARankModel.from_backbone(str(zoo.folders["qwen3"])).save_pretrained(tmp_path / "saved")
    theirs = cross_encoder(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    ours = load_ranker(str(tmp_path / "saved"), dtype="float32", device="cpu")
    pairs = [(QUERY, document) for document in DOCUMENTS]
    options: Any
    for options in (
        {},
        {"batch_size": 2, "show_progress_bar": False},
        {"activation_fn": torch.nn.Sigmoid()},
        {"apply_softmax": True},
        {"convert_to_tensor": True},
        {"convert_to_tensor": True, "convert_to_numpy": False, "activation_fn": torch.nn.Tanh()},
        {"convert_to_numpy": False},
    ):
        for given in (pairs, pairs[0], list(pairs[1]), []):
            expected, found = theirs.predict(given, **options), ours.predict(given, **options)
            assert type(found) is type(expected), (options, given)
            assert np.shape(found) == np.shape(expected)
            np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-4, atol=1e-4)
    for options in ({"top_k": 2}, {"return_documents": True}, {"batch_size": 1, "activation_fn": torch.nn.Sigmoid()}):
        expected, found = theirs.rank(QUERY, DOCUMENTS, **options), ours.rank(QUERY, DOCUMENTS, **options)
        assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in expected]
        assert [row.get("text") for row in found] == [row.get("text") for row in expected]
        scores = [row["score"] for row in expected]
        np.testing.assert_allclose([row["score"] for row in found], scores, rtol=1e-4, atol=1e-4)
    assert ours.rank(QUERY, DOCUMENTS, convert_to_tensor=True) == ours.rank(QUERY, DOCUMENTS)


def test_options_that_mean_nothing_here_name_ours(model: Any) -> None:
    with pytest.raises(InputError, match="predict does not support device: move the model with `to`"):
        model.predict([(QUERY, "d")], device="cpu")
    with pytest.raises(InputError, match="predict does not support prompt_name: the prompt is one of the ranking"):
        model.rank(QUERY, DOCUMENTS, prompt_name="query")
    with pytest.raises(InputError, match="predict does not support speed"):
        model.predict([(QUERY, "d")], speed=3)
    with pytest.raises(InputError, match="batch_size must be a whole number"):
        model.predict([(QUERY, "d")], batch_size=0)


def test_batch_size_bounds_the_tokens_of_a_batch(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from modeling_tsarank import modeling_ranker

    budgets: list[int] = []
    read = modeling_ranker.read_values

    def spied(call: Any, tasks: Any, budget: int, *rest: Any) -> Any:
        budgets.append(budget)
        return read(call, tasks, budget, *rest)

    monkeypatch.setattr(modeling_ranker, "read_values", spied)
    for batch_size in (1, 3, 1000):
        model.predict([(QUERY, "d")], batch_size=batch_size)
    assert budgets == [500, 1500, 2048]

"""Probabilities of relevance: against formulas, on held-out queries, and through the command line."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_tsarank import load_ranker
from modeling_tsarank.cli import main
from modeling_tsarank.eval.calibrate import JudgedScores, fit, held_out, judged_scores, quality
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.scores.calibration import Calibration


def drawn(queries: int = 200, slope: float = 0.5, intercept: float = -2.0, shifted: float = 0.0) -> JudgedScores:
    """Scores whose probability of relevance is known: logistic(slope * score + intercept), and then moved by a number
    of each query's own."""
    generator = np.random.default_rng(4)
    scores = generator.normal(scale=4, size=(queries, 20))
    relevant = generator.random(scores.shape) < 1 / (1 + np.exp(-(slope * scores + intercept)))
    scores = scores + shifted * generator.normal(size=(queries, 1))
    return JudgedScores(scores.ravel(), relevant.ravel(), np.repeat(np.arange(queries), 20))


def test_platt_finds_the_maximum_of_the_likelihood() -> None:
    """The gradient of the log-likelihood vanishes there; scikit-learn's own penalty would move it."""
    data = drawn()
    calibration = fit(data, "platt")
    probabilities = calibration.probabilities(data.scores)
    assert abs(np.sum(data.relevant - probabilities)) < 1e-2
    assert abs(np.sum((data.relevant - probabilities) * data.scores)) < 0.1
    np.testing.assert_allclose(calibration.scores, [0.5, -2.0], atol=0.15)


def test_isotonic_is_the_least_squares_monotone_fit() -> None:
    """Pool adjacent violators, in plain loops."""
    scores, relevant = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([False, True, False, True, True])
    data = JudgedScores(scores, relevant, np.arange(5))
    blocks = [[float(value)] for value in relevant]
    while any(np.mean(a) > np.mean(b) for a, b in pairwise(blocks)):
        at = next(i for i in range(len(blocks) - 1) if np.mean(blocks[i]) > np.mean(blocks[i + 1]))
        blocks[at : at + 2] = [blocks[at] + blocks[at + 1]]
    expected = [float(np.mean(block)) for block in blocks for _ in block]
    calibration = fit(data, "isotonic")
    np.testing.assert_allclose(calibration.probabilities(scores), expected)
    np.testing.assert_allclose(calibration.probabilities([-9.0, 9.0]), [expected[0], expected[-1]])


def test_the_error_is_the_mean_gap_of_the_bins() -> None:
    probabilities, relevant = np.array([0.05, 0.07, 0.93, 1.0, 0.5]), np.array([False, True, True, True, False])
    result = quality(probabilities, relevant)
    assert result.error == pytest.approx((2 * abs(0.06 - 0.5) + 2 * abs(0.965 - 1) + 1 * 0.5) / 5)
    assert result.brier == pytest.approx(np.mean((probabilities - relevant) ** 2))
    assert [count for count, _, _ in result.bins] == [2, 1, 2]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_held_out_queries_are_calibrated(method: str) -> None:
    data = drawn()
    before = quality(1 / (1 + np.exp(-data.scores)), data.relevant)
    after = quality(held_out(data, method), data.relevant)
    assert before.error > 0.15
    assert after.error < 0.03
    assert after.brier < before.brier


def test_a_query_is_held_out_from_its_own_calibration() -> None:
    """Changing a query's judgments does not change its own probabilities."""
    data = drawn(10)
    own = data.queries == 3
    other = JudgedScores(data.scores, np.where(own, ~data.relevant, data.relevant), data.queries)
    np.testing.assert_array_equal(held_out(data, "platt")[own], held_out(other, "platt")[own])
    assert (held_out(data, "platt")[~own] != held_out(other, "platt")[~own]).any()


def test_scores_normalized_by_query_suit_rankers_whose_scores_shift_from_query_to_query() -> None:
    data = drawn(shifted=30)
    plain, by_query = (quality(held_out(data, "platt", name), data.relevant) for name in ("none", "zscore"))
    assert by_query.brier < plain.brier - 0.02
    calibration = fit(data, "platt", "zscore")
    scores = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(calibration.probabilities(scores + 100), calibration.probabilities(scores))
    assert len(set(calibration.probabilities([5.0, 5.0]))) == 1


def test_unjudged_documents_count_as_not_relevant_unless_left_out() -> None:
    run = {f"q{i}": {"a": 1.0, "b": 2.0, "c": 3.0} for i in range(6)}
    qrels = {f"q{i}": {"a": 0, "b": 2} for i in range(6)}
    assert judged_scores(run, qrels).relevant.sum() == 6
    assert len(judged_scores(run, qrels).scores) == 18
    assert len(judged_scores(run, qrels, judged_only=True).scores) == 12
    # The lowest were not scored by the ranker: their scores only keep them below the others.
    assert sorted(judged_scores(run, qrels, top_k=2).scores) == [2.0] * 6 + [3.0] * 6
    with pytest.raises(InputError, match="0 of 18"):
        judged_scores(run, qrels, relevance_level=3)
    with pytest.raises(InputError, match="share 4 queries"):
        judged_scores({name: run[name] for name in list(run)[:4]}, qrels)
    # As a run file may have it; trec_eval reads it, and no curve fits it.
    with pytest.raises(InputError, match="query 'q3', document 'a': the score -inf"):
        judged_scores({**run, "q3": {**run["q3"], "a": -math.inf}}, qrels)


@pytest.mark.parametrize(
    "values",
    [
        {"method": "platt", "normalization": "none", "scores": [1]},
        {"method": "platt", "normalization": "none", "scores": [1, math.nan]},
        {"method": "isotonic", "normalization": "none", "scores": [2, 1], "values": [0, 1]},
        {"method": "isotonic", "normalization": "none", "scores": [1, 2], "values": [0, 2]},
        {"method": "isotonic", "normalization": "none", "scores": [], "values": []},
        {"method": "other", "normalization": "none", "scores": [1, 2]},
        {"method": "platt", "normalization": "none", "scores": "12"},
        {"method": "platt", "normalization": "none", "scores": [True, False]},
        {"method": "platt", "scores": [1, 2]},
        {"method": "platt", "normalization": "none", "scores": [[1], [1, 2]]},
        {"method": "platt", "normalization": "none", "scores": [1, 2], "origin": [1]},
        {"method": "platt", "normalization": "none", "scores": [1, 2], "slope": 1},
        {"weight": 0.5},
        [],
        3,
    ],
)
def test_a_damaged_calibration_is_refused_by_name(tmp_path: Path, values: Any) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"calibration\.json") as refused:
        Calibration.load(path)
    assert not re.search(r"__init__|argument|array", str(refused.value)), "Python's own words"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A run and its judgments, of known probabilities."""
    data = drawn(40)
    run, qrels = tmp_path / "run.trec", tmp_path / "qrels.tsv"
    with run.open("w") as lines, qrels.open("w") as judgments:
        judgments.write("query-id\tcorpus-id\tscore\n")
        for number, (score, relevant, query) in enumerate(zip(data.scores, data.relevant, data.queries, strict=True)):
            lines.write(f"q{query} Q0 d{number} 1 {score!r} x\n".replace("np.float64(", "").replace(")", ""))
            judgments.write(f"q{query}\td{number}\t{int(relevant)}\n")
    return run, qrels


def test_a_calibration_is_fitted_saved_and_used_for_a_threshold(
    files: tuple[Path, Path], tmp_path: Path, tiny_llama: Path, capsys: Any
) -> None:
    run, qrels = files
    output, plot = tmp_path / "calibration.json", tmp_path / "plot.png"
    command = ["calibrate", str(run), "--qrels", str(qrels), "--output", str(output), "--plot", str(plot)]
    assert main(command) == 0
    out = capsys.readouterr().out
    calibration = Calibration.load(output)
    errors = {name: row["expected_calibration_error"] for name, row in calibration.origin["held_out"].items()}
    assert errors[calibration.method] < errors["before"]
    assert f"{errors['before']:.4f}" in out
    assert plot.read_bytes().startswith(b"\x89PNG")

    documents = tmp_path / "documents.txt"
    documents.write_text("bread\nbees dance\nships need pilots\n")
    rank = ["rank", "--query", "bread", "--documents", str(documents), "--model", str(tiny_llama), "--json"]
    rank += ["--device", "cpu", "--dtype", "float32"]
    assert main([*rank, "--calibration", str(output)]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    expected = calibration.probabilities([row["score"] for row in rows])
    np.testing.assert_allclose([row["probability"] for row in rows], expected, atol=1e-5)
    threshold = (expected[0] + expected[1]) / 2
    if expected[0] > expected[1]:
        assert main([*rank, "--calibration", str(output), "--threshold", str(threshold)]) == 0
        assert len(json.loads(capsys.readouterr().out)["results"]) == 1
    assert main([*rank, "--threshold", "-1000"]) == 0
    assert "applies to raw scores" in capsys.readouterr().err

    folder = tmp_path / "ranker"
    load_ranker(str(tiny_llama), dtype="float32").save_pretrained(folder)
    assert main([*command[:4], "--output", str(folder / "calibration.json")]) == 0
    capsys.readouterr()
    assert main([*rank[:5], "--model", str(folder), *rank[7:]]) == 0
    found = [row["probability"] for row in json.loads(capsys.readouterr().out)["results"]]
    np.testing.assert_allclose(found, expected, atol=1e-5)

    assert main([*rank[:-4], "--calibration", str(run)]) == 2
    assert str(run) in capsys.readouterr().err

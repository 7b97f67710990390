"""The `evaluate` module as users load it: from its folder, offline, without this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_tsarank.eval.metrics import compute_metrics


MODULE = Path(__file__).resolve().parents[2] / "eval" / "ndcg"
RUN = {"1": {"d1": 0.5, "d2": 0.5, "d3": -1e30}, "2": {"d9": 1.0, "d1": 2.0}}
QRELS = {"1": {"d1": 2, "d3": 1}, "2": {"d9": 1}, "3": {"d1": 1}}


@pytest.fixture
def metric(tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    return evaluate.load(str(MODULE), cache_dir=str(tmp_path))


def rows(nested: dict, value: str) -> list[dict]:
    return [
        {"query_id": query, "doc_id": document, value: number}
        for query, values in nested.items()
        for document, number in values.items()
    ]


def test_whole_runs_give_what_the_package_gives(metric):
    expected = compute_metrics(RUN, QRELS, ["ndcg@1", "ndcg@5", "ndcg@10"]).aggregate
    assert metric.compute(predictions=RUN, references=QRELS) == expected


def test_rows_tuples_and_batches_of_unequal_length_give_the_same(metric):
    expected = metric.compute(predictions=RUN, references=QRELS, k=3)
    run_rows, qrel_rows = rows(RUN, "score"), rows(QRELS, "relevance")
    assert metric.compute(predictions=run_rows, references=qrel_rows, k=3) == expected
    tuples = [tuple(row.values()) for row in run_rows]
    assert metric.compute(predictions=tuples, references=QRELS, k=[3]) == expected
    metric.add_batch(predictions=run_rows[:2], references=qrel_rows[:1])
    metric.add_batch(references=qrel_rows[1:])
    for row in run_rows[2:]:
        metric.add(prediction=row)
    assert metric.compute(k=3) == expected


def test_several_cutoffs_other_measures_and_per_query_values(metric):
    measures = ["map", "mrr@10", "recall@100"]
    result = metric.compute(predictions=RUN, references=QRELS, k=[1, 2], measures=measures, per_query=True)
    expected = compute_metrics(RUN, QRELS, ["ndcg@1", "ndcg@2", *measures])
    assert result.pop("per_query") == expected.per_query
    assert result == expected.aggregate


def test_measures_alone_leave_ndcg_out(metric):
    assert list(metric.compute(predictions=RUN, references=QRELS, measures=["map"])) == ["map"]


def test_incomplete_averages_and_relevance_level(metric):
    options = {"complete": False, "relevance_level": 2}
    result = metric.compute(predictions=RUN, references=QRELS, measures=["map"], **options)
    assert result == compute_metrics(RUN, QRELS, ["map"], **options).aggregate


def test_whole_numbers_as_ids_become_strings(metric):
    result = metric.compute(predictions=[(1, 7, 0.5)], references=[(1, 7, 1)], k=1, per_query=True)
    assert result == {"ndcg@1": 1.0, "per_query": {"1": {"ndcg@1": 1.0}}}


def test_repeated_rows_count_once_and_contradictions_are_refused(metric):
    once = metric.compute(predictions=[("1", "a", 0.5)], references=[("1", "a", 1)], measures=["p@2"])
    twice = metric.compute(predictions=[("1", "a", 0.5)] * 2, references=[("1", "a", 1)], measures=["p@2"])
    assert once == twice == {"p@2": 0.5}
    with pytest.raises(ValueError, match=r"two values for query '1', 0\.5 and 0\.25"):
        metric.compute(predictions=[("1", "a", 0.5), ("1", "a", 0.25)], references=[("1", "a", 1)])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "both empty"),
        (RUN, [], "qrels contain no judgment"),
        ([{"query_id": "1", "score": 1.0}], QRELS, "predictions: expected rows of query_id, doc_id and score"),
        ([("1", "a")], QRELS, "predictions: expected rows"),
        ([("1", "", 1.0)], QRELS, "lacks an id"),
        ([("1", "a", None)], QRELS, "lacks an id or its score"),
        ({"1": 3}, QRELS, "map query id to document id to score"),
        ({"7": {"a": 1.0}}, QRELS, "no query in common"),
    ],
)
def test_unusable_input_is_refused(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references)


@pytest.mark.parametrize("grade", [0.2, 0.9, np.float32(1.9), float("nan"), "often"])
def test_a_grade_that_is_not_whole_is_refused_and_not_cut(metric, grade):
    """`evaluate` would turn 0.9 into 0 before the metric saw it."""
    for references in ([("1", "d1", grade)], {"1": {"d1": grade}}):
        with pytest.raises(ValueError, match=r"'d1': the relevance .* is not a whole number"):
            metric.compute(predictions=RUN, references=references)
    with pytest.raises(ValueError, match="not a whole number"):
        metric.add(reference={"query_id": "1", "doc_id": "d1", "relevance": grade})


def test_whole_grades_may_be_floats(metric):
    floats = {query: {one: np.float64(grade) for one, grade in grades.items()} for query, grades in QRELS.items()}
    assert metric.compute(predictions=RUN, references=floats) == metric.compute(predictions=RUN, references=QRELS)


def test_nan_is_no_score_and_no_id(metric):
    """Two equal rows of it were called two values for one query."""
    for nan in (float("nan"), np.float32("nan")):
        with pytest.raises(ValueError, match=r"query '1', document 'a': the score .*nan.* is not a number"):
            metric.compute(predictions=[("1", "a", nan)] * 2, references=[("1", "a", 1)])
        with pytest.raises(ValueError, match="lacks an id"):
            metric.compute(predictions=[("1", nan, 0.5)], references=[("1", "a", 1)])


@pytest.mark.parametrize("k", [np.int64(3), np.array([3]), [np.int32(3)], range(3, 4)])
def test_cutoffs_may_be_numpy_integers(metric, k):
    assert metric.compute(predictions=RUN, references=QRELS, k=k) == compute_metrics(RUN, QRELS, ["ndcg@3"]).aggregate
    options = {"measures": ["map"], "relevance_level": np.int64(2)}
    assert metric.compute(predictions=RUN, references=QRELS, **options) == (
        compute_metrics(RUN, QRELS, ["map"], relevance_level=2).aggregate
    )


@pytest.mark.parametrize("k", [True, np.True_, 3.0, "3", 0, [1, False]])
def test_a_cutoff_that_is_no_whole_number_is_refused(metric, k):
    with pytest.raises(ValueError, match="k must be a whole number of 1 or more"):
        metric.compute(predictions=RUN, references=QRELS, k=k)


def test_the_module_works_without_this_package(tmp_path):
    """Self-contained: it must run where only its requirements are installed."""
    script = (
        "import sys\n"
        "sys.modules['modeling_tsarank'] = None\n"
        "import evaluate\n"
        f"metric = evaluate.load({str(MODULE)!r})\n"
        "print(metric.compute(predictions={'q': {'a': 1.0, 'b': 2.0}}, references={'q': {'a': 1}}, k=[1, 2]))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("{'ndcg@1': 0.0, 'ndcg@2': 0.6309297535714575}")


@pytest.mark.parametrize("identifier", [1.0, True, b"1", pytest.param(None, id="NA")])
def test_ids_that_are_neither_text_nor_whole_numbers_are_refused(metric, identifier):
    if identifier is None:
        identifier = pytest.importorskip("pandas").NA
    with pytest.raises(ValueError, match="neither text nor a whole number"):
        metric.compute(predictions=[(identifier, "d", 0.5)], references=[("1", "d", 1)], k=1)


def test_a_score_that_no_float_holds_is_refused(metric):
    with pytest.raises(ValueError, match="is not a number"):
        metric.compute(predictions=[("1", "d", 10**400)], references=[("1", "d", 1)], k=1)

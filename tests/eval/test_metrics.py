"""The metrics against raw pytrec_eval, against trec_eval's formulas in plain loops, and against published figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.eval.metrics import canonical_measure, compute_metrics
from modeling_tsarank.eval.run_files import read_qrels, read_run
from modeling_tsarank.ranking_errors import InputError


MEASURES = ("ndcg@1", "ndcg@3", "ndcg@10", "map", "map@2", "mrr@1", "mrr@3", "recall@2", "p@3")
RAW_NAMES = {
    "ndcg@1": "ndcg_cut_1",
    "ndcg@3": "ndcg_cut_3",
    "ndcg@10": "ndcg_cut_10",
    "map": "map",
    "map@2": "map_cut_2",
    "recall@2": "recall_2",
    "p@3": "P_3",
}

QUERIES = st.sampled_from(["1", "2", "10", "q-é", "Q"])
DOCUMENTS = st.sampled_from(["1", "2", "10", "9", "a", "A", "ab", "é", "z", "日本", "\U0001f600", "\uffee", "d" * 300])
SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0 + 1e-12, 1.0 + 1e-7, -1.0, 1e300, 2e300, -1e300, 1e39, 5e-324, 16777217.0]),
    st.integers(-3, 3).map(float),
    st.floats(allow_nan=False, allow_infinity=True),
)
RUNS = st.dictionaries(QUERIES, st.dictionaries(DOCUMENTS, SCORES, max_size=13), max_size=5)


def qrels_with(grades: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, dict[str, int]]]:
    return st.dictionaries(QUERIES, st.dictionaries(DOCUMENTS, grades, min_size=1, max_size=9), min_size=1, max_size=5)


def shares_a_query(run: dict, qrels: dict) -> bool:
    return any(run.get(query) for query in qrels)


def trec_order(scores: dict[str, float]) -> list[str]:
    """Score descending as C's float, then document id descending as bytes."""
    with np.errstate(over="ignore"):
        keyed = [(float(np.float32(score)), document.encode(), document) for document, score in scores.items()]
    return [document for _, _, document in sorted(keyed, reverse=True)]


def dcg(grades: list[int]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1) if grade > 0)


def by_hand(measure: str, scores: dict[str, float], grades: dict[str, int]) -> float:
    """One measure of one query as trec_eval's sources define it."""
    name, _, cutoff = measure.partition("@")
    ranking = trec_order(scores)
    top = ranking[: int(cutoff)] if cutoff else ranking
    relevant = {document for document, grade in grades.items() if grade >= 1}
    hits = [document in relevant for document in top]
    if name == "ndcg":
        ideal = dcg(sorted(grades.values(), reverse=True)[: int(cutoff)])
        return dcg([grades.get(document, 0) for document in top]) / ideal if ideal else 0.0
    if name == "mrr":
        return 1.0 / (hits.index(True) + 1) if True in hits else 0.0
    if name == "p":
        return sum(hits) / int(cutoff)
    if not relevant:
        return 0.0
    if name == "recall":
        return sum(hits) / len(relevant)
    assert name == "map"
    return sum(sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit) / len(relevant)


@settings(max_examples=300, deadline=None)
@given(run=RUNS, qrels=qrels_with(st.integers(0, 4)), complete=st.booleans())
def test_equals_raw_pytrec_eval(run, qrels, complete):
    if not shares_a_query(run, qrels):
        with pytest.raises(InputError, match="no query in common"):
            compute_metrics(run, qrels, MEASURES)
        return
    result = compute_metrics(run, qrels, MEASURES, complete=complete)
    requests = {"ndcg_cut.1,3,10", "map", "map_cut.2", "recall.2", "P.3"}
    raw = pytrec_eval.RelevanceEvaluator(qrels, requests).evaluate({q: docs for q, docs in run.items() if docs})
    counted = list(qrels) if complete else [query for query in qrels if run.get(query)]
    assert list(result.per_query) == counted
    for name, raw_name in RAW_NAMES.items():
        values = [raw[query][raw_name] if query in raw else 0.0 for query in counted]
        assert [result.per_query[query][name] for query in counted] == pytest.approx(values, abs=1e-9)
        assert result.aggregate[name] == pytest.approx(sum(values) / len(values), abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(run=RUNS, qrels=qrels_with(st.integers(-2, 4)))
def test_equals_trec_eval_in_plain_loops(run, qrels):
    if not shares_a_query(run, qrels):
        return
    result = compute_metrics(run, qrels, MEASURES)
    for query, grades in qrels.items():
        for measure in MEASURES:
            assert result.per_query[query][measure] == pytest.approx(
                by_hand(measure, run.get(query, {}), grades), abs=1e-9
            )


@settings(max_examples=60, deadline=None)
@given(
    run=st.dictionaries(st.sampled_from(["1", "q-é"]), st.dictionaries(DOCUMENTS, SCORES, min_size=1), min_size=1),
    qrels=qrels_with(st.integers(0, 3)),
    seed=st.randoms(use_true_random=False),
)
def test_duplicate_lines_of_a_run_file_do_not_count_twice(tmp_path_factory, run, qrels, seed):
    lines = [f"{q} Q0 {d} 0 {score!r} tag" for q, docs in run.items() for d, score in docs.items()]
    lines += seed.choices(lines, k=3)
    seed.shuffle(lines)
    path = tmp_path_factory.mktemp("runs") / "run.trec"
    path.write_text("\n".join(lines), encoding="utf-8")
    read = read_run(path)
    assert read == run
    if shares_a_query(run, qrels):
        raw = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
        values = [raw[query]["ndcg_cut_10"] if query in raw else 0.0 for query in qrels]
        assert compute_metrics(read, qrels).aggregate["ndcg@10"] == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_published_bm25_run_of_trec_dl_2019(data_dir: Path):
    folder = data_dir / "beir" / "trec-dl-19"
    run = read_run(folder / "runs" / "bm25.top100.trec")
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    result = compute_metrics(run, qrels, ("nDCG@1", "nDCG@5", "nDCG@10"))
    assert len(result.per_query) == 43
    percent = {name: round(100 * value, 2) for name, value in result.aggregate.items()}
    assert percent == {"ndcg@1": 54.26, "ndcg@5": 52.78, "ndcg@10": 50.58}


def test_mrr_is_zero_when_the_first_relevant_document_is_below_the_cutoff():
    run, qrels = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"c": 1}}
    result = compute_metrics(run, qrels, ["mrr@2", "mrr@3", "mrr@10"])
    assert result.aggregate == {"mrr@2": 0.0, "mrr@3": 1 / 3, "mrr@10": 1 / 3}


def test_judged_queries_without_relevant_documents_count_zero():
    result = compute_metrics({"q": {"a": 1.0}, "r": {"a": 1.0}}, {"q": {"a": 1}, "r": {"a": 0}}, ["ndcg@10", "map"])
    assert result.aggregate == {"ndcg@10": 0.5, "map": 0.5}


def test_complete_decides_about_missing_and_empty_queries():
    run, qrels = {"q": {"a": 1.0}, "empty": {}}, {"q": {"a": 1}, "empty": {"a": 1}, "missing": {"a": 1}}
    assert compute_metrics(run, qrels).aggregate["ndcg@10"] == pytest.approx(1 / 3)
    partial = compute_metrics(run, qrels, complete=False)
    assert partial.aggregate["ndcg@10"] == 1.0
    assert list(partial.per_query) == ["q"]


def test_relevance_level_changes_binary_measures_only():
    run, qrels = {"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": 1, "b": 2}}
    level1 = compute_metrics(run, qrels, ["ndcg@10", "mrr@10"]).aggregate
    level2 = compute_metrics(run, qrels, ["ndcg@10", "mrr@10"], relevance_level=2).aggregate
    assert (level1["mrr@10"], level2["mrr@10"]) == (1.0, 0.5)
    assert level1["ndcg@10"] == level2["ndcg@10"] == pytest.approx((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)))


def test_numpy_scores_and_grades_are_accepted():
    run = {"q": {"a": np.float32(0.5), "b": np.float64(0.25), "c": 1}}
    assert compute_metrics(run, {"q": {"c": np.int64(1)}}).aggregate == {"ndcg@10": 1.0}


def test_one_measure_may_be_given_as_a_string_and_repeats_are_merged():
    run, qrels = {"q": {"a": 1.0}}, {"q": {"a": 1}}
    assert compute_metrics(run, qrels, "P@1").aggregate == {"p@1": 1.0}
    assert compute_metrics(run, qrels, ["nDCG@10", "ndcg@10 "]).aggregate == {"ndcg@10": 1.0}
    assert canonical_measure("nDCG@010") == "ndcg@10"


@pytest.mark.parametrize(
    "name", ["bogus", "ndcg", "ndcg@", "ndcg@0", "ndcg@-1", "map@x", "ndcg@1.5", "mrr", "", "ndcg@\uff19", "p@1000001"]
)
def test_unknown_measures_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=r"known are ndcg@k, map, map@k, mrr@k|k must be between 1"):
        compute_metrics({"q": {"a": 1.0}}, {"q": {"a": 1}}, [name])


@pytest.mark.parametrize(
    ("run", "qrels", "message"),
    [
        ({"q": {"a": math.nan}}, {"q": {"a": 1}}, "'q', document 'a': the score nan is not a number"),
        ({"q": {"a": None}}, {"q": {"a": 1}}, "the score None is not a number"),
        ({"q": {"a": "high"}}, {"q": {"a": 1}}, "the score 'high' is not a number"),
        ({"q": {"a": 1.0}}, {"q": {"a": 0.5}}, "the relevance 0.5 is not a whole number"),
        ({"q": {"a": 1.0}}, {"q": {"a": 2**40}}, "is not a whole number of at most"),
        ({"q": {"a": 1.0}}, {"q": {"a": math.inf}}, "the relevance inf"),
        ({"q": {"a": 1.0}}, {}, "the qrels contain no judgment"),
        ({"q": {"a": 1.0}}, {"q": {}}, "the qrels contain no judgment"),
        ({}, {"q": {"a": 1}}, r"run \(no queries\) and qrels .* no query in common"),
        ({"r": {"a": 1.0}}, {"q": {"a": 1}}, r"1 query: 'r'.*1 query: 'q'.* no query in common"),
        ({"q": {}}, {"q": {"a": 1}}, "no query in common"),
        ({1: {"a": 1.0}}, {1: {"a": 1}}, r"ids must be strings, got 1 \(int\)"),
        ({"q": {"a\0b": 1.0}}, {"q": {"a": 1}}, "contains a NUL or a lone surrogate"),
        ({"q": {"\ud800": 1.0}}, {"q": {"a": 1}}, "contains a NUL or a lone surrogate"),
    ],
)
def test_unusable_input_is_refused(run, qrels, message):
    with pytest.raises(InputError, match=message):
        compute_metrics(run, qrels)


@pytest.mark.parametrize("level", [0, -1, 1.5, True])
def test_relevance_level_must_be_a_positive_whole_number(level):
    with pytest.raises(InputError, match="relevance_level"):
        compute_metrics({"q": {"a": 1.0}}, {"q": {"a": 1}}, relevance_level=level)


def test_no_measure_is_refused():
    with pytest.raises(InputError, match="no measure was given"):
        compute_metrics({"q": {"a": 1.0}}, {"q": {"a": 1}}, [])

"""First stages by name, fusion, given runs, and a query's own document."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.first_stages import build_index, reciprocal_rank_fusion, retrieve
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.run_files import write_run
from modeling_tsarank.eval.types import Collection, Document
from modeling_tsarank.ranking_errors import InputError


def make_collection(self_match: bool = False, runs: dict[str, Path] | None = None) -> Collection:
    documents = {
        "a": Document("Bread", "flour water oven"),
        "b": Document("", "bread and ice"),
        "c": Document("Glacier", "ice valley ice"),
        "d": Document("", "violin string"),
    }
    queries = {"a": "bread flour", "q": "ice", "unjudged": "violin"}
    qrels = {"a": {"b": 1}, "q": {"c": 2}}
    return Collection("tiny", documents, queries, qrels, self_match, runs or {})


def test_bm25_over_titles_and_texts_of_judged_queries(tmp_path):
    run = retrieve(make_collection(), "bm25", depth=10, cache_dir=tmp_path)
    assert {query: list(documents) for query, documents in run.items()} == {"a": ["a", "b"], "q": ["c", "b"]}


def test_other_queries_and_depths(tmp_path):
    run = retrieve(make_collection(), "bm25", depth=1, cache_dir=tmp_path, query_ids=["unjudged", "q"])
    assert {query: list(documents) for query, documents in run.items()} == {"unjudged": ["d"], "q": ["c"]}
    with pytest.raises(InputError, match="tiny has no query 'zz'"):
        retrieve(make_collection(), "bm25", cache_dir=tmp_path, query_ids=["q", "zz"])
    with pytest.raises(InputError, match="depth"):
        retrieve(make_collection(), "bm25", depth=0, cache_dir=tmp_path)


def test_a_querys_own_document_is_left_out_and_the_next_moves_up(tmp_path):
    collection = make_collection(self_match=True)
    assert list(retrieve(collection, "bm25", depth=1, cache_dir=tmp_path)["a"]) == ["b"]
    path = tmp_path / "run.trec"
    write_run(path, {"a": {"a": 9.0, "b": 8.0, "c": 7.0}, "q": {"a": 1.0}}, "tag")
    run = retrieve(collection, str(path), depth=1)
    assert run == {"a": {"b": 8.0}, "q": {"a": 1.0}}
    fused = retrieve(collection, f"rrf:bm25+{path}", depth=5, cache_dir=tmp_path)
    assert "a" not in fused["a"]


def test_a_given_run_by_path_and_by_name(tmp_path):
    path = tmp_path / "mine.trec"
    write_run(path, {"q": {"a": 1.0, "b": 3.0, "c": 2.0}, "a": {"d": 1.0}}, "tag")
    expected = {"a": {"d": 1.0}, "q": {"b": 3.0, "c": 2.0}}
    assert retrieve(make_collection(), path, depth=2) == expected
    assert retrieve(make_collection(runs={"mine": path}), "mine", depth=2) == expected


def test_queries_that_a_run_lacks_stay_empty_with_a_warning(tmp_path, caplog):
    path = tmp_path / "run.trec"
    write_run(path, {"q": {"a": 1.0}}, "tag")
    assert retrieve(make_collection(), path) == {"a": {}, "q": {"a": 1.0}}
    assert "lacks 1 of 2 queries, such as 'a'" in caplog.text


def test_runs_that_do_not_belong_are_refused(tmp_path):
    path = tmp_path / "run.trec"
    write_run(path, {"other": {"a": 1.0}}, "tag")
    with pytest.raises(InputError, match="none of the 2 queries of tiny, only 'other'"):
        retrieve(make_collection(), path)
    write_run(path, {"q": {"zz": 1.0}}, "tag")
    with pytest.raises(InputError, match="document 'zz', a candidate of query 'q', is not in the corpus of tiny"):
        retrieve(make_collection(), path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("bm42", r"no first stage 'bm42', and no such file; expected bm25, dense, .* Runs of tiny: given\."),
        ("bm25:x", "no index for the first stage 'bm25:x'"),
        ("dense:", "no index for the first stage 'dense:'"),
        ("rrf:bm25", "needs at least two runs"),
        ("rrf:bm25+nothing", "no first stage 'nothing'"),
    ],
)
def test_wrong_stages(tmp_path, stage, message):
    path = tmp_path / "given.trec"
    write_run(path, {"q": {"a": 1.0}, "a": {"a": 1.0}}, "tag")
    with pytest.raises(InputError, match=message):
        retrieve(make_collection(runs={"given": path}), stage, cache_dir=tmp_path)


def test_reciprocal_rank_fusion_is_its_formula():
    one = {"q": {"a": 9.0, "b": 8.0, "c": 8.0}, "only one": {"z": 1.0}}
    two = {"q": {"b": 0.3, "d": 0.2}}
    fused = reciprocal_rank_fusion([one, two], depth=3, k=60)
    # Ranks of the first run: a 1, c 2 (tie: id descending), b 3.
    assert fused["q"] == pytest.approx({"b": 1 / 63 + 1 / 61, "a": 1 / 61, "d": 1 / 62})
    assert list(fused["q"]) == ["b", "a", "d"]
    assert fused["only one"] == {"z": 1 / 61}


def test_fusion_of_stages(tmp_path):
    collection = make_collection()
    path = tmp_path / "run.trec"
    write_run(path, {"q": {"b": 1.0}, "a": {"d": 1.0}}, "tag")
    run = retrieve(collection, f"rrf:bm25+{path}", depth=10, cache_dir=tmp_path)
    assert run["q"] == pytest.approx({"b": 1 / 62 + 1 / 61, "c": 1 / 61})
    assert run["a"] == pytest.approx({"a": 1 / 61, "d": 1 / 61, "b": 1 / 62})
    assert list(run["a"]) == ["d", "a", "b"]


def test_the_constant_of_reciprocal_rank_fusion_is_positive():
    with pytest.raises(InputError, match="must be positive"):
        reciprocal_rank_fusion([{}, {}], depth=3, k=0)


def test_an_index_over_a_plain_corpus(tmp_path):
    index = build_index("bm25", ["x", "y"], ["ice cold", "bread"], tmp_path, k1=1.2)
    assert list(index.search({"q": "ice"}, depth=5)["q"]) == ["x"]
    with pytest.raises(InputError, match="no index for the first stage 'rrf'"):
        build_index("rrf", ["x"], ["ice"], tmp_path)


def test_the_run_that_comes_with_trec_dl_2019(data_dir):
    collection = load_collection(data_dir / "beir" / "trec-dl-19")
    run = retrieve(collection, "bm25.top100", depth=100)
    assert compute_metrics(run, collection.qrels).aggregate["ndcg@10"] == pytest.approx(0.5058, abs=5e-5)
    top10 = retrieve(collection, "bm25.top100", depth=10)
    assert {len(documents) for documents in top10.values()} == {10}

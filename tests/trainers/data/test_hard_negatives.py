"""Mined negatives: windows, margins, copies of positives, and rows that the trainer takes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection, Document
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.data_options import MiningOptions
from modeling_tsarank.trainers.data.hard_negatives import mine_negatives
from modeling_tsarank.trainers.data.list_building import FirstStage, Retriever
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_scores import CachedScorer


WORDS = ["flour", "yeast", "dough", "oven", "crust", "knead", "bake", "loaf", "salt", "water"]
BM25 = FirstStage("bm25", "bm25")


def make_collection(self_match: bool = False) -> Collection:
    generator = random.Random(4)
    documents = {f"d{n}": Document("", " ".join(generator.choices(WORDS, k=3 + n % 5))) for n in range(60)}
    documents["d1"] = Document("", "the Dough of an oven")
    documents["copy"] = Document("", documents["d1"].text.upper())
    documents["q2"] = Document("", "oven crust")
    queries = {"q0": "dough oven", "q1": "salt water", "q2": "oven crust", "none": "loaf", "lost": "zeppelin"}
    qrels = {"q0": {"d1": 1, "d2": 2}, "q1": {"d3": 1, "d4": 0}, "q2": {"d5": 1}, "none": {"d6": 0}, "lost": {"d7": 1}}
    return Collection("kitchen", documents, queries, qrels, self_match)


@pytest.fixture
def mine(tmp_path):
    def run(collection=None, stage=BM25, judge=None, **options):
        collection = collection or make_collection()
        retriever = Retriever(collection.documents, tmp_path / "indexes", lambda name: None)
        return mine_negatives(collection, stage, retriever, MiningOptions(**options), judge)

    return run


def bm25_order(tmp_path: Path, query_id: str) -> list[str]:
    collection = make_collection()
    retriever = Retriever(collection.documents, tmp_path / "indexes", lambda name: None)
    return ranked(retriever.run(BM25, {query_id: collection.queries[query_id]}, 100)[query_id])


def test_the_top_of_the_window_without_positives_and_copies(mine, tmp_path):
    rows, counts = mine(depth=50, count=5, rank_min=3, sampling="top")
    by_query = {row["query_id"]: row for row in rows}
    assert set(by_query) == {"q0", "q1", "q2"}
    order = [name for name in bm25_order(tmp_path, "q0") if name not in ("d1", "d2", "copy")]
    negatives = by_query["q0"]["negatives"]
    assert [one["docid"] for one in negatives] == order[3:8]
    assert [one["rank"] for one in negatives] == [4, 5, 6, 7, 8]
    assert [one["docid"] for one in by_query["q0"]["positives"]] == ["d2", "d1"], "the higher grade first"
    scores = [one["score"] for one in negatives]
    assert scores == sorted(scores, reverse=True)
    assert counts.lost == {"too few negatives": 1}
    assert counts.queries == len(rows) + sum(counts.lost.values()) == 4
    assert counts.candidates["copy of a positive"] == 1
    report = counts.report(rows, 5)
    assert report["negatives"] == sum(len(row["negatives"]) for row in rows)
    assert (report["rows"], report["short"]) == (len(rows), sum(len(row["negatives"]) < 5 for row in rows))


def test_a_querys_own_document_is_no_negative(mine):
    def ids(collection):
        rows, _ = mine(collection, depth=60, count=60, sampling="top")
        return {one["docid"] for row in rows if row["query_id"] == "q2" for one in row["negatives"]}

    assert "q2" in ids(make_collection())
    assert "q2" not in ids(make_collection(self_match=True))


def test_random_samples_come_from_the_window_and_follow_the_seed(mine, tmp_path):
    first, _ = mine(depth=40, count=6, rank_min=2, seed=1)
    again, _ = mine(depth=40, count=6, rank_min=2, seed=1)
    other, _ = mine(depth=40, count=6, rank_min=2, seed=2)
    assert first == again
    assert [row["negatives"] for row in first] != [row["negatives"] for row in other]
    for row in first:
        ranks = [one["rank"] for one in row["negatives"]]
        assert ranks == sorted(set(ranks))
        assert 3 <= ranks[0] <= ranks[-1] <= 40


def test_margins_by_the_first_stages_scores(mine, tmp_path):
    collection = make_collection()
    retriever = Retriever(collection.documents, tmp_path / "indexes", lambda name: None)
    scores = retriever.run(BM25, {"q0": "dough oven"}, 100)["q0"]
    lowest = min(scores[name] for name in ("d1", "d2") if name in scores)
    for changes, limit in (
        ({"absolute_margin": 0.0}, lowest),
        ({"absolute_margin": 0.3}, lowest - 0.3),
        ({"relative_margin": 0.4}, lowest * 0.6),
        ({"absolute_margin": 0.3, "relative_margin": 0.01}, lowest - 0.3),
    ):
        rows, counts = mine(depth=60, count=60, sampling="top", **changes)
        row = next((row for row in rows if row["query_id"] == "q0"), None)
        expected = {name for name, score in scores.items() if score <= limit} - {"d1", "d2", "copy"}
        assert {one["docid"] for one in row["negatives"]} == expected if row else not expected
        assert counts.candidates["above the margin"] > 0
        # BM25 does not find the positive of "lost": there is nothing to compare with.
        assert counts.lost["positive not retrieved"] >= 1
        assert counts.queries == len(rows) + sum(counts.lost.values())


def test_a_relative_margin_is_a_margin_for_negative_scores_too():
    options = MiningOptions(relative_margin=0.1)
    assert options.threshold([10.0]) == pytest.approx(9.0)
    assert options.threshold([-10.0]) == pytest.approx(-11.0)
    assert MiningOptions(absolute_margin=0.5).threshold([-10.0]) == pytest.approx(-10.5)


def test_margins_by_a_reranker(mine, tmp_path, make_ranker):
    collection = make_collection()
    folder = tmp_path / "ranker"
    make_ranker("tsarank").save_pretrained(folder)
    cache = RequestCache(tmp_path / "cache.jsonl")
    judge = CachedScorer(str(folder), cache, dtype="float32", device="cpu")
    rows, counts = mine(judge=judge, depth=20, count=20, sampling="top", absolute_margin=0.0)
    everything, _ = mine(depth=20, count=20, sampling="top")
    texts = {name: document.full_text for name, document in collection.documents.items()}
    for row in rows:
        positives = next(judge.scores_of([(row["query"], [texts[one["docid"]] for one in row["positives"]])]))
        negatives = next(judge.scores_of([(row["query"], [texts[one["docid"]] for one in row["negatives"]])]))
        assert max(negatives) <= min(positives) + 1e-5
    assert counts.lost["positive not retrieved"] == 0
    before = sum(len(row["negatives"]) for row in everything)
    assert sum(len(row["negatives"]) for row in rows) + counts.candidates["above the margin"] == before


def test_the_trainer_takes_the_rows(mine, tmp_path):
    from modeling_tsarank.trainers.row_checks import RowRules, checked_rows

    rows, _ = mine(depth=50, count=5)
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = checked_rows(path, RowRules(positives=True, negatives=5), cache_dir=tmp_path / "arrow").rows
    assert loaded[0]["source"] == "kitchen"
    assert loaded[0]["first_stage"] == "bm25"
    assert loaded[0]["window"] == "1-50"


def test_nothing_to_mine(mine):
    empty = Collection("empty", {"d": Document("", "x")}, {"q": "x"}, {"q": {"d": 0}})
    with pytest.raises(InputError, match="no query with a relevant document"):
        mine(empty)


@pytest.mark.parametrize(
    "options",
    [
        {"count": 0},
        {"depth": 10},
        {"rank_min": 1000},
        {"rank_min": -1},
        {"depth": 50, "rank_min": 3},
        {"sampling": "best"},
        {"absolute_margin": -1.0},
        {"relative_margin": float("nan")},
    ],
    ids=str,
)
def test_wrong_options(options):
    with pytest.raises(InputError):
        MiningOptions(**options)

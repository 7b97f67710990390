"""BM25: its formula in plain loops, its analyzer, and known results on real collections."""

from __future__ import annotations

import logging
import math

import pytest

from modeling_tsarank.eval.bm25 import STOP_WORDS, BM25Index, EnglishAnalyzer
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.first_stages import retrieve
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.ranking_errors import InputError


pytest.importorskip("bm25s")
pytest.importorskip("Stemmer")

TEXTS = {
    "a": "Baking bread: the baker bakes bread.",
    "b": "A glacier is ice, moving ice.",
    "c": "Bread and ice",
    "d": "",
    "e": "bread and ice",
    "f": "12 glaciers, 12 bakers",
}


def build(tmp_path, **options) -> BM25Index:
    return BM25Index.build(list(TEXTS), list(TEXTS.values()), tmp_path, **options)


def by_formula(query: str, k1: float, b: float) -> dict[str, float]:
    """Lucene's BM25 without its constant factor (k1 + 1): Kamphuis et al. 2020, Table 1."""
    analyze = EnglishAnalyzer()
    tokens = {name: analyze(text) for name, text in TEXTS.items()}
    mean = sum(map(len, tokens.values())) / len(tokens)
    scores = dict.fromkeys(TEXTS, 0.0)
    for term in analyze(query):
        containing = sum(term in words for words in tokens.values())
        idf = math.log(1 + (len(tokens) - containing + 0.5) / (containing + 0.5))
        for name, words in tokens.items():
            if frequency := words.count(term):
                scores[name] += idf * frequency / (frequency + k1 * (1 - b + b * len(words) / mean))
    return {name: score for name, score in scores.items() if score > 0}


@pytest.mark.parametrize("query", ["bread", "moving ice", "bakers of bread, bread, BREAD", "12 glaciers and unicorns"])
@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.5, 0.75), (0.0, 0.0)])
def test_scores_follow_the_formula(tmp_path, query, k1, b):
    run = build(tmp_path, k1=k1, b=b).search({"q": query}, depth=10)
    assert run["q"] == pytest.approx(by_formula(query, k1, b), rel=1e-5)
    assert list(run["q"].values()) == sorted(run["q"].values(), reverse=True)


def test_ties_go_by_document_id_descending_at_every_depth(tmp_path):
    index = build(tmp_path)
    full = list(index.search({"q": "bread ice"}, depth=10)["q"])
    assert full[:2] == ["e", "c"]
    for depth in range(1, len(full) + 2):
        assert list(index.search({"q": "bread ice"}, depth)["q"]) == full[:depth]


@pytest.mark.parametrize("query", ["", "   ", "the of and", "unicorns", "?!", "é"])
def test_queries_without_a_known_term_find_nothing(tmp_path, query):
    assert build(tmp_path).search({"q": query, "r": "bread"}, depth=1)["q"] == {}


def test_the_analyzer():
    analyze = EnglishAnalyzer()
    assert analyze("The Baker's glaciers, ICE-cold; 3 violins IN 1984!") == [
        "baker", "glacier", "ice", "cold", "violin", "1984",
    ]  # fmt: skip
    assert analyze("Zoë naïve x_1") == ["zoë", "naïv", "x_1"]
    assert len(STOP_WORDS) == 33


def test_the_index_is_cached_by_content_and_parameters(tmp_path, caplog):
    first = build(tmp_path).search({"q": "bread"}, 10)
    assert build(tmp_path).search({"q": "bread"}, 10) == first
    assert len(list((tmp_path / "indexes").glob("bm25-*"))) == 1
    build(tmp_path, k1=1.2)
    BM25Index.build(["a"], ["bread"], tmp_path)
    folders = list((tmp_path / "indexes").glob("bm25-*"))
    assert len(folders) == 3
    for path in (tmp_path / "indexes").rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-3])
    with caplog.at_level(logging.WARNING):
        assert build(tmp_path).search({"q": "bread"}, 10) == first
    assert "is incomplete" in caplog.text


@pytest.mark.parametrize(
    ("ids", "texts", "options", "message"),
    [
        ([], [], {}, "at least one"),
        (["a", "a"], ["x", "y"], {}, "unique ids"),
        (["a"], ["the of"], {}, "none of the 1 documents has a word"),
        (["a"], ["bread"], {"k1": -1}, "k1 >= 0"),
        (["a"], ["bread"], {"b": 1.1}, "b from 0 to 1"),
        (["a"], ["bread"], {"b": float("nan")}, "b from 0 to 1"),
    ],
)
def test_wrong_input(tmp_path, ids, texts, options, message):
    with pytest.raises(InputError, match=message):
        BM25Index.build(ids, texts, tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("scifact", 66.5, 68.5), ("cranfield", 34.2, 34.5), ("cisi", 37.0, 37.4), ("vaswani", 44.3, 44.7)],
)
def test_known_results_on_real_collections(data_dir, tmp_path, name, low, high):
    collection = load_collection(data_dir / "beir" / name)
    run = retrieve(collection, "bm25", depth=100, cache_dir=tmp_path)
    assert len(run) == len(collection.judged_queries())
    assert low < 100 * compute_metrics(run, collection.qrels).aggregate["ndcg@10"] < high

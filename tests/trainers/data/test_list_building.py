"""Queries dealt out to first stages, their lists, and a limit of them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from modeling_tsarank.eval.types import Document
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.list_building import (
    FirstStage,
    ListTask,
    Retriever,
    SourceQuery,
    collect_lists,
    deal_out,
    parse_stage,
    read_queries,
    spread,
)
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_scores import CachedScorer


STAGES = [FirstStage(name, "bm25") for name in ("one", "two", "three", "four")]
WORDS = ["bread", "flour", "oven", "ice", "snow", "valley", "string", "bow", "tune"]
DOCUMENTS = {
    f"d{number}": Document("", f"{WORDS[number % 9]} {WORDS[(number * 2) % 9]} {WORDS[(number * 5 + 1) % 9]}")
    for number in range(27)
}


def made_queries(cropped: int, generated: int) -> list[SourceQuery]:
    kinds = [("cropped", number) for number in range(cropped)] + [("generated", number) for number in range(generated)]
    return [
        SourceQuery(f"{kind}-{number}", f"{WORDS[number % 9]} {WORDS[(number + 1) % 9]} {number}", kind)
        for kind, number in kinds
    ]


def test_every_type_is_split_evenly_whatever_the_order():
    queries = made_queries(40, 22)
    assigned = deal_out(queries, STAGES, seed=3)
    counts = Counter((query.query_type, assigned[query.query_id].name) for query in queries)
    assert [counts["cropped", stage.name] for stage in STAGES] == [10] * 4
    assert sorted(counts["generated", stage.name] for stage in STAGES) == [5, 5, 6, 6]
    assert deal_out(queries[::-1], STAGES, seed=3) == assigned
    assert deal_out(queries, STAGES, seed=4) != assigned
    with pytest.raises(InputError, match="distinct names"):
        deal_out(queries, [STAGES[0], STAGES[0]])


def test_what_one_type_leaves_over_goes_to_other_stages_than_the_next_ones():
    totals = Counter(stage.name for stage in deal_out(made_queries(5, 3), STAGES).values())
    assert sorted(totals.values()) == [2, 2, 2, 2]


def test_stages_as_they_are_given():
    assert parse_stage("bm25") == FirstStage("bm25", "bm25")
    assert parse_stage("mini=dense:/models/a") == FirstStage("mini", "dense:/models/a")
    reranked = parse_stage("rerank:org/monot5", 50)
    assert (reranked.name, reranked.reranks, reranked.rerank_depth) == ("bm25+monot5", True, 50)
    for wrong in ("", "=bm25", "name=", "rerank:"):
        with pytest.raises(InputError, match="SPEC or NAME=SPEC"):
            parse_stage(wrong)


@pytest.fixture
def retriever(tmp_path, make_ranker):
    cache = RequestCache(tmp_path / "cache.jsonl")
    folder = tmp_path / "ranker"
    make_ranker("tsarank").save_pretrained(folder)

    def make_scorer(name):
        return CachedScorer(name, cache, dtype="float32")

    retriever = Retriever(DOCUMENTS, tmp_path / "indexes", make_scorer)
    retriever.folder = folder
    return retriever


def test_lists_come_from_the_stage_that_a_query_is_dealt_to(retriever):
    stages = [FirstStage("bm25", "bm25"), FirstStage("both", f"rerank:{retriever.folder}", 8)]
    queries = [*made_queries(6, 6), SourceQuery("odd", "xylophone", "cropped")]
    full, short = collect_lists(retriever, queries, stages, list_size=5)
    assert [task.query.query_id for task in short] == ["odd"]
    assert short[0].document_ids == ()
    assert [task.query.query_id for task in full] == [query.query_id for query in queries[:-1]]
    bm25 = retriever.run(stages[0], {query.query_id: query.text for query in queries}, 8)
    for task in full:
        best = sorted(bm25[task.query.query_id], key=lambda name: (-bm25[task.query.query_id][name], name))
        assert 2 <= len(task.document_ids) <= 5
        if task.first_stage == "bm25":
            assert set(task.document_ids) <= set(best)
        else:
            assert set(task.document_ids) <= set(best[:8] + [name for name in best if name in task.document_ids])
    assert {task.first_stage for task in full} == {"bm25", "both"}


def test_a_reranker_puts_the_base_stages_documents_in_its_own_order(retriever):
    query = {"q": "bread ice"}
    base = retriever.run(FirstStage("bm25", "bm25"), query, 8)["q"]
    reranked = retriever.run(FirstStage("both", f"rerank:{retriever.folder}", 8), query, 5)["q"]
    assert set(reranked) < set(base)
    from modeling_tsarank.models.loading import load_ranker

    ranker = load_ranker(retriever.folder, dtype="float32", device="cpu")
    expected = ranker.predict([("bread ice", DOCUMENTS[name].full_text) for name in base])
    best = sorted(zip(base, expected, strict=True), key=lambda item: -item[1])[:5]
    assert reranked == pytest.approx({name: float(score) for name, score in best}, abs=1e-4)
    with pytest.raises(InputError, match="reranks 4 documents, fewer than the 5 of a list"):
        retriever.run(FirstStage("both", f"rerank:{retriever.folder}", 4), query, 5)


def test_a_limit_is_spread_over_query_types_and_stages():
    tasks = [
        ListTask(SourceQuery(f"{kind}-{number}", "x", kind), "bm25", ("a", "b"))
        for kind, count in {"a": 5, "b": 1, "c": 5}.items()
        for number in range(count)
    ]
    kept = spread(tasks, 5)
    assert Counter(task.query.query_type for task in kept) == {"a": 2, "b": 1, "c": 2}
    assert kept == [task for task in tasks if task in kept]
    assert spread(tasks, 99) == tasks


def test_query_files(tmp_path):
    path = tmp_path / "q.jsonl"
    about = {"query_type": "generated", "docid": "d1", "generator": "m"}
    path.write_text(
        json.dumps({"_id": "a", "text": "bread", "metadata": about}) + "\n" + '{"_id": "b", "text": "ice"}\n'
    )
    assert read_queries([path]) == [
        SourceQuery("a", "bread", "generated", "d1", "m"),
        SourceQuery("b", "ice", "given", None, None),
    ]
    for line, message in (
        ('{"_id": "c"}', "line 1: no 'text', 'contents'"),
        ('{"_id": "a", "text": "x"}', "line 1: the query id 'a' appeared before"),
        ('{"_id": "c", "text": "ice"}', "line 1: the query 'ice' appeared before"),
    ):
        other = tmp_path / "other.jsonl"
        other.write_text(line + "\n")
        with pytest.raises(InputError, match=message):
            read_queries([path, other])
    other.write_text("\n")
    with pytest.raises(InputError, match="no query"):
        read_queries([other])

"""Sentences as queries: boundaries, limits, counts, determinism."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank.eval.types import Document
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.list_building import SourceQuery, read_queries
from modeling_tsarank.trainers.data.query_files import (
    QueryCollector,
    QueryLimits,
    crop_queries,
    normalized,
    sentence_splitter,
    tidy_sentence,
    write_queries,
)


TEXT = (
    "Dr. Smith of St. Mary's bakes bread at 3.5 a.m. every day. Does the dough rise in the cold? It rises slowly, "
    "i.e. over a night. Yes."
)


def test_boundaries_are_those_of_sentences_not_of_dots():
    assert sentence_splitter()(TEXT) == [
        "Dr. Smith of St. Mary's bakes bread at 3.5 a.m. every day.",
        "Does the dough rise in the cold?",
        "It rises slowly, i.e. over a night.",
        "Yes.",
    ]
    with pytest.raises(InputError, match=r"no sentence rules for the language 'xx'; there are .*en"):
        sentence_splitter("xx")


@pytest.mark.parametrize(
    ("sentence", "query"),
    [
        ("The oven\n is  hot .", "The oven is hot"),
        ("Is the oven hot?", "Is the oven hot?"),
        ("- \u201cA quoted sentence.\u201d", "A quoted sentence"),
        ("2. Knead the dough.", "Knead the dough"),
        ("(3) Knead the dough.", "Knead the dough"),
        ("It is small (two metres).", "It is small (two metres)"),
        ("3.5 grams of yeast", "3.5 grams of yeast"),
        ("...", ""),
        (": the science of humans ; and", "the science of humans ; and"),
        (".NET runs here.", ".NET runs here"),
    ],
)
def test_marks_at_the_ends_that_are_not_the_sentences(sentence, query):
    assert tidy_sentence(sentence) == query


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("how does dough rise", None),
        ("bread", "too short"),
        ("dough " * 40, "too long"),
        ("it is not the", "no content"),
        ("1999 2000 2001 2002", "no content"),
        ("dough == ++ -- && || 12345 67890 12345 bread", "few letters"),
    ],
)
def test_limits(query, problem):
    assert QueryLimits().problem(query) == problem


def test_wrong_limits():
    for limits in ({"min_words": 0}, {"min_words": 5, "max_words": 4}, {"min_letters": 2}):
        with pytest.raises(InputError):
            QueryLimits(**limits)


def passages(count: int = 30) -> dict[str, Document]:
    return {
        f"d{number}": Document(
            "A title nobody crops",
            f"The oven number {number} bakes white bread. Yes. Its crust becomes brown after {number} long minutes.",
        )
        for number in range(count)
    }


def test_queries_are_sentences_of_bodies_one_a_passage():
    collector = QueryCollector(20, "cropped")
    crop_queries(passages(), collector, seed=1)
    assert len(collector.queries) == 20
    assert len({query.source for query in collector.queries}) == 20
    for query in collector.queries:
        text = passages()[query.source].text
        assert f"{query.text}." in text
        assert query.query_type == "cropped"
    assert collector.candidates == 20 + sum(collector.rejected.values())
    starts = {query.text[:3] for query in collector.queries}
    assert starts == {"The", "Its"}, "not always the first sentence"


def test_the_seed_decides():
    taken = []
    for seed in (1, 1, 2):
        collector = QueryCollector(20, "cropped")
        crop_queries(passages(), collector, seed=seed)
        taken.append([query.text for query in collector.queries])
    assert taken[0] == taken[1] != taken[2]


def test_whole_passages_duplicates_and_avoided_queries_are_not_taken():
    documents = {
        "whole": Document("", "This one sentence is all of its passage."),
        "a": Document("", "The same sentence stands twice! Yes."),
        "b": Document("", "the same sentence, stands twice. No."),
        "c": Document("", "A test query must not be made. No."),
    }
    collector = QueryCollector(9, "cropped", avoid=frozenset({normalized("A test query must not be made?")}))
    crop_queries(documents, collector, per_passage=9)
    assert len(collector.queries) == 1
    report = collector.report()
    assert report["rejected"] == {"duplicate": 1, "to be avoided": 1, "too short": 3, "whole passage": 1}
    assert report["candidates"] == report["taken"] + sum(report["rejected"].values())
    assert not collector.full


def test_several_sentences_of_a_passage_where_wanted():
    collector = QueryCollector(60, "cropped")
    crop_queries(passages(), collector, per_passage=2)
    assert len(collector.queries) == 60


@given(st.text(max_size=60))
def test_tidying_is_idempotent_on_white_space_and_never_raises(text):
    tidy = tidy_sentence(text)
    assert tidy == tidy.strip()
    assert "\n" not in tidy


def test_the_file_reads_back(tmp_path):
    queries = [SourceQuery("cropped-000001", "how “does” it rise", "cropped", "d1", None)]
    write_queries(tmp_path / "q.jsonl", queries, {"taken": 1})
    assert read_queries([tmp_path / "q.jsonl"]) == queries
    assert json.loads((tmp_path / "q.report.txt").read_text())["taken"] == 1


def test_sentences_of_real_passages(data_dir):
    from modeling_tsarank.eval.beir import read_corpus

    documents = read_corpus(data_dir / "beir" / "trec-dl-19" / "corpus.jsonl")
    collector = QueryCollector(100, "cropped")
    crop_queries(documents, collector)
    assert collector.full
    words = [len(query.text.split()) for query in collector.queries]
    assert 8 < sum(words) / len(words) < 22, "sentences, neither headings nor paragraphs"
    assert all(normalized(query.text) in normalized(documents[query.source].text) for query in collector.queries)

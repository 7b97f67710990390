"""Every layout of the table becomes the canonical row, and wrong fields are named."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.training_data import canonical_row, parse_permutation


def texts(documents: list[dict[str, Any]]) -> list[str]:
    return [document["text"] for document in documents]


SFT_RECORDS = {
    "canonical": {"query": "q", "positives": ["p"], "negatives": ["n1", {"docid": "7", "text": "n2"}]},
    "tevatron": {
        "query_id": 3,
        "query": "q",
        "positive_passages": [{"docid": "1", "title": "t", "text": "p"}],
        "negative_passages": [{"docid": "2", "title": "", "text": "n1"}, {"docid": "3", "text": "n2"}],
    },
    "rankgpt": {
        "query": "q",
        "positive_passages": [{"docid": "1", "text": "p"}],
        "retrieved_passages": [
            {"docid": "2", "rank": 1, "text": "n1"},
            {"docid": "1", "rank": 2, "text": "p"},
            {"docid": "3", "rank": 3, "text": "n2"},
        ],
    },
    "flagembedding": {"query": "q", "pos": ["p"], "neg": ["n1", "n2"], "prompt": "is it relevant?"},
    "labelled": {"query": "q", "documents": ["n1", "p", "n2"], "labels": [0, 2, 0]},
    "labelled docs": {"question": "q", "docs": ["n1", "p", "n2"], "labels": [0, 1, 0]},
    "triplet list": {"anchor": "q", "positive": "p", "negatives": ["n1", "n2"]},
    "triplet numbered": {"query": "q", "positive": "p", "negative_2": "n2", "negative_1": "n1"},
    "contents": {"query": "q", "positives": [{"_id": 1, "contents": "p"}], "negatives": ["n1", {"content": "n2"}]},
    "string labels beside": {"query": "q", "positives": ["p"], "negatives": ["n1", "n2"], "labels": ["Good", "Bad"]},
}


@pytest.mark.parametrize("name", SFT_RECORDS)
def test_sft_layouts(name: str) -> None:
    row = canonical_row(SFT_RECORDS[name], "sft")
    assert row["query"] == "q"
    assert texts(row["positives"]) == ["p"]
    assert texts(row["negatives"]) == ["n1", "n2"]
    assert all(set(document) == {"docid", "title", "text"} for document in row["positives"] + row["negatives"])


def test_ids_and_titles_are_kept() -> None:
    row = canonical_row(SFT_RECORDS["tevatron"], "sft")
    assert row["query_id"] == "3"
    assert row["positives"] == [{"docid": "1", "title": "t", "text": "p"}]
    assert row["negatives"][0] == {"docid": "2", "title": None, "text": "n1"}


@pytest.mark.parametrize("name", SFT_RECORDS)
def test_sft_layouts_serve_distillation_as_labels(name: str) -> None:
    row = canonical_row(SFT_RECORDS[name], "distill")
    graded = dict(zip(texts(row["documents"]), row.get("labels", []), strict=False))
    if name == "rankgpt":  # its candidates are an order
        assert row["permutation"] == [0, 1, 2]
    else:
        assert {text for text, label in graded.items() if label > 0} == {"p"}
        assert {text for text, label in graded.items() if label == 0} == {"n1", "n2"}


@pytest.mark.parametrize("names", [("positives", "positive_scores"), ("pos", "pos_scores")])
def test_a_teachers_scores_stay_beside_positives_and_negatives(names: tuple[str, str]) -> None:
    given = {name: name.replace("positive", "negative").replace("pos", "neg") for name in names}
    record = {"query": "q", names[0]: ["p"], given[names[0]]: ["n", "m"], names[1]: [2], given[names[1]]: [1, 0]}
    row = canonical_row(record, "sft")
    assert (row["positive_scores"], row["negative_scores"]) == ([2.0], [1.0, 0.0])
    labelled = {"query": "q", "positive": "p", "negative": "n"} | {"positive_scores": [1]}
    assert "positive_scores" not in canonical_row(labelled, "sft")
    with pytest.raises(InputError, match="missing; expected a list"):
        canonical_row({**record, given[names[1]]: None}, "sft")


def test_triplet_with_one_negative() -> None:
    row = canonical_row({"query": "q", "positive": "p", "negative": "n"}, "sft")
    assert texts(row["negatives"]) == ["n"]


@pytest.mark.parametrize(
    ("record", "target", "expected"),
    [
        ({"documents": ["a", "b", "c"], "permutation": [2, 0, 1]}, "permutation", [2, 0, 1]),
        ({"documents": ["a", "b", "c"], "permutation": "[3] > [1] > [2]"}, "permutation", [2, 0, 1]),
        (
            {"documents": [{"docid": "x", "text": "a"}, {"docid": "y", "text": "b"}], "permutation": ["y", "x"]},
            "permutation",
            [1, 0],
        ),
        ({"retrieved_passages": [{"docid": "9", "text": "a"}, {"docid": "8", "text": "b"}]}, "permutation", [0, 1]),
        (
            {"retrieved_passages": [{"docid": "9", "text": "a"}, {"text": "b"}], "permutation": "[2] > [1]"},
            "permutation",
            [1, 0],
        ),
        ({"documents": ["a", "b"], "teacher_scores": [1, -0.5]}, "teacher_scores", [1.0, -0.5]),
        ({"passages": ["a", "b"], "scores": [1, 2]}, "teacher_scores", [1.0, 2.0]),
        ({"documents": ["a", "b"], "labels": [3, 0]}, "labels", [3.0, 0.0]),
        (
            {"pos": ["a"], "neg": ["b", "c"], "pos_scores": [0.9], "neg_scores": [0.2, 0.1]},
            "teacher_scores",
            [0.9, 0.2, 0.1],
        ),
        (
            {"positives": ["a"], "negatives": ["b"], "positive_scores": [0.9], "negative_scores": [0.2]},
            "teacher_scores",
            [0.9, 0.2],
        ),
        ({"positive": "a", "negative": "b", "score": 3.5}, "teacher_scores", [3.5, 0.0]),
        (
            {"positive": "a", "negative_1": "b", "negative_2": "c", "label": [3, 2, 1]},
            "teacher_scores",
            [3.0, 2.0, 1.0],
        ),
    ],
)
def test_distillation_layouts(record: dict[str, Any], target: str, expected: list[float]) -> None:
    row = canonical_row({"query": "q", **record}, "distill")
    assert row[target] == expected
    assert texts(row["documents"]) == ["a", "b", "c"][: len(expected)]


def test_an_answer_is_kept_beside_its_reading() -> None:
    row = canonical_row(
        {"query": "q", "documents": ["a", "b", "c"], "permutation": "[2] > [2] > [9] > [1]"}, "distill"
    )
    assert row["permutation"] == [1, 0, 2]
    assert row["answer"] == "[2] > [2] > [9] > [1]"
    assert row["repaired"] == "true"


@pytest.mark.parametrize(
    ("answer", "count", "expected"),
    [
        ("[2] > [1]", 2, ([1, 0], False)),
        ("The order is 3, 1 and 2.", 3, ([2, 0, 1], False)),
        ("[1] > [1] > [2]", 2, ([0, 1], True)),
        ("[4] > [2] > [1]", 3, ([1, 0, 2], True)),
        ("[3] > [2]", 4, ([2, 1, 0, 3], True)),
        ("[5] > [1]", 5, ([], True)),
        ("[3]", 4, ([], True)),
        ("I cannot rank these.", 2, ([], True)),
        ("[0] > [1] > [2]", 2, ([0, 1], True)),
    ],
)
def test_reading_an_answer(answer: str, count: int, expected: tuple[list[int], bool]) -> None:
    assert parse_permutation(answer, count) == expected


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30), st.randoms(use_true_random=False), st.lists(st.integers(0, 99), max_size=5))
def test_an_answer_never_loses_or_repeats_a_document(count: int, random: Random, noise: list[int]) -> None:
    order = list(range(1, count + 1))
    random.shuffle(order)
    assert parse_permutation(" > ".join(f"[{n}]" for n in order), count) == ([n - 1 for n in order], False)
    mixed = order + noise
    random.shuffle(mixed)
    permutation, _ = parse_permutation(", ".join(map(str, mixed)), count)
    assert sorted(permutation) == list(range(count))


def test_pairs() -> None:
    assert canonical_row({"query": " q ", "document": "d"}, "cpt") == {"query": "q", "document": "d"}
    assert canonical_row({"anchor": "q", "positive": "d"}, "cpt") == {"query": "q", "document": "d"}
    titled = {"query": "q", "document": {"docid": "1", "title": "T", "text": "d"}}
    assert canonical_row(titled, "cpt")["document"] == "T d"


def test_broken_unicode_is_repaired() -> None:
    row = canonical_row({"query": "q\ud800", "positives": ["p\udc00"], "negatives": ["n"]}, "sft")
    row["query"].encode("utf-8")
    row["positives"][0]["text"].encode("utf-8")


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("sft", {"text": "a"}, "fit no layout for sft"),
        ("sft", {"positives": ["a"], "negatives": ["b"]}, "fit no layout"),
        ("sft", {"query": "q", "pos": ["a"]}, "query, pos, neg"),
        ("sft", {"query": 5, "positives": ["a"], "negatives": ["b"]}, "query: expected a string, got int 5"),
        ("sft", {"query": None, "positives": ["a"], "negatives": ["b"]}, "query: missing"),
        ("sft", {"query": "q", "positives": None, "negatives": ["b"]}, "positives: missing; expected a list"),
        ("sft", {"query": "q", "positives": {"a": 1}, "negatives": ["b"]}, "positives: expected a list, got dict"),
        ("sft", {"query": "q", "positives": ["a", 3], "negatives": ["b"]}, r"positives\[1\]: expected a text or"),
        ("sft", {"query": "q", "positives": [{"docid": 1}], "negatives": ["b"]}, r"positives\[0\]\.text: expected"),
        ("sft", {"query": "q", "positives": [{"title": 1, "text": "a"}], "negatives": []}, r"\[0\]\.title: expected"),
        (
            "sft",
            {"query": "q", "positives": [{"docid": 1.5, "text": "a"}], "negatives": []},
            r"\[0\]\.docid must be a string or a whole number",
        ),
        ("sft", {"query": "q", "documents": ["a"], "labels": [1, 0]}, "labels: expected one for each of 1"),
        ("sft", {"query": "q", "documents": ["a"], "labels": ["Good"]}, r"labels\[0\]: expected a number, got str"),
        (
            "sft",
            {"query": "q", "documents": ["a", "b"], "labels": [1, float("nan")]},
            r"labels\[1\]: expected a finite",
        ),
        ("sft", {"query": "q", "docs": ["a", "b"], "labels": [float("inf"), 0]}, r"labels\[0\]: expected a finite"),
        ("distill", {"query": "q", "documents": ["a", "b"]}, "fit no layout for distill"),
        ("distill", {"query": "q", "documents": ["a", "b"], "permutation": [0, "z"]}, r"permutation\[1\]: expected a"),
        ("distill", {"query": "q", "documents": ["a", "b"], "permutation": [True, 0]}, r"permutation\[0\]"),
        ("distill", {"query": "q", "documents": ["a"], "scores": [True]}, r"scores\[0\]: expected a number"),
        ("distill", {"query": "q", "positive": "a", "negatives": ["b", "c"], "score": 2.0}, "score: expected a list"),
        ("cpt", {"query": "q", "document": ["d"]}, "document: expected a string, got list"),
        ("cpt", {"query": "q"}, "fit no layout for cpt"),
        ("cpt", ["q", "d"], "expected an object with fields, got list"),
        ("dpo", {"query": "q"}, "cpt, sft, distill"),
    ],
)
def test_wrong_records_are_named(kind: str, record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        canonical_row(record, kind)

"""Every layout of the table becomes the one row, and wrong fields are named."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses import OBJECTIVES
from modeling_tsarank.trainers.objectives import objective
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.ranking_trainer import RankingTrainer
from modeling_tsarank.trainers.rows import LAYOUTS, TARGETS, parse_permutation, positives_and_negatives, to_row


def texts(documents: list[dict[str, Any]]) -> list[str]:
    return [document["text"] for document in documents]


LABELLED = {
    "tsarank": {"query": "q", "positives": ["p"], "negatives": ["n1", {"docid": "7", "text": "n2"}]},
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


@pytest.mark.parametrize("name", LABELLED)
def test_layouts_with_positives_and_negatives(name: str) -> None:
    row = to_row(LABELLED[name], positives=True)
    assert row["query"] == "q"
    assert all(set(document) == {"id", "title", "text"} for document in row["documents"])
    sides = positives_and_negatives(row)
    assert (texts(sides["positives"]), texts(sides["negatives"])) == (["p"], ["n1", "n2"])
    if name == "rankgpt":  # where positives are not asked for, its candidates are an order
        assert to_row(LABELLED[name])["permutation"] == [0, 1, 2]
    else:
        assert to_row(LABELLED[name]) == row


def test_ids_and_titles_are_kept() -> None:
    row = to_row(LABELLED["tevatron"])
    assert row["query_id"] == "3"
    assert row["documents"][:2] == [
        {"id": "1", "title": "t", "text": "p"},
        {"id": "2", "title": None, "text": "n1"},
    ]


def test_the_json_of_rank_llm_has_ids_inside() -> None:
    candidate = {"docid": 9, "score": 0.5, "doc": {"title": "t", "contents": "a"}}
    assert to_row({"query": {"qid": 7, "text": "q"}, "candidates": [candidate]}) == {
        "query_id": "7",
        "query": "q",
        "documents": [{"id": "9", "title": "t", "text": "a"}],
        "permutation": [0],
    }


def test_every_layout_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    for layout in LAYOUTS:
        row = next(line for line in text.splitlines() if line.startswith(f"| {layout.name} |"))
        assert all(f"`{name}" in row for name, _ in layout.lists), layout.name
    assert all(f"`{target}`" in text for target in TARGETS)


@pytest.mark.parametrize("names", [("positives", "positive_scores"), ("pos", "pos_scores")])
def test_a_teachers_scores_stand_beside_the_labels_where_those_are_asked_for(names: tuple[str, str]) -> None:
    given = {name: name.replace("positive", "negative").replace("pos", "neg") for name in names}
    record = {"query": "q", names[0]: ["p"], given[names[0]]: ["n", "m"], names[1]: [2], given[names[1]]: [1, 0]}
    row = to_row(record, positives=True)
    assert (row["teacher_scores"], row["labels"]) == ([2.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    assert to_row(record) == {name: value for name, value in row.items() if name != "labels"}
    with pytest.raises(InputError, match="missing; expected a list"):
        to_row({**record, given[names[1]]: None})
    with pytest.raises(InputError, match=f"{given[names[1]]}: expected one for each of 2 documents, got 1"):
        to_row({**record, given[names[1]]: [1], names[1]: [2, 0]} | {names[0]: ["p", "r"]})


def test_triplet_with_one_negative() -> None:
    row = to_row({"query": "q", "positive": "p", "negative": "n"})
    assert (texts(row["documents"]), row["labels"]) == (["p", "n"], [1.0, 0.0])


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
        ({"candidates": [{"docid": "9", "doc": {"contents": "a"}}, {"doc": {"text": "b"}}]}, "permutation", [0, 1]),
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
    row = to_row({"query": "q", **record})
    assert row[target] == expected
    assert texts(row["documents"]) == ["a", "b", "c"][: len(expected)]


def test_an_answer_is_kept_beside_its_reading() -> None:
    row = to_row({"query": "q", "documents": ["a", "b", "c"], "permutation": "[2] > [2] > [9] > [1]"})
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
    document = {"id": None, "title": None, "text": "d"}
    for record in ({"query": " q ", "document": "d"}, {"anchor": "q", "positive": "d"}):
        assert to_row(record) == {"query_id": None, "query": "q", "documents": [document], "labels": [1.0]}
    titled = {"query": "q", "document": {"docid": "1", "title": "T", "text": "d"}}
    assert to_row(titled)["documents"] == [{"id": "1", "title": "T", "text": "d"}]


def test_the_row_itself_is_read_as_it_is() -> None:
    row = to_row(LABELLED["labelled"])
    assert to_row(row) == to_row(row, positives=True) == row


def test_a_new_target_is_one_entry(monkeypatch: pytest.MonkeyPatch, make_ranker: Any, tmp_path: Path) -> None:
    """It is read, checked, drawn and given to the objective that takes it."""
    monkeypatch.setitem(TARGETS, "clicks", ("clicks", "click_counts"))
    rows = [
        {"query": "bread", "documents": ["yeast", "ship", "flour"], "labels": [1, 0, 0], "click_counts": [5, n, 2]}
        for n in range(3)
    ]
    seen: list[list[list[float]]] = []

    @objective("clicked", "counts clicks", needs=("clicks",))
    def clicked(scores: Tensor, clicks: Tensor) -> Tensor:
        seen.append(clicks.tolist())
        return (scores * clicks).sum()

    args = {"objectives": ["clicked"], "num_documents": 2, "use_cpu": True, "disable_tqdm": True, "max_steps": 1}
    config = RankingConfig(
        str(tmp_path), trainable="full", save_strategy="no", train_sampling_strategy="sequential", **args
    )
    seen.clear()
    try:
        RankingTrainer(make_ranker("twolar"), config, rows).train()
        bad = [rows[0], {**rows[1], "click_counts": [1, 2]}]
        with pytest.raises(InputError, match="row 2: clicks: expected one for each of 3 documents, got 2"):
            RankingTrainer(make_ranker("twolar"), config, bad)
    finally:
        del OBJECTIVES["clicked"]
    assert seen[0] == [[5.0, 0.0], [5.0, 1.0], [5.0, 2.0]]


def test_broken_unicode_is_repaired() -> None:
    row = to_row({"query": "q\ud800", "positives": ["p\udc00"], "negatives": ["n"]})
    row["query"].encode("utf-8")
    row["documents"][0]["text"].encode("utf-8")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "match no layout of training rows"),
        ({"positives": ["a"], "negatives": ["b"]}, "match no layout"),
        ({"query": "q", "pos": ["a"]}, "query, pos, neg"),
        ({"query": 5, "positives": ["a"], "negatives": ["b"]}, "query: expected a string, got int 5"),
        ({"query": None, "positives": ["a"], "negatives": ["b"]}, "query: missing"),
        ({"query": "q", "positives": None, "negatives": ["b"]}, "positives: missing; expected a list"),
        ({"query": "q", "positives": {"a": 1}, "negatives": ["b"]}, "positives: expected a list, got dict"),
        ({"query": "q", "positives": ["a", 3], "negatives": ["b"]}, r"positives\[1\]: expected a text or"),
        ({"query": "q", "positives": [{"docid": 1}], "negatives": ["b"]}, r"positives\[0\]\.text: expected"),
        ({"query": "q", "positives": [{"title": 1, "text": "a"}], "negatives": []}, r"\[0\]\.title: expected"),
        (
            {"query": "q", "positives": [{"docid": 1.5, "text": "a"}], "negatives": []},
            r"\[0\]\.docid must be a string or a whole number",
        ),
        ({"query": "q", "documents": ["a"], "labels": ["Good"]}, r"labels\[0\]: expected a number, got str"),
        ({"query": "q", "documents": ["a", "b"]}, "match no layout"),
        ({"query": "q", "documents": ["a", "b"], "permutation": [0, "z"]}, r"permutation\[1\]: expected a"),
        ({"query": "q", "documents": ["a", "b"], "permutation": [True, 0]}, r"permutation\[0\]"),
        ({"query": "q", "documents": ["a", "b"], "permutation": [10**30, 0]}, r"permutation\[0\]: expected a"),
        ({"query": "q", "documents": ["a", "b"], "permutation": [0, -(2**63)]}, r"permutation\[1\]: expected a"),
        ({"query": "q", "documents": ["a"], "labels": [10**400]}, r"labels\[0\]: too large a number"),
        ({"query": "q", "positive": "a", "negative": "b", "score": 10**400}, "score: too large a number"),
        ({"query": "q", "documents": ["a"], "scores": [True]}, r"scores\[0\]: expected a number"),
        ({"query": "q", "positive": "a", "negatives": ["b", "c"], "score": 2.0}, "score: expected a list"),
        ({"query": "q", "document": [3]}, r"document\[0\]: expected a text or an object"),
        ({"query": "q"}, "match no layout"),
        (["q", "d"], "expected an object with fields, got list"),
    ],
)
def test_wrong_records_are_named(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_row(record)

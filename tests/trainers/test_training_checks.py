"""What a dataset must not contain, and the message that says where."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from datasets import Dataset

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.training_data import (
    check_rows,
    drop_unusable_rows,
    load_training_rows,
    row_problem,
)


GOOD = {
    "cpt": {"query": "q", "document": "d"},
    "sft": {"query": "q", "positives": ["p"], "negatives": ["n1", "n2"]},
    "distill": {"query": "q", "documents": ["a", "b", "c"], "permutation": [2, 0, 1]},
}

SCORED = {"query": "q", "documents": ["a", "b"], "teacher_scores": [0.5, 2.0]}
LABELLED = {"query": "q", "documents": ["a", "b"], "labels": [0, 2]}


@pytest.mark.parametrize(
    ("kind", "record"), [*GOOD.items(), ("distill", SCORED), ("distill", LABELLED), ("distill", GOOD["sft"])]
)
def test_good_rows_pass(kind: str, record: dict[str, Any]) -> None:
    assert row_problem(record, kind) is None
    check_rows([record, record], kind)


@pytest.mark.parametrize(
    ("positive", "copy"),
    [
        ("Bread  needs\nyeast", "bread needs yeast"),
        ("BREAD", "bread"),
        ("caf\u00e9", "cafe\u0301"),
        ("\ufb01nd 1\u00a0000", "find 1 000"),
        ("Stra\u00dfe", "STRASSE"),
        ("\uff22read", "bread"),
    ],
)
def test_a_copy_of_the_positive_in_another_writing_is_no_negative(positive: str, copy: str) -> None:
    record = {"query": "q", "positives": [positive], "negatives": ["other", copy]}
    assert "negatives[1]: has the text of a positive" in (row_problem(record, "sft") or "")
    assert row_problem({**record, "negatives": ["other", f"{copy} more"]}, "sft") is None


def changed(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {**GOOD[kind], **fields}


BAD = [
    (*changed("cpt", query=" "), "query: the text is empty"),
    (*changed("cpt", document="\n"), "document: the text is empty"),
    (*changed("cpt", document=None), "document: missing; expected a string"),
    (*changed("sft", query=""), "query: the text is empty"),
    (*changed("sft", positives=[]), "positives: the list is empty"),
    (*changed("sft", negatives=[]), "negatives: the list is empty"),
    (*changed("sft", negatives=["n", "  "]), r"negatives\[1\]: the document is empty"),
    (*changed("sft", positives=[{"title": " ", "text": ""}]), r"positives\[0\]: the document is empty"),
    (*changed("sft", negatives=["n", " p "]), r"negatives\[1\]: has the text of a positive"),
    (
        *changed("sft", positives=[{"docid": "4", "text": "p"}], negatives=[{"docid": 4, "text": "other"}]),
        r"negatives\[0\]: has the docid '4' of a positive",
    ),
    (*changed("sft", negatives="one text"), None),
    (*changed("sft", negatives=7), "negatives: expected a list, got int 7"),
    (*changed("distill", documents=["a"], permutation=[0]), "documents: expected at least two"),
    (*changed("distill", documents=["a", "", "c"]), r"documents\[1\]: the document is empty"),
    (*changed("distill", permutation=[0, 0, 1]), r"permutation\[1\]: 0 is repeated"),
    (*changed("distill", permutation=[0, 1, 3]), r"permutation\[2\]: 3 is out of range; .* 0 to 2"),
    (*changed("distill", permutation=[0, 1, -1]), r"permutation\[2\]: -1 is out of range"),
    (*changed("distill", permutation=[0, 1]), "permutation: names 2 of 3 documents"),
    (*changed("distill", permutation="none of them"), "permutation: empty .*has failed"),
    ("distill", {**SCORED, "teacher_scores": [1.0]}, "teacher_scores: expected one for each of 2"),
    ("distill", {**SCORED, "teacher_scores": [1.0, float("nan")]}, r"teacher_scores\[1\]: expected a finite number"),
    ("distill", {**SCORED, "teacher_scores": [float("inf"), 1.0]}, r"teacher_scores\[0\]: expected a finite number"),
    ("distill", {**LABELLED, "labels": [1, 0, 0]}, "labels: expected one for each of 2"),
    ("distill", {**LABELLED, "labels": [1, -1]}, r"labels\[1\]: expected a grade of at least 0, got -1"),
]


@pytest.mark.parametrize(("kind", "record", "message"), BAD)
def test_bad_rows_are_named_with_their_number(kind: str, record: dict[str, Any], message: str | None) -> None:
    rows = [GOOD[kind], record]
    if message is None:  # a single text stands for a list of one
        check_rows(rows, kind)
        return
    with pytest.raises(InputError, match=f"^row 2: {message}") as caught:
        check_rows(rows, kind)
    assert "\n" not in str(caught.value)


def test_the_number_of_bad_rows_is_told() -> None:
    rows = [GOOD["sft"], {**GOOD["sft"], "negatives": []}, GOOD["sft"], {**GOOD["sft"], "positives": []}]
    with pytest.raises(InputError, match=r"^row 2: negatives: .*; 2 of 4 rows have a problem"):
        check_rows(rows, "sft")


def test_fewer_negatives_than_asked_for() -> None:
    rows = [GOOD["sft"]] * 3
    check_rows(rows, "sft", negatives=2)
    with pytest.raises(InputError, match=r"row 1: negatives: expected at least the 3 asked for, got 2; .*allow_fewer"):
        check_rows(rows, "sft", negatives=3)
    check_rows(rows, "sft", negatives=3, allow_fewer=True)
    with pytest.raises(InputError, match="the list is empty"):
        check_rows([GOOD["sft"], {**GOOD["sft"], "negatives": []}], "sft", negatives=3, allow_fewer=True)


@pytest.mark.parametrize("kind", GOOD)
def test_too_small_datasets(kind: str) -> None:
    with pytest.raises(InputError, match=f"the {kind} dataset has no rows; training needs at least 2"):
        check_rows([], kind)
    with pytest.raises(InputError, match=f"the {kind} dataset has 1 row; training needs at least 2"):
        check_rows([GOOD[kind]], kind)
    check_rows([GOOD[kind]], kind, minimum_rows=1)


@pytest.mark.parametrize(
    ("record", "loss", "missing"),
    [
        (GOOD["distill"], "ranknet", None),
        (GOOD["distill"], "lambdarank", None),
        (SCORED, "ranknet", None),
        (SCORED, "dear", None),
        (LABELLED, "ranknet", None),
        (LABELLED, "listwise_softmax", None),
        (GOOD["distill"], "listnet", "teacher_scores and the rows have ranks"),
        (LABELLED, "margin_mse", "teacher_scores and the rows have labels"),
        (SCORED, "listwise_softmax", "labels and the rows have teacher_scores"),
    ],
)
def test_targets_must_suit_the_loss(record: dict[str, Any], loss: str, missing: str | None) -> None:
    if missing is None:
        check_rows([record, record], "distill", loss=loss)
        return
    with pytest.raises(InputError, match=f"the loss {loss} needs {missing}"):
        check_rows([record, record], "distill", loss=loss)


def test_unusable_rows_are_dropped_on_request_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        GOOD["sft"],
        {**GOOD["sft"], "negatives": []},
        {**GOOD["sft"], "query": "second"},
        {**GOOD["sft"], "positives": []},
        {**GOOD["sft"], "negatives": ["p"]},
    ]
    dataset = load_training_rows(rows, "sft")
    with caplog.at_level(logging.WARNING):
        kept = drop_unusable_rows(dataset, "sft")
    assert kept["query"][:] == ["q", "second"]
    assert "left out 3 of 5 rows; by field: negatives 2, positives 1" in caplog.text
    check_rows(kept, "sft")
    assert drop_unusable_rows(kept, "sft") is kept
    with pytest.raises(InputError, match="none of the 2 rows can be used"):
        drop_unusable_rows(kept, "sft", negatives=3)


def test_checks_read_arrow_datasets() -> None:
    dataset = Dataset.from_list([GOOD["distill"], {**GOOD["distill"], "permutation": [1, 1, 0]}])
    with pytest.raises(InputError, match=r"^row 2: permutation\[1\]: 1 is repeated"):
        check_rows(dataset, "distill")


def test_unknown_kind() -> None:
    with pytest.raises(InputError, match="cpt, sft, distill"):
        check_rows([], "rlhf")

"""What a dataset must not contain, and the message that says where."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers import row_checks
from modeling_tsarank.trainers.cpt_config import ROW_RULES
from modeling_tsarank.trainers.row_checks import CheckedRows, RowRules, checked_rows, row_problem
from modeling_tsarank.trainers.rows import to_row
from modeling_tsarank.trainers.training_data import load_training_rows


RULES = {"cpt": ROW_RULES, "sft": RowRules(positives=True, negatives=1), "distill": RowRules()}
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
    assert len(checked_rows([record, record], RULES[kind]).rows) == 2


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
    assert "negatives: documents[2] has the text of a positive" in (row_problem(to_row(record), RULES["sft"]) or "")
    assert row_problem(to_row({**record, "negatives": ["other", f"{copy} more"]}), RULES["sft"]) is None


def changed(kind: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return kind, {**GOOD[kind], **fields}


BAD = [
    (*changed("cpt", query=" "), "query: the text is empty"),
    (*changed("cpt", document="\n"), r"documents\[0\]: the document is empty"),
    (*changed("cpt", document=None), "document: missing; expected a list"),
    (*changed("sft", query=""), "query: the text is empty"),
    (*changed("sft", positives=[]), "positives: no document has a label above 0"),
    (*changed("sft", negatives=[]), "documents: expected at least 2, got 1"),
    (*changed("sft", positives=["p", "o"], negatives=[]), "negatives: no document has the label 0"),
    (*changed("sft", negatives=["n", "  "]), r"documents\[2\]: the document is empty"),
    (*changed("sft", positives=[{"title": " ", "text": ""}]), r"documents\[0\]: the document is empty"),
    (*changed("sft", negatives=["n", " p "]), r"negatives: documents\[2\] has the text of a positive"),
    (
        *changed("sft", positives=[{"docid": "4", "text": "p"}], negatives=[{"docid": 4, "text": "other"}]),
        r"negatives: documents\[1\] has the id '4' of a positive",
    ),
    (*changed("sft", negatives="one text"), None),
    (*changed("sft", negatives=7), "negatives: expected a list, got int 7"),
    (*changed("distill", documents=["a"], permutation=[0]), "documents: expected at least 2"),
    (*changed("distill", documents=["a", "", "c"]), r"documents\[1\]: the document is empty"),
    (*changed("distill", permutation=[0, 0, 1]), r"permutation\[1\]: 0 is repeated"),
    (*changed("distill", permutation=[0, 1, 3]), r"permutation\[2\]: 3 is out of range; .* 0 to 2"),
    (*changed("distill", permutation=[0, 1, -1]), r"permutation\[2\]: -1 is out of range"),
    (*changed("distill", permutation=[0, 1]), "permutation: contains 2 of 3 documents"),
    (*changed("distill", permutation="none of them"), "permutation: empty .*counts as failed"),
    ("distill", {**SCORED, "teacher_scores": [1.0]}, "teacher_scores: expected one for each of 2"),
    ("distill", {**SCORED, "teacher_scores": [1.0, float("nan")]}, r"teacher_scores\[1\]: expected a finite number"),
    ("distill", {**SCORED, "teacher_scores": [float("inf"), 1.0]}, r"teacher_scores\[0\]: expected a finite number"),
    ("distill", {**LABELLED, "labels": [1, 0, 0]}, "labels: expected one for each of 2"),
    ("distill", {**LABELLED, "labels": [1, -1]}, r"labels\[1\]: expected a grade of at least 0, got -1"),
    ("sft", {**LABELLED, "labels": [1, float("nan")]}, r"labels\[1\]: expected a finite number"),
    ("sft", {**LABELLED, "labels": [1, -1]}, None),
]


@pytest.mark.parametrize(("kind", "record", "message"), BAD)
def test_bad_rows_are_named_with_file_and_line(
    kind: str, record: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    alike = [row for row in (SCORED, LABELLED) if row.keys() == record.keys()]
    good = next(iter(alike), GOOD[kind])
    sources: list[tuple[Any, str]] = [([good, record], "row 2: ")]
    if "finite" not in str(message):  # JSON has no NaN
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(good) + "\n" + json.dumps(record) + "\n", encoding="utf-8")
        sources.append((str(path), f"{path}, line 2: "))
    for source, place in sources:
        if message is None:  # a single text stands for a list of one, and a label below 0 for that of a negative
            checked_rows(source, RULES[kind], cache_dir=tmp_path)
            continue
        with pytest.raises(InputError, match=f"^{place}{message}") as caught:
            checked_rows(source, RULES[kind], cache_dir=tmp_path)
        assert "\n" not in str(caught.value)


def test_the_number_of_bad_rows_is_told() -> None:
    rows = [GOOD["sft"], {**GOOD["sft"], "negatives": ["p"]}, GOOD["sft"], {**GOOD["sft"], "positives": []}]
    with pytest.raises(InputError, match=r"^row 2: negatives: .*; 2 of 4 rows have a problem"):
        checked_rows(rows, RULES["sft"])


def test_fewer_negatives_than_asked_for() -> None:
    rows = [GOOD["sft"]] * 3
    checked_rows(rows, RowRules(positives=True, negatives=2))
    three = RowRules(positives=True, negatives=3)
    message = r"row 1: negatives: expected at least 3, got 2; .*allow_fewer"
    with pytest.raises(InputError, match=message):
        checked_rows(rows, three)
    fewer = RowRules(positives=True, negatives=3, allow_fewer=True)
    checked_rows(rows, fewer)
    with pytest.raises(InputError, match="negatives: no document"):
        checked_rows([GOOD["sft"], {**GOOD["sft"], "positives": ["p", "o"], "negatives": []}], fewer)


@pytest.mark.parametrize("kind", GOOD)
def test_too_small_datasets(kind: str) -> None:
    with pytest.raises(InputError, match="the training data have 1 row; training needs at least 2"):
        checked_rows([GOOD[kind]], RULES[kind])
    checked_rows([GOOD[kind]], RULES[kind], minimum_rows=1)


@pytest.mark.parametrize(
    ("record", "loss", "missing"),
    [
        (GOOD["distill"], "ranknet", None),
        (GOOD["distill"], "lambdarank", None),
        (SCORED, "ranknet", None),
        (SCORED, "dear", None),
        (LABELLED, "ranknet", None),
        (LABELLED, "listwise_softmax", None),
        (GOOD["distill"], "listnet", "teacher_scores, but the rows have ranks"),
        (LABELLED, "margin_mse", "teacher_scores, but the rows have labels"),
        (SCORED, "listwise_softmax", "labels, but the rows have teacher_scores"),
    ],
)
def test_targets_must_suit_the_loss(record: dict[str, Any], loss: str, missing: str | None) -> None:
    rules = RowRules((loss,))
    if missing is None:
        checked_rows([record, record], rules)
        return
    with pytest.raises(InputError, match=f"the loss {loss} needs {missing}"):
        checked_rows([record, record], rules)


def test_unusable_rows_are_dropped_on_request_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        GOOD["sft"],
        {**GOOD["sft"], "positives": ["p", "o"], "negatives": []},
        {**GOOD["sft"], "query": "second"},
        {**GOOD["sft"], "positives": []},
        {**GOOD["sft"], "negatives": ["p"]},
    ]
    dataset = load_training_rows(rows)
    with caplog.at_level(logging.WARNING):
        kept = checked_rows(dataset, RULES["sft"], drop_unusable=True)
    assert kept.rows["query"][:] == ["q", "second"]
    assert "left out 3 of 5 rows; by field: negatives 2, positives 1; row 2: negatives: no document has" in caplog.text
    assert checked_rows(kept, RULES["sft"]) is kept
    assert len(checked_rows(dataset, RULES["sft"], drop_unusable=True, limit=1, minimum_rows=1).rows) == 1
    with pytest.raises(InputError, match="rows can be used; by field: negatives 2; row 1: negatives: expected"):
        checked_rows(kept.rows, RowRules(positives=True, negatives=3), drop_unusable=True)


def test_rows_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows checked by other rules are checked again, those of the same rules are not."""
    looked_at: list[int] = []
    problem = row_checks.row_problem
    monkeypatch.setattr(row_checks, "row_problem", lambda *given: (looked_at.append(1), problem(*given))[1])
    checked = checked_rows([GOOD["distill"]] * 3, RULES["distill"])
    assert isinstance(checked, CheckedRows)
    checked_rows(checked, RULES["distill"])
    assert len(looked_at) == 3
    checked_rows(checked, RowRules(("ranknet",)))
    assert len(looked_at) == 6

"""The canonical training row, and the table of layouts that are converted to it on loading.

    {"query_id"?, "query", "documents": [{"id", "title", "text"}], "labels"?, "teacher_scores"?, "permutation"?}

`TARGETS` lists the per-document numbers of a row, `LAYOUTS` the supported layouts; a new one of either is one more
entry. `docs/training.md` has the table for users.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from modeling_tsarank.files.fields import FIELDS, as_id, field_name, without_nulls
from modeling_tsarank.rankers.listwise_answers import complete_order
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import clean_text


Record = Mapping[str, Any]
Row = dict[str, Any]

# Targets that are one number per document, with their names in files.
TARGETS: dict[str, tuple[str, ...]] = {
    "labels": ("labels",),
    "teacher_scores": ("teacher_scores", "scores", "score"),
}
PERMUTATION = "permutation"
NEGATIVES = "negatives"
# The place of a row in its file, for messages.
PLACE = "_place"


@dataclass(frozen=True)
class Layout:
    """One format of a training row.

    Attributes:
        name: name in messages.
        lists: the fields of documents, each with the label of its documents; `None` if they have none.
        scores: the fields of a teacher's scores: one for each list, or names of one for all documents, which may be a
            single number if there are two documents, their margin.
        needed: number of these lists that a record needs to have the layout.
        targets: whether targets are in separate fields; one of them is required.
        ordered: whether the documents are in the teacher's order if there is no permutation.
        distinct: whether documents of earlier lists are removed from later ones.
    """

    name: str
    lists: tuple[tuple[str, float | None], ...]
    scores: tuple[str, ...] = ()
    needed: int = 2
    targets: bool = False
    ordered: bool = False
    distinct: bool = False

    def matches(self, fields: Collection[str]) -> bool:
        """Whether a record with these fields has the layout."""
        if not all(given_fields(fields, name) for name, _ in self.lists[: self.needed]):
            return False
        return not self.targets or any(
            name in fields for names in (*TARGETS.values(), (PERMUTATION,)) for name in names
        )

    def labels(self, fields: Collection[str]) -> bool:
        """Whether it defines which documents are relevant."""
        return "labels" in fields if self.targets else self.lists[0][1] is not None


# The first match is used; if positives are required, the first that defines which documents are relevant.
LAYOUTS = (
    Layout("list", (("documents", None),), targets=True),
    Layout("order", (("retrieved_passages", None),), ordered=True),
    Layout("tsarank", (("positives", 1.0), (NEGATIVES, 0.0)), ("positive_scores", "negative_scores")),
    Layout("tevatron", (("positive_passages", 1.0), ("negative_passages", 0.0))),
    Layout("rankgpt", (("positive_passages", 1.0), ("retrieved_passages", 0.0)), distinct=True),
    Layout("flagembedding", (("pos", 1.0), ("neg", 0.0)), ("pos_scores", "neg_scores")),
    Layout("triplet", (("positive", 1.0), (NEGATIVES, 0.0)), (*TARGETS["teacher_scores"], "label"), needed=1),
    Layout("pair", (("document", 1.0),)),
    Layout("rank_llm", (("candidates", None),), ordered=True),
)


def given_fields(fields: Collection[str], name: str) -> list[str]:
    """The fields of a record for a list of `LAYOUTS`: `docs` for documents, `negative_1`, … for negatives."""
    if name == NEGATIVES:
        numbered = [field for field in fields if re.fullmatch(r"negative_\d+", field)]
        numbered.sort(key=lambda field: int(field.rpartition("_")[2]))
        return [field for field in ("negatives", "negative") if field in fields] + numbered
    return [field for field in FIELDS.get(name, (name,)) if field in fields][:1]


# Fields that are converted, and so not carried along unchanged.
READ_FIELDS = {
    *("query_id", "label", "negative", PERMUTATION, *TARGETS, *FIELDS["query"], *FIELDS["documents"]),
    *(name for names in TARGETS.values() for name in names),
    *(name for layout in LAYOUTS for name, _ in layout.lists),
}


# ---- converting ------------------------------------------------------------------------------------


def layout_of(record: Record, positives: bool = False) -> Layout:
    """The layout of a record; null fields count as absent, unless a layout matches only with them.

    Raises:
        InputError: none matches, or there is no query; lists the fields found and the supported layouts.
    """
    for fields in (without_nulls(record).keys(), record.keys()):
        matching = [layout for layout in LAYOUTS if layout.matches(fields)]
        if matching and given_fields(fields, "query"):
            return next((layout for layout in matching if positives and layout.labels(fields)), matching[0])
    known = "; ".join(f"query, {', '.join(name for name, _ in layout.lists)}" for layout in LAYOUTS)
    targets = ", ".join([PERMUTATION, *TARGETS])
    raise InputError(
        f"fields {sorted(record)} match no layout of training rows; expected one of: {known} (documents with one of "
        f"{targets})"
    )


def to_row(record: Any, positives: bool = False, layout: Layout | None = None) -> Row:
    """Converts one record, in any layout, to the canonical row.

    Args:
        record: an object with fields.
        positives: whether labels are required: of two matching layouts, the one with labels is used, and labels are
            kept in addition to a teacher's scores.
        layout: layout of the record; detected by default.

    Raises:
        InputError: not an object, no layout, or a field is missing or of a wrong type.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"expected an object with fields, got {describe(record)}")
    layout = layout or layout_of(record, positives)
    record = without_nulls(record)
    row = _read_query(record)
    documents: list[dict[str, str | None]] = []
    labels: list[float] = []
    scores: list[float] = []
    per_list = len(layout.scores) == len(layout.lists) == 2
    scored = per_list and any(name in record for name in layout.scores)
    for place, (name, label) in enumerate(layout.lists):
        fields = given_fields(record, name) or ([name] if place < layout.needed else [])
        found = [document for field in fields for document in read_documents(record, field)]
        if layout.distinct and place:
            found = _without(found, documents)
        if scored:
            numbers = read_numbers(record, layout.scores[place])
            if len(numbers) != len(found):
                raise InputError(count_problem(layout.scores[place], len(found), len(numbers)))
            scores += numbers
        documents += found
        labels += [] if label is None else [label] * len(found)
    row["documents"] = documents
    if layout.targets or layout.ordered:
        row |= _read_targets(record, documents, layout)
    elif layout.scores and not per_list and any(name in record for name in layout.scores):
        scored, scores = True, _read_scores(record, layout.scores, len(documents))
    if scored:
        row["teacher_scores"] = scores
    if layout.lists[0][1] is not None and (positives or not scored):
        row["labels"] = labels
    return row


def count_problem(field: str, documents: int, count: int) -> str:
    """Message for a list whose length is not the number of documents."""
    return f"{field}: expected one for each of {documents} documents, got {count}"


def describe(value: Any) -> str:
    """The type of a wrong value, and the value itself if it is short."""
    shown = repr(value)
    return f"{type(value).__name__} {shown}" if len(shown) <= 40 else type(value).__name__


def _read_query(record: Record) -> Row:
    field = next(iter(given_fields(record, "query")), "query")
    if isinstance(record.get(field), Mapping):  # rank_llm's, with its id
        record = record[field]
        field = field_name(record, "query_text") or "text"
    if field not in record:
        raise InputError(f"{field}: missing; expected a string")
    if not isinstance(record[field], str):
        raise InputError(f"{field}: expected a string, got {describe(record[field])}")
    id_field = field_name(record, "query_id_of_row")
    query_id = None if id_field is None else as_id(record[id_field], id_field)
    return {"query_id": query_id, "query": clean_text(record[field], field)}


def read_list(record: Record, field: str) -> list[Any]:
    """A field that must be a list."""
    if record.get(field) is None:
        raise InputError(f"{field}: missing; expected a list")
    if not isinstance(record[field], (list, tuple)):
        raise InputError(f"{field}: expected a list, got {describe(record[field])}")
    return list(record[field])


def read_numbers(record: Record, field: str) -> list[float]:
    """A field that must be a list of numbers."""
    return [_number(value, f"{field}[{index}]") for index, value in enumerate(read_list(record, field))]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{what}: expected a number, got {describe(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{what}: too large a number") from None


def read_document(value: Any, field: str) -> dict[str, str | None]:
    """One document, a text or an object, as `{"id", "title", "text"}`."""
    if isinstance(value, str):
        return {"id": None, "title": None, "text": clean_text(value, field)}
    if not isinstance(value, Mapping):
        raise InputError(f"{field}: expected a text or an object with id, title and text, got {describe(value)}")
    if isinstance(value.get("doc"), Mapping):  # rank_llm's, with its id and score
        value = {**value, **without_nulls(value["doc"])}
    text_field = field_name(value, "text") or "text"
    text = value.get(text_field)
    if not isinstance(text, str):
        raise InputError(f"{field}.{text_field}: expected a string, got {describe(text)}")
    title = value.get("title")
    if title is not None and not isinstance(title, str):
        raise InputError(f"{field}.title: expected a string, got {describe(title)}")
    id_field = field_name(value, "id")
    return {
        "id": None if id_field is None else as_id(value[id_field], f"{field}.{id_field}"),
        "title": clean_text(title or "", f"{field}.title") or None,
        "text": clean_text(text, f"{field}.{text_field}"),
    }


def read_documents(record: Record, field: str) -> list[dict[str, str | None]]:
    """A list of documents; a single document counts as a list of one."""
    value = record.get(field)
    if isinstance(value, str) or (isinstance(value, Mapping) and field_name(value, "text")):
        return [read_document(value, field)]
    return [read_document(one, f"{field}[{index}]") for index, one in enumerate(read_list(record, field))]


def _without(found: list[dict[str, str | None]], known: list[dict[str, str | None]]) -> list[dict[str, str | None]]:
    """Documents that are not among those known, by id or, without one, by text."""
    ids, texts = {document["id"] for document in known} - {None}, {document["text"] for document in known}
    return [one for one in found if (one["text"] not in texts if one["id"] is None else one["id"] not in ids)]


def _read_targets(record: Record, documents: list[dict[str, str | None]], layout: Layout) -> Row:
    row: Row = {}
    if PERMUTATION in record:
        row |= _read_permutation(record, documents)
    elif layout.ordered:
        row[PERMUTATION] = list(range(len(documents)))
    for target, names in TARGETS.items():
        field = next((name for name in names if name in record), None)
        if field is not None and layout.targets:
            row[target] = read_numbers(record, field)
    if not row:
        raise InputError(f"{', '.join([PERMUTATION, *TARGETS])}: missing; expected one of them")
    return row


def _read_scores(record: Record, names: tuple[str, ...], count: int) -> list[float]:
    """A teacher's scores of all documents; MarginMSE data has the margin of two, and only differences matter."""
    field = next(name for name in names if name in record)
    if count == 2 and isinstance(record[field], Real):
        return [_number(record[field], field), 0.0]
    return read_numbers(record, field)


def _read_permutation(record: Record, documents: list[dict[str, str | None]]) -> Row:
    """The permutation from indices, ids or a teacher's answer; an answer is also stored in the row."""
    value = record[PERMUTATION]
    if isinstance(value, str):
        permutation, repaired = parse_permutation(value, len(documents))
        answer = clean_text(value, PERMUTATION)
        return {PERMUTATION: permutation, "answer": answer, "repaired": str(repaired).lower()}
    places = {document["id"]: index for index, document in enumerate(documents) if document["id"] is not None}
    permutation = []
    for index, entry in enumerate(read_list(record, PERMUTATION)):
        if isinstance(entry, str) and entry in places:
            permutation.append(places[entry])
        elif isinstance(entry, Integral) and not isinstance(entry, bool) and abs(int(entry)) < 2**63:
            permutation.append(int(entry))
        else:
            raise InputError(
                f"permutation[{index}]: expected a document's index or the id of one, got {describe(entry)}"
            )
    return {PERMUTATION: permutation}


def parse_permutation(answer: str, n_documents: int) -> tuple[list[int], bool]:
    """A stored answer such as "[2] > [1] > [3]" as 0-based indices, best first.

    The numbers in the text count from 1 and are completed to a permutation as in `complete_order`; an answer with
    fewer than half of the documents gives an empty list, which the checks reject. Every number in the text counts, so
    that stored rows keep their order; `rankers.listwise_answers` defines what counts in a new answer.

    Returns:
        The permutation, and whether the answer had to be repaired.
    """
    # More than nine digits are not a document's number, and Python refuses to convert thousands of them.
    numbers = [int(digits) - 1 if len(digits) <= 9 else -1 for digits in re.findall(r"\d+", answer)]
    permutation = complete_order(numbers, n_documents)
    return permutation, not permutation or permutation != numbers


def carried_fields(record: Record, row: Record) -> dict[str, str | None]:
    """Other fields with a plain value, as strings (type, source, teacher, …)."""
    return {
        name: None if value is None else clean_text(str(value), name)
        for name, value in record.items()
        if name not in READ_FIELDS
        and name not in row
        and not name.startswith("negative_")
        and (value is None or isinstance(value, (str, int, float)))
    }


def positive_places(row: Record) -> tuple[list[int], list[int]]:
    """Indices of the relevant documents (label above 0) and of the others."""
    places = range(len(row["documents"]))
    positives = [i for i in places if row["labels"][i] > 0]
    return positives, [i for i in places if not row["labels"][i] > 0]


def positives_and_negatives(row: Record) -> Row:
    """The row with its documents as `positives` and `negatives`, without targets."""
    places = positive_places(row)
    positives, negatives = ([row["documents"][i] for i in side] for side in places)
    rest = {name: value for name, value in row.items() if name not in ("documents", PLACE, PERMUTATION, *TARGETS)}
    return {**rest, "positives": positives, "negatives": negatives}

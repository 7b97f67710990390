"""The file layouts that training data comes in, and their conversion into one canonical row per kind of training.

`training_data` holds the table for users. A layout is recognized by its field names; a converter takes one record and
returns the canonical row or raises `InputError` with the field's name, what was expected and what was found. Where the
record stands (file and line) is added by the caller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from modeling_tsarank.files.fields import FIELDS, as_id, field_name, without_nulls
from modeling_tsarank.rankers.listwise_answers import complete_order
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import clean_text, document_text


Record = Mapping[str, Any]

KINDS = ("cpt", "sft", "distill")
QUERY_FIELDS, LIST_FIELDS = FIELDS["query"], FIELDS["documents"]
SCORE_FIELDS = ("teacher_scores", "scores", "score")
TARGET_FIELDS = ("permutation", "teacher_scores", "labels")
SFT_SCORES = ("positive_scores", "negative_scores")
CANONICAL_FIELDS = {
    "cpt": ("query", "document"),
    "sft": ("query_id", "query", "positives", "negatives"),
    "distill": ("query_id", "query", "documents"),
}


@dataclass(frozen=True)
class Layout:
    """One way of writing a training row.

    Parameters:
        name (`str`): for messages.
        matches (`Callable`): whether a record with these field names has the layout.
        convert (`Callable`): record to canonical row.
        fields (`tuple[str, ...]`): what must be there, for messages.
    """

    name: str
    matches: Callable[[Collection[str]], bool]
    convert: Callable[[Record], dict[str, Any]]
    fields: str


def describe(value: Any) -> str:
    """The type of a wrong value, and the value itself where it is short."""
    shown = repr(value)
    return f"{type(value).__name__} {shown}" if len(shown) <= 40 else type(value).__name__


def read_text(record: Record, field: str) -> str:
    """A field that must be a string, as a model will read it; emptiness is a matter of the checks."""
    if field not in record or record[field] is None:
        raise InputError(f"{field}: missing; expected a string")
    if not isinstance(record[field], str):
        raise InputError(f"{field}: expected a string, got {describe(record[field])}")
    return clean_text(record[field], field)


def read_list(record: Record, field: str) -> list[Any]:
    """A field that must be a list."""
    if field not in record or record[field] is None:
        raise InputError(f"{field}: missing; expected a list")
    if not isinstance(record[field], (list, tuple)):
        raise InputError(f"{field}: expected a list, got {describe(record[field])}")
    return list(record[field])


def read_numbers(record: Record, field: str) -> list[float]:
    """A field that must be a list of numbers."""
    values = read_list(record, field)
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{field}[{index}]: expected a number, got {describe(value)}")
    return [float(value) for value in values]


def read_document(value: Any, field: str) -> dict[str, str | None]:
    """One document, a text or an object, as `{"docid", "title", "text"}`."""
    if isinstance(value, str):
        return {"docid": None, "title": None, "text": clean_text(value, field)}
    if not isinstance(value, Mapping):
        raise InputError(f"{field}: expected a text or an object with docid, title and text, got {describe(value)}")
    text_field = field_name(value, "text") or "text"
    text = value.get(text_field)
    if not isinstance(text, str):
        raise InputError(f"{field}.{text_field}: expected a string, got {describe(text)}")
    title = value.get("title")
    if title is not None and not isinstance(title, str):
        raise InputError(f"{field}.title: expected a string, got {describe(title)}")
    id_field = field_name(value, "id")
    return {
        "docid": None if id_field is None else as_id(value[id_field], f"{field}.{id_field}"),
        "title": clean_text(title or "", f"{field}.title") or None,
        "text": clean_text(text, f"{field}.{text_field}"),
    }


def read_documents(record: Record, field: str) -> list[dict[str, str | None]]:
    """A list of documents; a single text stands for a list of one."""
    if isinstance(record.get(field), str):
        return [read_document(record[field], field)]
    return [read_document(value, f"{field}[{index}]") for index, value in enumerate(read_list(record, field))]


def read_query(record: Record) -> dict[str, str | None]:
    """Query and its id."""
    field = _first(record, QUERY_FIELDS) or "query"
    id_field = field_name(record, "query_id_of_row")
    query_id = None if id_field is None else as_id(record[id_field], id_field)
    return {"query_id": query_id, "query": read_text(record, field)}


def parse_permutation(answer: str, n_documents: int) -> tuple[list[int], bool]:
    """A stored answer such as "[2] > [1] > [3]" as 0-based indexes, best first.

    The numbers of the text count from 1 and are completed to an order as `complete_order` says; an answer that names
    fewer than half of the documents gives an empty list, which the checks refuse. Every number of the text counts, so
    that stored rows keep their order; `rankers.listwise_answers` says what counts in a new answer.

    Returns:
        The permutation, and whether the answer had to be repaired.
    """
    # More than nine digits are no document's number, and Python refuses to convert thousands of them.
    numbers = [int(digits) - 1 if len(digits) <= 9 else -1 for digits in re.findall(r"\d+", answer)]
    permutation = complete_order(numbers, n_documents)
    return permutation, not permutation or permutation != numbers


def _first(record: Collection[str], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in record), None)


def _negative_fields(fields: Collection[str]) -> list[str]:
    """negatives, negative, negative_1, negative_2, ... as sentence-transformers writes them, in order."""
    numbered = [name for name in fields if re.fullmatch(r"negative_\d+", name)]
    numbered.sort(key=lambda name: int(name.rsplit("_", 1)[1]))
    return [name for name in ("negatives", "negative") if name in fields] + numbered


def _sft_canonical(record: Record) -> dict[str, Any]:
    row = read_query(record) | {
        "positives": read_documents(record, "positives"),
        "negatives": read_documents(record, "negatives"),
    }
    return row | _given_scores(record, "positive_scores", "negative_scores")


def _given_scores(record: Record, positives: str, negatives: str) -> dict[str, Any]:
    """A teacher's scores of positives and negatives, where the record has them."""
    if record.get(positives) is None and record.get(negatives) is None:
        return {}
    return {
        "positive_scores": read_numbers(record, positives),
        "negative_scores": read_numbers(record, negatives),
    }


def _sft_tevatron(record: Record) -> dict[str, Any]:
    positives = read_documents(record, "positive_passages")
    if "negative_passages" in record:
        negatives = read_documents(record, "negative_passages")
    else:
        # RankGPT's file: the candidates of the first stage, the positives among them left out.
        known = {document["docid"] for document in positives} - {None}
        texts = {document["text"] for document in positives}
        candidates = read_documents(record, "retrieved_passages")
        negatives = [
            document
            for document in candidates
            if (document["text"] not in texts if document["docid"] is None else document["docid"] not in known)
        ]
    return read_query(record) | {"positives": positives, "negatives": negatives}


def _sft_flag(record: Record) -> dict[str, Any]:
    row = read_query(record) | {
        "positives": read_documents(record, "pos"),
        "negatives": read_documents(record, "neg"),
    }
    return row | _given_scores(record, "pos_scores", "neg_scores")


def _sft_labelled(record: Record) -> dict[str, Any]:
    documents, labels = _labelled(record)
    for index, label in enumerate(labels):
        if not math.isfinite(label):
            raise InputError(f"labels[{index}]: expected a finite number, got {label}")
    pairs = list(zip(documents, labels, strict=True))
    return read_query(record) | {
        "positives": [document for document, label in pairs if label > 0],
        "negatives": [document for document, label in pairs if label <= 0],
    }


def _sft_triplet(record: Record) -> dict[str, Any]:
    negatives = [document for field in _negative_fields(record) for document in read_documents(record, field)]
    return read_query(record) | {"positives": read_documents(record, "positive"), "negatives": negatives}


def _labelled(record: Record) -> tuple[list[dict[str, str | None]], list[float]]:
    field = _first(record, LIST_FIELDS) or "documents"
    documents, labels = read_documents(record, field), read_numbers(record, "labels")
    if len(documents) != len(labels):
        raise InputError(f"labels: expected one for each of {len(documents)} documents, got {len(labels)}")
    return documents, labels


def _distill_list(record: Record) -> dict[str, Any]:
    field = _first(record, LIST_FIELDS) or "documents"
    row: dict[str, Any] = read_query(record) | {"documents": read_documents(record, field)}
    if "permutation" in record:
        row |= _read_permutation(record, row["documents"])
    scores = _first(record, SCORE_FIELDS)
    if scores is not None:
        row["teacher_scores"] = read_numbers(record, scores)
    if "labels" in record:
        row["labels"] = read_numbers(record, "labels")
    if not any(target in row for target in TARGET_FIELDS):
        raise InputError(f"{', '.join(TARGET_FIELDS)}: missing; expected one of them")
    return row


def _distill_retrieved(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = read_query(record) | {"documents": read_documents(record, "retrieved_passages")}
    if "permutation" in record:
        return row | _read_permutation(record, row["documents"])
    return row | {"permutation": list(range(len(row["documents"])))}


def _distill_scored(convert: Callable[[Record], dict[str, Any]]) -> Callable[[Record], dict[str, Any]]:
    """Positives and negatives that a teacher has scored, as one list with its scores."""

    def converted(record: Record) -> dict[str, Any]:
        row = convert(record)
        if "positive_scores" not in row:
            raise InputError("the scores of positives and negatives: missing; expected two lists")
        positives, negatives = row.pop("positives"), row.pop("negatives")
        scores = row.pop("positive_scores") + row.pop("negative_scores")
        return row | {"documents": positives + negatives, "teacher_scores": scores}

    return converted


def _distill_triplet(record: Record) -> dict[str, Any]:
    row = _sft_triplet(record)
    field = _first(record, (*SCORE_FIELDS, "label")) or "scores"
    margin = record.get(field)
    documents = row.pop("positives") + row.pop("negatives")
    if len(documents) == 2 and isinstance(margin, Real) and not isinstance(margin, bool):
        # MarginMSE data holds the teacher's margin; only differences of teacher scores enter a loss.
        return row | {"documents": documents, "teacher_scores": [float(margin), 0.0]}
    return row | {"documents": documents, "teacher_scores": read_numbers(record, field)}


def _read_permutation(record: Record, documents: list[dict[str, str | None]]) -> dict[str, Any]:
    """The permutation from indexes, docids or a teacher's answer; an answer is kept beside it."""
    value = record["permutation"]
    if isinstance(value, str):
        permutation, repaired = parse_permutation(value, len(documents))
        return {
            "permutation": permutation,
            "answer": clean_text(value, "permutation"),
            "repaired": str(repaired).lower(),
        }
    entries = read_list(record, "permutation")
    places = {document["docid"]: index for index, document in enumerate(documents) if document["docid"] is not None}
    permutation = []
    for index, entry in enumerate(entries):
        if isinstance(entry, str) and entry in places:
            permutation.append(places[entry])
        elif isinstance(entry, Integral) and not isinstance(entry, bool):
            permutation.append(int(entry))
        else:
            raise InputError(
                f"permutation[{index}]: expected a document's index or the docid of one, got {describe(entry)}"
            )
    return {"permutation": permutation}


def _distill_from_sft(convert: Callable[[Record], dict[str, Any]]) -> Callable[[Record], dict[str, Any]]:
    """Labelled data as graded lists: positives 1, negatives 0, for the losses that need labels alone."""

    def converted(record: Record) -> dict[str, Any]:
        row = convert(record)
        positives, negatives = row.pop("positives"), row.pop("negatives")
        for field in SFT_SCORES:
            row.pop(field, None)
        labels = [1.0] * len(positives) + [0.0] * len(negatives)
        return row | {"documents": positives + negatives, "labels": labels}

    return converted


def _cpt(record: Record) -> dict[str, Any]:
    field = next((field for field in ("document", "positive") if field in record), "document")
    value = record.get(field)
    document = document_text(read_document(value, field)) if isinstance(value, Mapping) else read_text(record, field)
    return {"query": read_query(record)["query"], "document": document}


def _has(*fields: str) -> Callable[[Collection[str]], bool]:
    return lambda given: all(field in given for field in fields)


def _has_list(*targets: str) -> Callable[[Collection[str]], bool]:
    return lambda given: _first(given, LIST_FIELDS) is not None and any(target in given for target in targets)


def _is_tevatron(given: Collection[str]) -> bool:
    return "positive_passages" in given and ("negative_passages" in given or "retrieved_passages" in given)


def _is_scored_triplet(given: Collection[str]) -> bool:
    scored = _first(given, (*SCORE_FIELDS, "label")) is not None
    return "positive" in given and bool(_negative_fields(given)) and scored


SFT_LAYOUTS = (
    Layout("tsarank", _has("positives", "negatives"), _sft_canonical, "query, positives, negatives"),
    Layout("tevatron", _is_tevatron, _sft_tevatron, "query, positive_passages, negative_passages"),
    Layout("flagembedding", _has("pos", "neg"), _sft_flag, "query, pos, neg"),
    Layout("labelled list", _has_list("labels"), _sft_labelled, "query, documents, labels"),
    Layout("triplet", _has("positive"), _sft_triplet, "query or anchor, positive, negative(s)"),
)
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "cpt": (Layout("pair", lambda given: "document" in given or "positive" in given, _cpt, "query, document"),),
    "sft": SFT_LAYOUTS,
    "distill": (
        Layout(
            "list",
            _has_list("permutation", "labels", *SCORE_FIELDS),
            _distill_list,
            "query, documents and permutation, teacher_scores or labels",
        ),
        Layout("rankgpt", _has("retrieved_passages"), _distill_retrieved, "query, retrieved_passages, permutation"),
        Layout(
            "tsarank scores",
            _has("positives", "negatives", *SFT_SCORES),
            _distill_scored(_sft_canonical),
            "query, positives, negatives, positive_scores, negative_scores",
        ),
        Layout(
            "flagembedding scores",
            _has("pos", "neg", "pos_scores", "neg_scores"),
            _distill_scored(_sft_flag),
            "query, pos, neg, pos_scores, neg_scores",
        ),
        Layout("scored triplet", _is_scored_triplet, _distill_triplet, "query, positive, negative(s), scores"),
        *(
            Layout(f"{layout.name} as labels", layout.matches, _distill_from_sft(layout.convert), layout.fields)
            for layout in SFT_LAYOUTS
        ),
    ),
}


def check_kind(kind: str) -> None:
    """Raises `InputError` for an unknown kind of training."""
    if kind not in KINDS:
        raise InputError(f"unknown kind of training data {kind!r}; expected one of {', '.join(KINDS)}")


def detect_layout(fields: Collection[str], kind: str) -> Layout:
    """The first layout of that kind which these field names fit.

    Raises:
        InputError: none fits, or there is no query; names the fields found and the layouts there are.
    """
    check_kind(kind)
    if _first(fields, QUERY_FIELDS) is not None:
        for layout in LAYOUTS[kind]:
            if layout.matches(fields):
                return layout
    known = "; ".join(dict.fromkeys(layout.fields for layout in LAYOUTS[kind]))
    raise InputError(f"fields {sorted(fields)} fit no layout for {kind} training; expected one of: {known}")


def layout_of(record: Record, kind: str) -> Layout:
    """`detect_layout` of a record: null fields count as absent, unless a layout is found only with them."""
    try:
        return detect_layout(without_nulls(record).keys(), kind)
    except InputError:
        return detect_layout(record.keys(), kind)


def canonical_row(record: Any, kind: str, layout: Layout | None = None) -> dict[str, Any]:
    """One record as a canonical row of its kind.

    Raises:
        InputError: not an object, no layout, or a field is missing or of a wrong type.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"expected an object with fields, got {describe(record)}")
    return (layout or layout_of(record, kind)).convert(without_nulls(record))

"""Field names in the files of other tools, and how ids and texts are extracted from a record.

All readers of records use these functions. A field that is null counts as absent. An id is a string or a whole number;
anything else (true, 1.5, a list) is an error and is not converted to text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import TEXT_FIELDS, TITLE_FIELDS, clean_text


FIELDS: dict[str, tuple[str, ...]] = {
    "id": ("_id", "docid", "id", "doc_id", "pid"),
    "query_id": ("_id", "id", "query_id", "qid"),
    "query_id_of_row": ("query_id", "qid"),
    "text": TEXT_FIELDS,
    "title": TITLE_FIELDS,
    "query": ("query", "anchor", "question"),
    "query_text": ("text", "contents", "content", "query", "question"),
    "document": ("document", "positive", *TEXT_FIELDS),
    "documents": ("documents", "docs", "passages"),
    "candidates": ("candidates", "hits"),
    "first_stage_score": ("first_stage_score", "score"),
}
"""Names of a field by its meaning, in order of preference."""


def field_name(record: Mapping[str, Any], meaning: str) -> str | None:
    """The name of a field of `FIELDS` in a record, `None` if absent or null."""
    return next((name for name in FIELDS[meaning] if record.get(name) is not None), None)


def without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's fields that are not null."""
    return {name: value for name, value in record.items() if value is not None}


def field_value(record: Mapping[str, Any], meaning: str) -> Any:
    """The value of a field of `FIELDS`, `None` if absent or null."""
    name = field_name(record, meaning)
    return None if name is None else record[name]


def as_id(value: Any, what: str) -> str:
    """An id as text.

    Args:
        value: A string or a whole number.
        what: Place and field for the error message.

    Raises:
        InputError: It is neither, is empty, or has characters that are invalid in an id.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str) or not value:
        raise InputError(f"{what} must be a string or a whole number, found {shown(value)}")
    if "\0" in value or (not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value)):
        raise InputError(f"{what} {value!a:.60} has a NUL or a lone surrogate, which no result file can have")
    return value


def optional_id(record: Mapping[str, Any], place: str, meaning: str = "id") -> str | None:
    """The id of a record, `None` if it has none.

    Raises:
        InputError: See `as_id`.
    """
    name = field_name(record, meaning)
    return None if name is None else as_id(record[name], f"{place}: {name!r}")


def record_id(record: Mapping[str, Any], place: str, meaning: str = "id") -> str:
    """The id of a record.

    Raises:
        InputError: There is none, or see `as_id`.
    """
    identifier = optional_id(record, place, meaning)
    if identifier is None:
        raise InputError(f"{place}: no {one_of(FIELDS[meaning])}; fields: {field_list(record)}")
    return identifier


def record_text(record: Mapping[str, Any], place: str, meaning: str = "text") -> str:
    """The text of a record, unchanged except for lone surrogates.

    Raises:
        InputError: There is none, or it is not a string.
    """
    name = field_name(record, meaning)
    if name is None:
        raise InputError(f"{place}: no {one_of(FIELDS[meaning])}; fields: {field_list(record)}")
    return _string(record[name], name, place)


def record_title(record: Mapping[str, Any], place: str) -> str:
    """The title of a record, empty if it has none.

    Raises:
        InputError: It is not a string.
    """
    name = field_name(record, "title")
    return "" if name is None else _string(record[name], name, place)


def optional_number(record: Mapping[str, Any], place: str, meaning: str) -> float | None:
    """The number of a record, also as text (from tables); `None` if it has none.

    Raises:
        InputError: It is not a finite number.
    """
    name = field_name(record, meaning)
    value = None if name is None else record[name]
    try:
        number = math.nan if isinstance(value, bool) else float("nan" if value is None else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if name is not None and not math.isfinite(number):
        raise InputError(f"{place}: {name!r} must be a finite number, found {shown(value)}")
    return None if name is None else number


def field_text(record: Mapping[str, Any], name: str, place: str) -> str | None:
    """The text of the field with exactly this name, `None` if absent or null.

    Raises:
        InputError: It is not a string.
    """
    return None if record.get(name) is None else _string(record[name], name, place)


def _string(value: Any, name: str, place: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{place}: {name!r} must be a string, found {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return clean_text(value, f"{place}: {name!r}")
    return value


def shown(value: Any) -> str:
    """An invalid value for an error message: shortened, on one line."""
    text = ascii(value) if isinstance(value, str) else repr(value)
    return f"{text:.60}{'…' if len(text) > 60 else ''}"


def field_list(record: Mapping[str, Any]) -> str:
    """The names of a record's fields for an error message; null ones are absent."""
    names = [str(name) for name, value in record.items() if value is not None]
    return f"{', '.join(names):.200}" or "none"


def one_of(names: Sequence[str]) -> str:
    """Names for an error message: `'_id', 'id' or 'docid'`."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last

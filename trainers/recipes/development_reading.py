"""Queries and passages of the raw files, whatever their layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.beir import read_queries
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.provenance import describe_file
from modeling_tsarank.trainers.data.weak_text import words_of
from modeling_tsarank.trainers.recipes.release_sources import SUFFIX, reread
from modeling_tsarank.trainers.training_sources import read_records


@dataclass(frozen=True)
class Judged:
    """A query with passages and what is known of each: a grade, a label or a teacher's score."""

    query: str
    texts: tuple[str, ...]
    values: tuple[float, ...]
    target: str = "labels"


def read_judged(
    data: Path, names: Sequence[str], words: int, limit: int, report: dict[str, Any], origins: Sequence[str] = ()
) -> list[Judged]:
    """Rows of files of any of the raw layouts, one for each query."""
    rows: dict[tuple[str, ...], Judged] = {}
    for name in names:
        path = data / f"{name}{SUFFIX}"
        if not path.is_file():
            raise InputError(f"there is no {path}")
        report["inputs"][f"{name}{SUFFIX}"] = describe_file(path)
        for number, (place, record) in enumerate(read_records(path)):
            if limit and number >= limit:
                break
            if origins and not any(fnmatchcase(record["source"], one) for one in origins):
                continue
            row = _judged(record, words, place)
            if row is not None:
                key = tuple(words_of(row.query))
                rows[key] = _merged(rows[key], row) if key in rows else row
    return list(rows.values())


def _judged(record: Mapping[str, Any], words: int, place: str) -> Judged | None:
    """A row's query and passages; None where it has none."""
    target = "labels"
    if "passages" in record:
        given = record["passages"]
        name = next((one for one in ("score", "grade", "label") if given and one in given[0]), None)
        if given and name is None:
            raise InputError(f"{place}: passages have neither score, grade nor label")
        pairs = [(one["text"], float(one[name])) for one in given]
        target = "teacher_scores" if name == "score" else target
    elif "candidates" in record:
        pairs = [(text, 0.0) for text in record["candidates"]]
    elif "document" in record:
        pairs = [(record["document"], 1.0)]
    elif "text" in record:
        return Judged("", (_cut(record["text"], words),), (0.0,))
    else:
        both = (("positives", 1.0), ("negatives", 0.0))
        pairs = [(one if isinstance(one, str) else one["text"], value) for name, value in both for one in record[name]]
    best: dict[str, float] = {}
    for text, value in pairs:
        text = _cut(text, words)
        if text:
            best[text] = max(value, best.get(text, value))
    query = " ".join(reread(record["query"]).split())
    return Judged(query, tuple(best), tuple(best.values()), target) if query and best else None


def _cut(text: str, words: int) -> str:
    return " ".join(reread(text).split()[:words])


def _merged(one: Judged, other: Judged) -> Judged:
    best = dict(zip(other.texts, other.values, strict=True))
    for text, value in zip(one.texts, one.values, strict=True):
        best[text] = max(value, best.get(text, value))
    return Judged(one.query, tuple(best), tuple(best.values()), one.target)


def passages_of(data: Path, name: str, words: int, limit: int, report: dict[str, Any]) -> Iterable[str]:
    path = data / f"{name}{SUFFIX}"
    report["inputs"][f"{name}{SUFFIX}"] = describe_file(path)
    for number, (place, record) in enumerate(read_records(path)):
        if limit and number >= limit:
            break
        row = _judged(record, words, place)
        yield from () if row is None else row.texts


def queries_of(data: Path, name: str, limit: int, report: dict[str, Any]) -> list[str]:
    path = data / (name if name.endswith(".gz") else f"{name}{SUFFIX}")
    report["inputs"][path.relative_to(data).as_posix()] = describe_file(path)
    if name.endswith(".gz"):
        return list(read_queries(path).values())[: limit or None]
    return [str(record["query"]) for _, record in islice(read_records(path), limit or None)]

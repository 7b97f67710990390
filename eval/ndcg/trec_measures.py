"""trec_eval's measures over runs and qrels, computed by pytrec_eval after input checks.

This file has no dependency on the package because it is published with the `evaluate` module on the Hub. It therefore
raises ValueError; `modeling_tsarank.eval.metrics` converts that to the package's InputError.

Behaviour of pytrec_eval-terrier 0.5.11 that is guarded against here:

- a cutoff of 0 or less aborts the whole process, so cutoffs are checked first;
- an id with a NUL character is truncated there by C and gives wrong results, a lone surrogate crashes: both raise;
- a relevance grade g allocates g + 1 counters: grades above `MAX_GRADE` raise;
- negative grades count as 0 in every measure here, but index C arrays: 0 is passed instead;
- NaN scores sort unpredictably: they raise. Infinite scores sort correctly and are accepted;
- scores are compared as float32. Scores that differ only beyond that tie, as in trec_eval 9;
- NumPy float32 scalars are not accepted: every score is passed as a Python float.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import pytrec_eval


MAX_CUTOFF = 1_000_000
MAX_GRADE = 1_000_000
KNOWN_MEASURES = "ndcg@k, map, map@k, mrr@k, recall@k, p@k"

_REQUESTS = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "p": "P"}
_PATTERN = re.compile(r"(ndcg|map|mrr|recall|p)@([0-9]+)|map", re.ASCII)


@dataclass(frozen=True)
class Measure:
    """One measure: its canonical name, the name passed to pytrec_eval, and the key of its result."""

    name: str
    request: str
    key: str
    reciprocal_rank_cutoff: int = 0

    def value(self, answers: Mapping[str, float]) -> float:
        """The value from pytrec_eval's results for one query."""
        value = answers[self.key]
        if self.reciprocal_rank_cutoff and value < 1.0 / self.reciprocal_rank_cutoff:
            # The first relevant document is below the cutoff, so the truncated run has none.
            return 0.0
        return value


def parse_measure(name: str) -> Measure:
    """Parses a measure's name, such as `nDCG@10` (case-insensitive).

    Raises:
        ValueError: The name is not one of `KNOWN_MEASURES` or its k is not between 1 and `MAX_CUTOFF`.
    """
    canonical = str(name).strip().lower()
    match = _PATTERN.fullmatch(canonical)
    if match is None:
        raise ValueError(f"unknown measure {name!r}; known are {KNOWN_MEASURES} (k a whole number of 1 or more)")
    if canonical == "map":
        return Measure("map", "map", "map")
    family, cutoff = match.group(1), int(match.group(2))
    if not 1 <= cutoff <= MAX_CUTOFF:
        raise ValueError(f"measure {name!r}: k must be between 1 and {MAX_CUTOFF}")
    if family == "mrr":
        return Measure(f"mrr@{cutoff}", "recip_rank", "recip_rank", cutoff)
    request = _REQUESTS[family]
    return Measure(f"{family}@{cutoff}", f"{request}.{cutoff}", f"{request}_{cutoff}")


def nested_from_rows(rows: Iterable[tuple[str, str, Any]], what: str) -> dict[str, dict[str, Any]]:
    """Rows (query id, document id, value) as query id to document id to value.

    Identical repeated rows are merged.

    Raises:
        ValueError: One document has two different values for one query.
    """
    nested: dict[str, dict[str, Any]] = {}
    for query_id, document_id, value in rows:
        values = nested.setdefault(query_id, {})
        kept = values.setdefault(document_id, value)
        if kept != value and not (kept != kept and value != value):  # NaN is unequal even to itself
            raise ValueError(
                f"{what}: document {document_id!r} has two values for query {query_id!r}, "
                f"{values[document_id]} and {value}; keep one"
            )
    return nested


def evaluate_run(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    complete: bool = True,
    relevance_level: int = 1,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Measures of `run` against `qrels`, as trec_eval computes them.

    Args:
        run: Query id to document id to score. Queries without judgments are ignored; a query without documents
            is treated like a missing one, because a TREC run file cannot represent the difference.
        qrels: Query id to document id to grade.
        measures: Names, see `KNOWN_MEASURES`.
        complete: As `trec_eval -c`: the mean is over every query of `qrels`, 0 for those missing from the run.
            Otherwise over the queries in both. A judged query without relevant documents has 0 in
            every measure and is part of the mean either way, as in trec_eval (meas_avg.c).
        relevance_level: Lowest grade that counts as relevant in the binary measures; nDCG does not use it.

    Returns:
        Measure to mean, and query id to measure to value.

    Raises:
        ValueError: A name, an id, a score or a grade is unusable, or run and qrels share no query.
    """
    wanted = list(dict.fromkeys(parse_measure(name) for name in measures))
    if not wanted:
        raise ValueError(f"no measure was given; known are {KNOWN_MEASURES}")
    relevance_level = whole_number(relevance_level, "relevance_level")
    judged = {_checked_id(query_id): _grades(query_id, grades) for query_id, grades in qrels.items() if grades}
    if not judged:
        raise ValueError("the qrels contain no judgment")
    shared = {query_id: _scores(query_id, run[query_id]) for query_id in judged if run.get(query_id)}
    if not shared:
        raise ValueError(
            f"run ({_some(run)}) and qrels ({_some(judged)}) have no query in common; are they of the same collection?"
        )
    requests = {measure.request for measure in wanted}
    answers = pytrec_eval.RelevanceEvaluator(judged, requests, relevance_level=relevance_level).evaluate(shared)
    per_query: dict[str, dict[str, float]] = {}
    for query_id in judged:
        if query_id in answers:
            per_query[query_id] = {measure.name: measure.value(answers[query_id]) for measure in wanted}
        elif complete:
            per_query[query_id] = {measure.name: 0.0 for measure in wanted}
    aggregate = {
        measure.name: math.fsum(values[measure.name] for values in per_query.values()) / len(per_query)
        for measure in wanted
    }
    return aggregate, per_query


def whole_number(value: Any, what: str) -> int:
    """`value` as an `int`; NumPy's integers are accepted, booleans are not.

    Raises:
        ValueError: It is anything else, or below 1; `what` names it in the message.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{what} must be a whole number of 1 or more, got {value!r}")
    return int(value)


def checked_score(value: Any, place: str) -> float:
    """A score as a Python float. Raises `ValueError` if it is not a number; `place` is for the message."""
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if math.isnan(score):
        raise ValueError(f"{place}: the score {value!r} is not a number")
    return score


def checked_grade(value: Any, place: str) -> int:
    """A grade as a Python integer. Raises `ValueError` unless it is whole and small; `place` is for the message."""
    try:
        grade = int(value)
        whole = bool(grade == value) and grade <= MAX_GRADE
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise ValueError(f"{place}: the relevance {value!r} is not a whole number of at most {MAX_GRADE}")
    return grade


def place_of(query_id: Any, document_id: Any) -> str:
    """The name of one row in error messages."""
    return f"query {query_id!r}, document {document_id!r}"


def _some(queries: Mapping[str, object]) -> str:
    """The first query ids, for an error message."""
    if not queries:
        return "no queries"
    shown = ", ".join(repr(query_id) for query_id in list(queries)[:3])
    return f"{len(queries)} {'query' if len(queries) == 1 else 'queries'}: {shown}{', …' if len(queries) > 3 else ''}"


def _checked_id(identifier: str) -> str:
    if not isinstance(identifier, str):
        raise ValueError(f"ids must be strings, got {identifier!r} ({type(identifier).__name__})")
    if "\0" in identifier or any("\ud800" <= character <= "\udfff" for character in identifier):
        raise ValueError(f"id {identifier!r} contains a NUL or a lone surrogate; trec_eval cannot compare such ids")
    return identifier


def _scores(query_id: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Scores as Python floats."""
    return {_checked_id(one): checked_score(score, place_of(query_id, one)) for one, score in scores.items()}


def _grades(query_id: str, grades: Mapping[str, int]) -> dict[str, int]:
    """Grades as Python integers, negative ones as 0."""
    return {_checked_id(one): max(checked_grade(grade, place_of(query_id, one)), 0) for one, grade in grades.items()}

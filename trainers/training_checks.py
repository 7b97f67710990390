"""Checks of canonical training rows, run before a model is loaded: one message that names row, field and remedy."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import document_text
from modeling_tsarank.trainers.training_layouts import (
    TARGET_FIELDS,
    Record,
    canonical_row,
    check_kind,
)


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

# What a canonical column is called among the targets of the losses.
LOSS_TARGETS = {"permutation": "ranks", "teacher_scores": "teacher_scores", "labels": "labels"}


def row_problem(record: Any, kind: str, negatives: int | None = None, allow_fewer: bool = False) -> str | None:
    """What is wrong with one row, as "field: what was expected and found", or `None`.

    Args:
        record: a canonical row (any layout of the kind is understood).
        kind: "cpt", "sft" or "distill".
        negatives: m, how many negatives of a row the training draws; `None` asks for at least one.
        allow_fewer: accept a row with fewer than m negatives, but at least one.
    """
    return _inspect(record, kind, negatives, allow_fewer)[1]


def _inspect(
    record: Any, kind: str, negatives: int | None, allow_fewer: bool
) -> tuple[dict[str, Any] | None, str | None]:
    """The canonical row, where there is one, and its problem, where there is one."""
    try:
        row = canonical_row(record, kind)
    except InputError as error:
        return None, str(error)
    if not row["query"].strip():
        return row, "query: the text is empty"
    if kind == "cpt":
        return row, None if row["document"].strip() else "document: the text is empty"
    if kind == "sft":
        return row, _sft_problem(row, negatives, allow_fewer)
    return row, _distill_problem(row)


def check_rows(
    rows: Dataset | Sequence[Record],
    kind: str,
    *,
    negatives: int | None = None,
    allow_fewer: bool = False,
    minimum_rows: int = 2,
    loss: str | None = None,
) -> None:
    """Checks a whole dataset before training starts.

    Every row is looked at, so that the message can say how many are affected; the first one is described.

    Args:
        rows: canonical rows, as `load_training_rows` gives them.
        kind: "cpt", "sft" or "distill".
        negatives: m, see `row_problem`.
        allow_fewer: see `row_problem`.
        minimum_rows: fewer rows than this are an error; a dataset of one row is nearly always a mistake.
        loss: for "distill", the name of a ranking loss whose targets the data must have.

    Raises:
        InputError: names the row (counted from 1), the field, what was expected and what to do.
    """
    check_kind(kind)
    if len(rows) < minimum_rows:
        found = "no rows" if len(rows) == 0 else f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
        raise InputError(f"the {kind} dataset has {found}; training needs at least {minimum_rows}")
    first, bad = "", 0
    targets: set[str] | None = None
    for number, record in enumerate(_progress(rows, "checking rows"), start=1):
        row, problem = _inspect(record, kind, negatives, allow_fewer)
        if row is not None and problem is None:
            given = {name for name in TARGET_FIELDS if name in row}
            targets = given if targets is None else targets & given
        if problem is not None:
            bad += 1
            first = first or f"row {number}: {problem}"
    if bad:
        rest = f"; {bad} of {len(rows)} rows have a problem (drop_unusable_rows leaves them out)" if bad > 1 else ""
        raise InputError(first + rest)
    if kind == "distill" and loss is not None and targets is not None:
        _check_loss(loss, targets)


def drop_unusable_rows(
    dataset: Dataset, kind: str, *, negatives: int | None = None, allow_fewer: bool = False
) -> Dataset:
    """The rows that pass the checks, in order; how many were left out, and over which field, is logged as a warning.

    Real collections have questions without a right answer: leaving those out is a decision that the user takes by
    calling this, never a default.

    Args:
        dataset: canonical rows.
        kind: "cpt", "sft" or "distill".
        negatives: m, see `row_problem`.
        allow_fewer: see `row_problem`.

    Raises:
        InputError: no row is left.
    """
    check_kind(kind)
    kept: list[int] = []
    reasons: Counter[str] = Counter()
    for index, row in enumerate(_progress(dataset, "checking rows")):
        problem = row_problem(row, kind, negatives, allow_fewer)
        if problem is None:
            kept.append(index)
        else:
            reasons[problem.split(":", 1)[0].split("[", 1)[0]] += 1
    if not kept:
        raise InputError(f"none of the {len(dataset)} rows can be used for {kind} training; {_listed(reasons)}")
    if reasons:
        logger.warning("left out %d of %d rows; %s", sum(reasons.values()), len(dataset), _listed(reasons))
    return dataset.select(kept) if reasons else dataset


def _listed(reasons: Counter[str]) -> str:
    return "by field: " + ", ".join(f"{field} {count}" for field, count in reasons.most_common())


def _progress(rows: Iterable[Record], description: str) -> Iterable[Record]:
    total = len(rows) if isinstance(rows, Sized) else None
    return tqdm(rows, desc=description, total=total, unit="row", leave=False, disable=None)


def _sft_problem(row: dict[str, Any], negatives: int | None, allow_fewer: bool) -> str | None:
    for field in ("positives", "negatives"):
        if not row[field]:
            return f"{field}: the list is empty; expected at least one document"
        problem = _empty_document(row[field], field)
        if problem is not None:
            return problem
    problem = _shared_document(row["positives"], row["negatives"])
    for field in ("positive", "negative"):
        if f"{field}_scores" in row:
            count = len(row[f"{field}s"])
            problem = problem or _numbers_problem(row[f"{field}_scores"], f"{field}_scores", count)
    if problem is not None:
        return problem
    if negatives is not None and len(row["negatives"]) < negatives and not allow_fewer:
        return (
            f"negatives: expected at least the {negatives} asked for, got {len(row['negatives'])}; "
            "ask for fewer or set allow_fewer"
        )
    return None


def _empty_document(documents: list[dict[str, Any]], field: str) -> str | None:
    for index, document in enumerate(documents):
        if not document_text(document):
            return f"{field}[{index}]: the document is empty"
    return None


def _shared_document(positives: list[dict[str, Any]], negatives: list[dict[str, Any]]) -> str | None:
    ids = {document["docid"] for document in positives if document["docid"] is not None}
    texts = {plain_text(document_text(document)) for document in positives}
    for index, document in enumerate(negatives):
        if document["docid"] in ids:
            return f"negatives[{index}]: has the docid {document['docid']!r} of a positive"
        if plain_text(document_text(document)) in texts:
            return f"negatives[{index}]: has the text of a positive (white space, case and Unicode form aside)"
    return None


def plain_text(text: str) -> str:
    """A text to compare by: Unicode NFKC, case folded, every run of white space one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _distill_problem(row: dict[str, Any]) -> str | None:
    count = len(row["documents"])
    if count < 2:
        return f"documents: expected at least two to put in order, got {count}"
    problem = _empty_document(row["documents"], "documents")
    if problem is not None:
        return problem
    if "permutation" in row:
        problem = _permutation_problem(row["permutation"], count)
    for field in ("teacher_scores", "labels"):
        if problem is None and field in row:
            problem = _numbers_problem(row[field], field, count)
    return problem


def _permutation_problem(permutation: list[int], count: int) -> str | None:
    if not permutation:
        return "permutation: empty (a teacher's answer that names fewer than half of the documents has failed)"
    seen: set[int] = set()
    for index, place in enumerate(permutation):
        if not 0 <= place < count:
            return f"permutation[{index}]: {place} is out of range; expected a document's index, 0 to {count - 1}"
        if place in seen:
            return f"permutation[{index}]: {place} is repeated; expected each document once"
        seen.add(place)
    if len(permutation) < count:
        return f"permutation: names {len(permutation)} of {count} documents; expected each once"
    return None


def _numbers_problem(values: list[float], field: str, count: int) -> str | None:
    if len(values) != count:
        return f"{field}: expected one for each of {count} documents, got {len(values)}"
    for index, value in enumerate(values):
        if not math.isfinite(value):
            return f"{field}[{index}]: expected a finite number, got {value}"
        if field == "labels" and value < 0:
            return f"{field}[{index}]: expected a grade of at least 0, got {value:g}"
    return None


def _check_loss(loss: str, targets: set[str]) -> None:
    from modeling_tsarank.trainers.losses import get_ranking_loss

    given = sorted(LOSS_TARGETS[name] for name in targets)
    missing = get_ranking_loss(loss).missing_targets(given)
    if missing:
        raise InputError(
            f"the loss {loss} needs {', '.join(missing)} and the rows have {', '.join(given) or 'no targets'}; "
            "take another loss or another dataset"
        )

"""Checks of training rows, once before training: one message with file, row, field and remedy."""

from __future__ import annotations

import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import document_text
from modeling_tsarank.trainers.losses import get_objective
from modeling_tsarank.trainers.rows import PERMUTATION, PLACE, TARGETS, Record, count_problem, positive_places
from modeling_tsarank.trainers.training_data import is_read, load_training_rows


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RowRules:
    """The requirements of a training on its rows.

    Attributes:
        objectives: names of the objectives, whose targets are required.
        positives: whether labels are required.
        negatives: m, if one positive and m negatives are sampled; `None` if whole lists are used.
        allow_fewer: accept a row with fewer than m negatives, but at least one.
        least_documents: minimum number of documents.
    """

    objectives: tuple[str, ...] = ()
    positives: bool = False
    negatives: int | None = None
    allow_fewer: bool = False
    least_documents: int = 2


def row_problem(row: Record, rules: RowRules) -> str | None:
    """What is wrong with a row, as "field: what was expected and found", or `None`."""
    if not row["query"].strip():
        return "query: the text is empty"
    documents = row["documents"]
    if len(documents) < rules.least_documents:
        return f"documents: expected at least {rules.least_documents}, got {len(documents)}"
    for index, document in enumerate(documents):
        if not document_text(document):
            return f"documents[{index}]: the document is empty"
    if row.get(PERMUTATION) is not None and (problem := _permutation_problem(row[PERMUTATION], len(documents))):
        return problem
    for target in TARGETS:
        if row.get(target) is not None and (problem := _numbers_problem(row[target], target, len(documents))):
            return problem
    labels = row.get("labels")
    if rules.negatives is not None:
        return _positives_problem(row, rules)
    if rules.least_documents == 1:
        return None if labels is None or positive_places(row)[0] else "positives: no document has a label above 0"
    for index, label in enumerate(labels or ()):
        if label < 0:
            return f"labels[{index}]: expected a grade of at least 0, got {label:g}"
    return None


def _permutation_problem(permutation: list[int], count: int) -> str | None:
    if not permutation:
        return "permutation: empty (a teacher's answer with fewer than half of the documents counts as failed)"
    seen: set[int] = set()
    for index, place in enumerate(permutation):
        if not 0 <= place < count:
            return f"permutation[{index}]: {place} is out of range; expected a document's index, 0 to {count - 1}"
        if place in seen:
            return f"permutation[{index}]: {place} is repeated; expected each document once"
        seen.add(place)
    return None if len(permutation) == count else f"permutation: contains {len(permutation)} of {count} documents"


def _numbers_problem(values: list[float], field: str, count: int) -> str | None:
    if len(values) != count:
        return count_problem(field, count, len(values))
    for index, value in enumerate(values):
        if not math.isfinite(value):
            return f"{field}[{index}]: expected a finite number, got {value}"
    return None


def _positives_problem(row: Record, rules: RowRules) -> str | None:
    """Why one positive and some negatives cannot be sampled, or `None`."""
    if row.get("labels") is None:
        return "labels: missing; they are needed to tell positives and negatives apart"
    positives, negatives = positive_places(row)
    if not positives:
        return "positives: no document has a label above 0"
    if not negatives:
        return "negatives: no document has the label 0"
    documents = row["documents"]
    ids = {documents[i]["id"] for i in positives} - {None}
    texts = {plain_text(document_text(documents[i])) for i in positives}
    for place in negatives:
        if documents[place]["id"] in ids:
            return f"negatives: documents[{place}] has the id {documents[place]['id']!r} of a positive"
        if plain_text(document_text(documents[place])) in texts:
            return (
                f"negatives: documents[{place}] has the text of a positive (white space, case and Unicode form aside)"
            )
    if len(negatives) < (rules.negatives or 0) and not rules.allow_fewer:
        return (
            f"negatives: expected at least {rules.negatives}, got {len(negatives)}; lower num_negatives "
            "or set allow_fewer_negatives"
        )
    return None


def plain_text(text: str) -> str:
    """A text normalized for comparison: Unicode NFKC, case folded, every run of white space one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


@dataclass(frozen=True)
class CheckedRows:
    """Rows that meet the requirements of a training."""

    rows: Dataset
    rules: RowRules


def checked_rows(
    source: Any,
    rules: RowRules,
    *,
    minimum_rows: int = 2,
    drop_unusable: bool = False,
    limit: int | None = None,
    **reading: Any,
) -> CheckedRows:
    """Loads training data and checks them before training starts.

    All rows are checked, so that the message can say how many are affected; the first one is described.

    Args:
        source: anything that `load_training_rows` accepts, or rows that were checked before.
        rules: the requirements of the training.
        minimum_rows: minimum number of rows; a dataset of one row is nearly always a mistake.
        drop_unusable: leave out invalid rows, with a warning. Real collections have questions without a right answer:
            leaving those out is the user's decision, never a default.
        limit: use only the first N valid rows.
        reading: keyword arguments of `load_training_rows`.

    Raises:
        InputError: names file and row, the field, what was expected and what to do; or an error of
            `load_training_rows`.
    """
    if isinstance(source, CheckedRows):
        if source.rules == rules:
            return source
        source = source.rows
    rows = source if is_read(source) else load_training_rows(source, positives=rules.positives, **reading)
    for name in rules.objectives:
        _check_targets(name, rows.column_names)
    _check_size(rows, minimum_rows)
    kept: list[int] = []
    first, reasons = "", Counter[str]()
    for index, row in enumerate(tqdm(rows, desc="checking rows", unit="row", leave=False, disable=None)):
        if len(kept) == limit:
            break
        problem = row_problem(row, rules)
        if problem is None:
            kept.append(index)
        else:
            first = first or f"{row.get(PLACE) or f'row {index + 1}'}: {problem}"
            reasons[problem.split(":", 1)[0].split("[", 1)[0]] += 1
    bad, listed = sum(reasons.values()), ", ".join(f"{field} {count}" for field, count in reasons.most_common())
    if bad and not drop_unusable:
        rest = f"; {bad} of {len(rows)} rows have a problem (drop_unusable_rows leaves them out)" if bad > 1 else ""
        raise InputError(first + rest)
    if bad and not kept:
        raise InputError(f"none of the {len(rows)} rows can be used; by field: {listed}; {first}")
    if bad:
        logger.warning("left out %d of %d rows; by field: %s; %s", bad, len(rows), listed, first)
    rows = rows.select(kept) if len(kept) < len(rows) else rows
    _check_size(rows, minimum_rows)
    return CheckedRows(rows, rules)


def _check_size(rows: Dataset, minimum: int) -> None:
    if len(rows) < minimum:
        found = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
        raise InputError(f"the training data have {found}; training needs at least {minimum}")


def _check_targets(name: str, columns: Sequence[str]) -> None:
    given = [*(["ranks"] if PERMUTATION in columns else []), *(target for target in TARGETS if target in columns)]
    missing = get_objective(name).missing_targets(given)
    if missing:
        raise InputError(
            f"the loss {name} needs {', '.join(missing)}, but the rows have {', '.join(given) or 'no targets'}; "
            "use another loss or another dataset"
        )

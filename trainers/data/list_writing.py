"""The files of a set of distillation lists: rows for training, failures beside them, and a report that adds up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.types import Document
from modeling_tsarank.files.tables import arrow
from modeling_tsarank.files.writing import whole_file, write_jsonl
from modeling_tsarank.rankers.listwise import Ordering
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.list_building import ListTask, place_of
from modeling_tsarank.trainers.data.provenance import write_provenance


PACKAGES = ("bm25s", "httpx2", "pyarrow", "sentence-transformers", "torch", "transformers")
"""Packages whose versions are recorded with a set."""

Row = Mapping[str, Any]

FAILED_FILE = "failed.ndjson"
"""Lists without an order; the suffix is one that no reader of training data takes for rows."""


def distillation_row(
    task: ListTask, ordering: Ordering, documents: Mapping[str, Document], teacher: str, prompt: str | None
) -> dict[str, Any]:
    """A row that `trainers.training_data` reads as distillation data, with where it comes from.

    Documents stand in the first stage's order; `permutation` has their indexes from 0 in the teacher's order, best
    first; `teacher_scores`, where the teacher gives scores, one a document. `answer` is the raw answer (null of a
    teacher that gives scores), `repaired` "true" or "false".

    Raises:
        InputError: the list was not ordered.
    """
    if ordering.permutation is None:
        raise InputError(f"the list of query {task.query.query_id!r} has no order ({ordering.outcome})")
    row: dict[str, Any] = {
        "query_id": task.query.query_id,
        "query": task.query.text,
        "documents": [_document(name, documents[name]) for name in task.document_ids],
        "permutation": list(ordering.permutation),
    }
    if ordering.scores is not None:
        row["teacher_scores"] = list(ordering.scores)
    return row | {
        "query_type": task.query.query_type,
        "source_docid": task.query.source,
        "generator": task.query.generator,
        "first_stage": task.first_stage,
        "teacher": teacher,
        "prompt": prompt,
        "answer": ordering.raw_answer if ordering.scores is None else None,
        "repaired": "true" if ordering.outcome == "repaired" else "false",
    }


def _document(name: str, document: Document) -> dict[str, str | None]:
    return {"docid": name, "title": document.title or None, "text": document.text}


def failed_row(task: ListTask, ordering: Ordering, teacher: str) -> dict[str, Any]:
    """What is recorded of a list without an order: everything but a permutation."""
    return {
        **asdict(task.query),
        "first_stage": task.first_stage,
        "document_ids": list(task.document_ids),
        "teacher": teacher,
        "outcome": ordering.outcome,
        "reason": ordering.reason,
        "answers": ordering.answers,
    }


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes distillation rows, whole or not at all.

    Raises:
        ResourceError: pyarrow is missing or the file cannot be written.
    """
    pa = arrow("data")
    text = pa.string()
    document = pa.struct([("docid", text), ("title", text), ("text", text)])
    known = {
        "documents": pa.list_(document),
        "permutation": pa.list_(pa.int64()),
        "teacher_scores": pa.list_(pa.float64()),
    }
    columns = list(dict.fromkeys(name for row in rows for name in row))
    schema = pa.schema([(name, known.get(name, text)) for name in columns])
    with whole_file(path) as temporary:
        pa.parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def write_lists(
    output: Path,
    tasks: Sequence[ListTask],
    orderings: Sequence[Ordering],
    documents: Mapping[str, Document],
    teacher: str,
    report: Mapping[str, Any],
    validation_share: float,
) -> dict[str, int]:
    """Writes `data/` with the splits as `datasets.load_dataset(output)` finds them, the failures and the provenance.

    Args:
        output: The set's folder.
        tasks: All lists.
        orderings: What became of each.
        documents: Document id to document.
        teacher: Its name.
        report: For the provenance; its `seed` is the split's.
        validation_share: Share of the lists in the validation split.

    Returns:
        Rows of each split; an empty one has no file.
    """
    prompt = report["teacher"].get("prompt")
    pairs = list(zip(tasks, orderings, strict=True))
    failed = [failed_row(task, ordering, teacher) for task, ordering in pairs if ordering.permutation is None]
    write_jsonl(output / FAILED_FILE, failed)
    rows = [
        distillation_row(task, ordering, documents, teacher, prompt)
        for task, ordering in pairs
        if ordering.permutation is not None
    ]
    train, validation = stratified_split(rows, validation_share, report["seed"])
    for name, own in (("train", train), ("validation", validation)):
        path = output / "data" / f"{name}-00000-of-00001.parquet"
        if own:
            write_parquet(path, own)
        else:
            path.unlink(missing_ok=True)
    splits = {"train": len(train), "validation": len(validation), "failed": len(failed)}
    write_provenance(output, "distillation_lists", {**report, "splits": splits}, PACKAGES)
    return splits


VALIDATION_SHARE = Fraction(1, 20)
"""TWOLAR: 1,000 of 20,000."""


def stratified_split(
    rows: Sequence[Row], share: float | Fraction = VALIDATION_SHARE, seed: int = 0
) -> tuple[list[Row], list[Row]]:
    """Training and validation rows, each in the given order.

    The validation set has `round(share * n)` rows. Every stratum, of one query type and first stage, gives its share,
    rounded down, and the remaining places go to the strata with the largest remainders. Which rows of a stratum it
    gives depends on their query ids and the seed alone, not on the order of the rows.

    Args:
        rows: n rows with `query_id`, `query_type` and `first_stage`.
        share: Of the validation set, from 0 to below 1.
        seed: Of the choice.

    Raises:
        InputError: a share out of range, or two rows of one id.
    """
    if not 0 <= share < 1:
        raise InputError(f"the validation set's share must be from 0 to below 1, got {float(share)}")
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        strata[row["query_type"], row["first_stage"]].append(row["query_id"])
    repeated = len(rows) - len({row["query_id"] for row in rows})
    if repeated:
        raise InputError(f"{repeated} of {len(rows)} rows repeat an id; a split needs unique ids")
    # A decimal such as 0.05 is meant exactly, not as the binary number next to it.
    exact = share if isinstance(share, Fraction) else Fraction(str(share))
    wanted = {key: exact * len(members) for key, members in strata.items()}
    quota = {key: int(amount) for key, amount in wanted.items()}
    left = int(exact * len(rows) + Fraction(1, 2)) - sum(quota.values())
    by_remainder = sorted(strata, key=lambda key: (quota[key] - wanted[key], place_of(seed, "stratum", repr(key))))
    for key in by_remainder[:left]:
        quota[key] += 1
    chosen: set[str] = set()
    for key, members in strata.items():
        chosen.update(sorted(members, key=lambda name: place_of(seed, "validation", name))[: quota[key]])
    return [row for row in rows if row["query_id"] not in chosen], [row for row in rows if row["query_id"] in chosen]

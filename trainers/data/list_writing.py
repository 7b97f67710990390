"""The files of a set of distillation lists: rows for training, failures beside them, and a report that adds up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.eval.run_files import write_run
from modeling_tsarank.eval.types import Document, Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.writing import whole_file, write_json, write_text
from modeling_tsarank.rankers.listwise import Ordering
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.list_building import ListTask


PACKAGES = ("bm25s", "httpx2", "pyarrow", "sentence-transformers", "torch", "transformers")
"""Packages whose versions are recorded with a set."""

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
    pa = require("pyarrow", extra="data", purpose="Writing a data set")
    parquet = require("pyarrow.parquet", extra="data", purpose="Writing a data set")
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
        parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def write_ndjson(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_splits(folder: Path, train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> None:
    """Writes `train` and `validation` as `datasets.load_dataset(folder)` finds them; an empty split has no file."""
    for name, rows in (("train", train), ("validation", validation)):
        path = folder / f"{name}-00000-of-00001.parquet"
        if rows:
            write_parquet(path, rows)
        else:
            path.unlink(missing_ok=True)


def agreement_table(
    names: Sequence[str], tables: Mapping[str, tuple[int, list[list[float]], Any]]
) -> tuple[list[str], list[list[str]]]:
    """TWOLAR's Table 1 in per cent: header and rows.

    With exactly two types of queries, the first stands in the upper triangle and the second in the lower, as in the
    paper; otherwise there is a block for each type.
    """
    kinds = list(tables)
    if len(kinds) == 2:
        upper, lower = (tables[kind][1] for kind in kinds)
        header = [f"{kinds[1]} \\ {kinds[0]} (%)", *names]
        return header, _triangle(names, upper, lower)
    header = ["% shared", *names]
    rows: list[list[str]] = []
    for kind in kinds:
        block = _triangle(names, tables[kind][1], tables[kind][1])
        rows += [[f"{kind}: {line[0]}", *line[1:]] for line in block]
    return header, rows


def _triangle(names: Sequence[str], upper: list[list[float]], lower: list[list[float]]) -> list[list[str]]:
    return [
        [
            name,
            *(
                "-" if row == column else f"{100 * (upper if row < column else lower)[row][column]:.1f}"
                for column in range(len(names))
            ),
        ]
        for row, name in enumerate(names)
    ]


def write_agreement(
    folder: Path, names: Sequence[str], tables: Mapping[str, tuple[int, list[list[float]], dict[str, Run]]]
) -> tuple[list[str], list[list[str]]]:
    """Writes Table 1 (Markdown and JSON) and the runs behind it; returns its header and rows."""
    header, rows = agreement_table(names, tables)
    write_text(folder / "table1.md", markdown_table(header, rows))
    values = {kind: {"queries": count, "rates": rates} for kind, (count, rates, _) in tables.items()}
    write_json(folder / "table1.json", {"stages": list(names), "by_query_type": values})
    for kind, (_, _, runs) in tables.items():
        for name, run in runs.items():
            safe = "".join(letter if letter.isalnum() or letter in "-_+." else "_" for letter in f"{kind}.{name}")
            write_run(folder / f"{safe}.trec", run, "".join(name.split()) or "run")
    return header, rows

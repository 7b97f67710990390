"""Publishing a dataset: its files unchanged, with a card from recorded facts and from the files' contents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank.files.fields import shown
from modeling_tsarank.files.reading import read_json_object, read_json_rows, read_text
from modeling_tsarank.files.tables import open_parquet, read_csv
from modeling_tsarank.files.templates import line, render
from modeling_tsarank.hub_cards.file_selection import LICENSES, Selection, fits, select_files
from modeling_tsarank.hub_cards.uploading import CARD_NAME, DEFAULT_TAG, UNKNOWN_LICENSE, Publication
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.cards import render_card, size_category
from modeling_tsarank.trainers.data.provenance import (
    CARD_KINDS,
    leakage_text,
    read_provenance,
    recorded_origin,
    teachers_text,
)


PROVENANCE = "provenance.json"
_DATA = ("*.parquet", "*.jsonl", "*.jsonl.gz", "*.ndjson", "*.csv", "*.tsv")
_OTHERS = (PROVENANCE, "table1.json", "*.md", *LICENSES)
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_SPLITS |= dict.fromkeys(("validation", "valid", "dev"), "validation")
# What the rows can be used to train, by their columns; the first match counts.
_KINDS = (
    ("sft", {"query", "positives", "negatives"}, "Queries with relevant and irrelevant documents."),
    (
        "distill",
        {"query", "documents", "permutation"},
        "Queries with documents ranked by a teacher, best first.",
    ),
    ("distill", {"query", "documents", "teacher_scores"}, "Queries with documents and a teacher's score for each."),
    ("cpt", {"query", "document"}, "Pairs of a short text, `query`, and a related longer one, `document`."),
)


# Fields of a provenance record.
_SHOWN_APART = ("format", "versions", "teachers", "leakage")
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def prepare_dataset(
    folder: Path,
    repo_id: str,
    tag: str = DEFAULT_TAG,
    private: bool | None = True,
    license: str | None = None,
    title: str | None = None,
    languages: Sequence[str] = (),
    include: Sequence[str] = (),
    not_secret: Sequence[str] = (),
    message: str | None = None,
) -> Publication:
    """Files and card of a dataset. `folder` is not changed.

    The card comes from `provenance.json` if `tsarank data` wrote one with a card; else a README.md of the folder is
    used unchanged; else a card is made from the files' columns and rows. That needs a licence: if it is missing, the
    publication lists this in `refusals`.

    Raises:
        InputError: No data, or splits with different columns.
    """
    selection = select_files(folder, (*_DATA, *_OTHERS, *(f"*/{name}" for name in _OTHERS)), include)
    data = [path for path in sorted(selection.paths) if fits(path, _DATA)]
    if not data:
        raise InputError(f"{folder} contains no data files ({', '.join(_DATA)})")
    card, refusals = _recorded_card(folder, title, license) or _own_card(folder, selection), []
    if card is None:
        if license is None:
            refusals = ["the license is not recorded; give --license, such as cc-by-4.0"]
        known = license or UNKNOWN_LICENSE
        card = _made_card(folder, data, repo_id, tag, known, title or repo_id.rpartition("/")[2], languages)
    selection.add(CARD_NAME, card.encode("utf-8"))
    # `load_dataset` would also read data files of an earlier version.
    return Publication(selection, repo_id, "dataset", tag, private, message, _DATA, not_secret, refusals)


def _recorded_card(folder: Path, title: str | None, license_id: str | None) -> str | None:
    if not (folder / PROVENANCE).is_file():
        return None
    record = read_provenance(folder)
    return render_card(record, title, license_id) if record["kind"] in CARD_KINDS else None


def _own_card(folder: Path, selection: Selection) -> str | None:
    path = folder / CARD_NAME
    if CARD_NAME not in selection.paths:
        return None
    text = read_text(path)
    if not text.startswith("---"):
        raise InputError(f"{path} has no metadata (a YAML block between two lines of ---); add it, or remove the file")
    return text


def _made_card(
    folder: Path, data: Sequence[str], repo_id: str, tag: str, license_id: str, title: str, languages: Sequence[str]
) -> str:
    from huggingface_hub import DatasetCardData

    splits: dict[str, list[str]] = {}
    for path in data:
        splits.setdefault(_split_of(path), []).append(path)
    columns, rows = _describe(folder, splits)
    kind, kind_text = next(((kind, text) for kind, needed, text in _KINDS if needed <= set(columns)), (None, None))
    total = sum(rows.values())
    files = [{"split": split, "path": paths} for split, paths in splits.items()]
    metadata: dict[str, Any] = {
        "pretty_name": line(title),
        "license": license_id,
        "language": list(languages) or None,
        "task_categories": ["text-ranking"],
        "size_categories": [size_category(total)],
        "tags": ["tsarank", "reranking"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    record = read_json_object(folder / PROVENANCE, allow_nan=True) if (folder / PROVENANCE).is_file() else {}
    origins = [recorded_origin(folder / path) for path in data]
    return render(
        __package__,
        "dataset_card.md",
        metadata=DatasetCardData(**{key: value for key, value in metadata.items() if value}).to_yaml(),
        title=title,
        summary=f"{total:,} rows in {len(splits)} split{'s' if len(splits) > 1 else ''}, for training rerankers.",
        repo_id=repo_id,
        tag=tag,
        kind=kind,
        kind_text=kind_text or "Rows with the columns below.",
        splits=splits,
        rows=rows,
        columns=columns,
        teachers=dict.fromkeys(teachers_text(origin["teachers"]) for origin in origins),
        leakage=dict.fromkeys(leakage_text(origin["leakage"]) for origin in origins),
        record={key: value for key, value in record.items() if key not in _SHOWN_APART and value not in _NOTHING},
        versions=record.get("versions") or {},
        license=license_id,
    )


def _split_of(path: str) -> str:
    """The split that a file's name starts with, as `datasets` infers it; `train` for other names."""
    name = path.rpartition("/")[2].lower()
    for separator in "-_.":
        if (found := _SPLITS.get(name.partition(separator)[0])) is not None:
            return found
    return "train"


def _describe(folder: Path, splits: dict[str, list[str]]) -> tuple[dict[str, str], dict[str, int]]:
    """Columns with their types, which must be the same in all files, and the number of rows of each split."""
    columns: dict[str, str] = {}
    rows = Counter[str]()
    for split, paths in splits.items():
        for path in paths:
            found, count = _parquet(folder / path) if path.endswith(".parquet") else _lines(folder / path)
            if columns and set(found) != set(columns):
                odd = ", ".join(sorted(set(found) ^ set(columns)))
                raise InputError(f"{path} has other columns than the files before it ({odd}); publish them separately")
            columns = columns or found
            rows[split] += count
    return columns, dict(rows)


def _parquet(path: Path) -> tuple[dict[str, str], int]:
    file = open_parquet(path)
    return {field.name: str(field.type) for field in file.schema_arrow}, file.metadata.num_rows


def _lines(path: Path) -> tuple[dict[str, str], int]:
    """Columns and rows of JSON Lines (types of the first row) or of CSV (all strings); every row is checked."""
    columns: dict[str, str] = {}
    count = 0
    rows = read_csv(path) if {".csv", ".tsv"} & set(path.suffixes) else read_json_rows(path, allow_nan=True)
    for place, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected a JSON object, found {shown(row)}")
        columns = columns or {name: _type(value) for name, value in row.items()}
        count += 1
    if not count:
        raise InputError(f"{path} has no rows")
    return columns, count


def _type(value: Any) -> str:
    if isinstance(value, list):
        return f"list of {_type(value[0])}" if value else "list"
    names = {bool: "bool", int: "int", float: "float", str: "string", dict: "object", type(None): "null"}
    return names[type(value)]

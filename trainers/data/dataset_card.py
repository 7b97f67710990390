"""Dataset cards: a README.md out of what `provenance.json` recorded, and nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from modeling_tsarank.files.writing import write_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.list_card import render_lists_card
from modeling_tsarank.trainers.data.provenance import read_provenance
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES, UNKNOWN_LICENCE


_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)
_MAX_SOURCES = 60

# The Hub's names of licences (https://huggingface.co/docs/hub/repositories-licenses) for those a source may state.
_HUB_LICENCES = {
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-3.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "gfdl",
    "mit",
    "odc-by",
    UNKNOWN_LICENCE,
}


def write_card(folder: Path, title: str | None = None) -> Path:
    """Writes the card of a dataset's folder.

    Args:
        folder: A folder with `provenance.json`.
        title: Title in place of the recorded one.

    Raises:
        InputError: no provenance, or one of a kind that has no card.
        ResourceError: the card cannot be written.
    """
    path = folder / "README.md"
    write_text(path, render_card(read_provenance(folder), title))
    return path


def render_card(record: dict[str, Any], title: str | None = None, license_id: str | None = None) -> str:
    """The card of a provenance record, YAML metadata included; lists take `license_id`, weak pairs record their own.

    Raises:
        InputError: a kind that has no card, or a record with a part missing.
    """
    if record["kind"] == "distillation_lists":
        return render_lists_card(record, title, license_id)
    if record["kind"] != "weak_pairs":
        raise InputError(
            f"there is no card for datasets of the kind {record['kind']!r}; there is one for weak_pairs and for "
            "distillation_lists"
        )
    try:
        parts = _weak_pairs_parts(record, title or record["title"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"the provenance record is not whole: {error!r}; make the dataset again") from error
    template = files("modeling_tsarank.trainers.data").joinpath("dataset_card.md").read_text(encoding="utf-8")
    return Template(template).substitute(parts)


def _weak_pairs_parts(record: dict[str, Any], title: str) -> dict[str, str]:
    rows = sum(record["rows"].values())
    splits = " and ".join(f"{number:,} in the split {name}" for name, number in sorted(record["rows"].items()))
    summary = (
        f"{rows:,} pairs of a short text (`query`) and a longer one (`document`) that belong together: {splits}. They "
        "are weak supervision for continual pre-training of rankers that score a document by the likelihood of the "
        "query (TSARankLLM, Zhang et al., 2023, section 2.2): nobody judged them one by one."
    )
    return {
        "metadata": _metadata(record, title, rows),
        "title": _line(title),
        "summary": summary,
        "contents": _contents(record),
        "sources": _sources(record),
        "steps": _steps(record),
        "limits": _limits(record),
        "making": _making(record),
    }


def _metadata(record: dict[str, Any], title: str, rows: int) -> str:
    """The YAML block, by huggingface_hub's own classes."""
    from huggingface_hub import DatasetCardData

    licences = {row["licence"].lower() for row in record["sources"]}
    licence = licences.pop() if len(licences) == 1 else ""
    data: dict[str, Any] = {
        "pretty_name": _line(title),
        "license": licence if licence in _HUB_LICENCES else "other",
        "task_categories": ["text-ranking", "text-retrieval"],
        "size_categories": [next((name for bound, name in _SIZES if rows < bound), "n>10M")],
        "tags": ["tsarank", "weak-supervision", "continual-pretraining", "reranking"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in sorted(record["rows"])
                ],
            }
        ],
    }
    if languages := _languages(record):
        data["language"] = languages
    return DatasetCardData(**data).to_yaml().strip()


def _languages(record: dict[str, Any]) -> list[str]:
    """The languages that a language filter without a narrower scope kept."""
    for step in record["filters"]:
        if step["filter"] == "language" and not step.get("types") and not step.get("sources"):
            return list(step["options"].get("languages", ["en"]))
    return []


def _contents(record: dict[str, Any]) -> str:
    table = _table(
        ["type", "rows", "kept by the filters", "query", "document"],
        [
            [f"`{name}`", f"{rows:,}", f"{record['kept_by_type'][name]:,}", *_texts(name)]
            for name, rows in record["types"].items()
        ],
    )
    return f"Columns, all texts: `query`, `document`, `type`, `source`, `licence`.\n\n{table}"


def _texts(name: str) -> list[str]:
    query, _, document = PAIR_TYPES[name].partition(", and ")
    return [query, document]


def _sources(record: dict[str, Any]) -> str:
    groups: Counter[tuple[str, str, str]] = Counter()
    for row in record["sources"]:
        groups[row["type"], _family(row["source"]), row["licence"]] += row["rows"]
    largest = groups.most_common(_MAX_SOURCES)
    rows = [
        [f"`{type_}`", _cell(source), _cell(licence), f"{number:,}"] for (type_, source, licence), number in largest
    ]
    if rest := sum(groups.values()) - sum(number for _, number in largest):
        rows.append(["", f"{len(groups) - len(largest)} others", "", f"{rest:,}"])
    return _table(["type", "source", "licence", "rows"], rows)


def _family(source: str) -> str:
    """A source without what follows a colon: `reddit-2015:books` and its like stand in one row."""
    return source.partition(":")[0] if "://" not in source else source


def _steps(record: dict[str, Any]) -> str:
    read = sum(one["pairs"] for one in record["inputs"])
    rows = [["read", "", f"{read:,}", "", ""]]
    for step in record["filters"]:
        dropped = ", ".join(f"{reason} {number:,}" for reason, number in _largest(step["dropped"]))
        name = f"`{step['filter']}`" + (f", {step['mended']:,} mended" if step["mended"] else "")
        rows.append([name, _cell(_options(step)), f"{step['out']:,}", f"{step['in'] - step['out']:,}", _cell(dropped)])
    kept = sum(record["kept_by_type"].values())
    taken = sum(record["rows"].values())
    sampling = {name: value for name, value in record["sampling"].items() if value or name == "seed"}
    rows.append(["balanced sample", _cell(_plain(sampling)), f"{taken:,}", f"{kept - taken:,}", ""])
    table = _table(["step", "options", "pairs left", "dropped", "reasons"], rows)
    return f"{table}\n\n{_leakage(record)}"


def _leakage(record: dict[str, Any]) -> str:
    checked = [step for step in record["filters"] if step["filter"] == "leakage"]
    if not checked:
        return "The set was **not** checked against any test collection."
    names = ", ".join(
        f"{name} ({size['queries']:,} queries, {size['documents']:,} documents)"
        for step in checked
        for name, size in step["checked_against"].items()
    )
    return f"Pairs of which a text stands in one of these test collections, exactly or nearly, were dropped: {names}."


def _limits(record: dict[str, Any]) -> str:
    unknown = sum(row["rows"] for row in record["sources"] if row["licence"] == UNKNOWN_LICENCE)
    points = [
        "Pairs come from the structure of texts, not from people's judgments; some are wrong, and many are loose."
    ]
    if unknown:
        points.append(f"The licence of {unknown:,} rows is unknown.")
    if not _languages(record):
        points.append("No filter looked at the language of all pairs.")
    points.append(
        "Near duplicates are found by MinHash, an estimate: a few remain, and a few pairs were dropped wrongly."
    )
    points.append("Texts may hold names of people, opinions and mistakes of their authors.")
    return "\n".join(f"- {point}" for point in points)


def _making(record: dict[str, Any]) -> str:
    inputs = _table(
        ["type", "reader", "file", "SHA-256 (first 16 digits)", "pairs", "records without a pair"],
        [
            [
                f"`{one['type']}`",
                one["reader"],
                _cell(one["file"]["name"]),
                one["file"].get("sha256", "")[:16] or "not a file",
                f"{one['pairs']:,}",
                _cell(_plain(one["unusable"])) or "0",
            ]
            for one in record["inputs"]
        ],
    )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return (
        f"By `tsarank data weak-pairs`, seed {record['sampling']['seed']}, with {versions}. Everything stands in "
        f"`provenance.json`.\n\n{inputs}"
    )


def _largest(counts: dict[str, int], limit: int = 8) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    rest = sum(number for _, number in ordered[limit:])
    return ordered[:limit] + ([("others", rest)] if rest else [])


def _options(step: dict[str, Any]) -> str:
    scope: dict[str, Any] = {name: step[name] for name in ("types", "sources") if name in step}
    return _plain({**step["options"], **scope})


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
    )


def _cell(text: str) -> str:
    """A text inside a table: one line, no bar, nothing that would start a tag."""
    return _line(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Dataset cards: a README.md made only from the facts recorded in `provenance.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modeling_tsarank.files.templates import render, text
from modeling_tsarank.files.writing import write_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.provenance import (
    collections_text,
    leakage_text,
    read_provenance,
    teachers_text,
)
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES, UNKNOWN_LICENCE


_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_MOST_SOURCES = 60
# The Hub's licence identifiers (https://huggingface.co/docs/hub/repositories-licenses) for licences a source may
# state.
_HUB_LICENCES = {
    *("apache-2.0", "bsd-3-clause", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-3.0"),
    *("cc-by-sa-4.0", "cc0-1.0", "gfdl", "mit", "odc-by", UNKNOWN_LICENCE),
}


def write_card(folder: Path) -> None:
    """Writes the card into a dataset's folder.

    Raises:
        InputError: there is no provenance record.
        ResourceError: the card cannot be written.
    """
    write_text(folder / "README.md", render_card(read_provenance(folder)))


def render_card(record: dict[str, Any], title: str | None = None, license_id: str | None = None) -> str:
    """The card for a provenance record, with YAML metadata; `license_id` is for lists, weak pairs record their own.

    Raises:
        InputError: the record is incomplete.
    """
    try:
        title = " ".join((title or record["title"]).split())
        if record["kind"] == "weak_pairs":
            return _weak_pairs_card(record, title)
        return _lists_card(record, title, license_id)
    except (InputError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"the provenance record is incomplete: {error!r}; make the dataset again") from error


def metadata(title: str, rows: int, license_id: str, splits: Iterable[str], tags: Iterable[str], **more: Any) -> str:
    """The YAML block of a dataset in `data/SPLIT-*.parquet`, created by huggingface_hub's own class."""
    from huggingface_hub import DatasetCardData

    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in sorted(splits)]
    card = DatasetCardData(
        pretty_name=title,
        license=license_id,
        task_categories=["text-ranking", "text-retrieval"],
        size_categories=[size_category(rows)],
        tags=["tsarank", *tags, "reranking"],
        configs=[{"config_name": "default", "data_files": files}],
        **more,
    )
    return card.to_yaml().strip()


def size_category(rows: int) -> str:
    """The Hub's size category for a number of rows."""
    return next((name for bound, name in _SIZES if rows < bound), "n>10M")


def options_text(values: Mapping[str, Any]) -> str:
    """Options with their values, for a table cell."""
    shown = (
        f"{name} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
    )
    return text(", ".join(shown)) or "-"


def _weak_pairs_card(record: dict[str, Any], title: str) -> str:
    rows = sum(record["rows"].values())
    groups: Counter[tuple[str, str, str]] = Counter()
    for row in record["sources"]:
        # Names with a colon are parts of one source: `reddit-2015:books` and the like are merged into one row.
        name = row["source"] if "://" in row["source"] else row["source"].partition(":")[0]
        groups[row["type"], name, row["licence"]] += row["rows"]
    largest = groups.most_common(_MOST_SOURCES)
    licences = {row["licence"].lower() for row in record["sources"]}
    licence = licences.pop() if len(licences) == 1 else ""
    # A language filter on only some types or sources does not describe the whole dataset.
    languages = [
        list(step["options"].get("languages", ["en"]))
        for step in record["filters"]
        if step["filter"] == "language" and not step.get("types") and not step.get("sources")
    ][:1]
    tags = ("weak-supervision", "continual-pretraining")
    license_id = licence if licence in _HUB_LICENCES else "other"
    language = {"language": languages[0]} if languages else {}
    checked: dict[str, Any] = {}
    for step in record["filters"]:
        checked |= step.get("checked_against", {})
    return render(
        __package__,
        "weak_pairs_card.md",
        metadata=metadata(title, rows, license_id, record["rows"], tags, **language),
        title=title,
        record=record,
        rows=rows,
        types=PAIR_TYPES,
        sources=[dict(zip(("type", "source", "licence", "rows"), (*key, n), strict=True)) for key, n in largest],
        others=sum(groups.values()) - sum(number for _, number in largest),
        splits=" and ".join(f"{number:,} in the split {name}" for name, number in sorted(record["rows"].items())),
        steps=[
            (step, options_text(_options(step)), options_text(dict(Counter(step["dropped"]).most_common())))
            for step in record["filters"]
        ],
        sampling=options_text({name: value for name, value in record["sampling"].items() if value}),
        unusable=[options_text(one["unusable"]) for one in record["inputs"]],
        leakage=collections_text(checked),
        versions=options_text(record["versions"]),
        unknown=sum(row["rows"] for row in record["sources"] if row["licence"] == UNKNOWN_LICENCE),
        languages=languages,
    )


def _options(step: dict[str, Any]) -> dict[str, Any]:
    return {**step["options"], **{name: step[name] for name in ("types", "sources") if name in step}}


def _lists_card(record: dict[str, Any], title: str, license_id: str | None) -> str:
    splits = [name for name, count in record["splits"].items() if name != "failed" and count]
    rows = record["splits"]["train"] + record["splits"]["validation"]
    rates = record["rates"]
    shares = [f"{name} rate {100 * rates[name]:.1f} %" for name in ("failure", "repair") if rates[name] is not None]
    return render(
        __package__,
        "lists_card.md",
        metadata=metadata(title, rows, license_id or "unknown", splits, ("distillation",)),
        title=title,
        record=record,
        rows=rows,
        outcomes=list(record["outcomes"]),
        leaks=record.get("leakage"),
        checked=leakage_text(record.get("leakage")),
        teachers=teachers_text(record.get("teachers")),
        shares=", ".join(shares) or "no list was answered",
    )

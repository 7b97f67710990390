"""`provenance.json`: origin and processing of the rows of a released dataset, and the versions used."""

from __future__ import annotations

import contextlib
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank import __version__
from modeling_tsarank.files.hashes import hash_file, hash_folder
from modeling_tsarank.files.reading import read_json, read_json_object
from modeling_tsarank.files.versions import installed_versions
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.embedded_models import RECORD_FILE, releases
from modeling_tsarank.models.resolver import resolve
from modeling_tsarank.ranking_errors import InputError


FILE_NAME = "provenance.json"
FORMAT = 1
"""Format version; increased when a field changes its meaning."""

COUNTS = "counts.json"
"""The record of `tsarank recipe prepare` on all files of a release."""

REPORT_SUFFIX = ".report.txt"
"""Suffix of the JSON report next to a file of rows; readers of training data ignore it."""

CARD_KINDS = ("weak_pairs", "distillation_lists")
KINDS = (*CARD_KINDS, "hard_negatives", "queries")


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python, tsarank and the named packages; packages that are not installed are left out."""
    return {"python": platform.python_version(), "tsarank": __version__, **installed_versions(sorted(names))}


def describe_file(path: Path) -> dict[str, Any]:
    """A file or folder by its name, size and fingerprint (see `file_hashes.hash_file`); never by its full path."""
    if not path.exists():
        return {"name": path.name}
    if path.is_dir():
        count = sum(one.is_file() for one in path.rglob("*"))
        return {"name": path.name, "files": count, "sha256": hash_folder(path, deep=True)}
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def write_provenance(folder: Path, kind: str, facts: dict[str, Any], packages: Iterable[str] = ()) -> None:
    """Writes `provenance.json` into a dataset's folder.

    Args:
        folder: The dataset's folder.
        kind: One of `KINDS`.
        facts: The facts to record: for weak pairs `title`, `sources`, `filters`, `sampling`, `rows`, `types`.
        packages: Packages whose versions are recorded.

    Raises:
        ResourceError: the file cannot be written.
    """
    record = {"format": FORMAT, "kind": kind, **facts, "versions": package_versions(packages)}
    write_json(folder / FILE_NAME, record)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Reads the `provenance.json` of a folder.

    Raises:
        InputError: there is none, it was not written by tsarank, or by a later version.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(f"{folder} has no {FILE_NAME}; give an output folder of `tsarank data`")
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("format"), int) or record.get("kind") not in KINDS:
        raise InputError(f"{path} is not a provenance record of tsarank")
    if record["format"] > FORMAT:
        raise InputError(
            f"{path} was written by a later version of tsarank (format {record['format']}, known: {FORMAT})"
        )
    return record


def report_path(rows: Path) -> Path:
    """The path of the report on a file of rows."""
    return rows.with_name(f"{rows.stem}{REPORT_SUFFIX}")


def write_report(rows: Path, facts: dict[str, Any]) -> None:
    """Writes the report on a file of rows next to it, with the file's hash. Raises `ResourceError`."""
    write_json(report_path(rows), {**facts, "file": describe_file(rows)})


def recorded_origin(source: Path) -> dict[str, Any]:
    """The recorded teachers and leakage check of training rows.

    Looked up in the report next to a file (if it is about this exact file), in the `provenance.json` of a dataset's
    folder, and in the `counts.json` of a prepared release.

    Returns:
        `teachers`: `{"name", "trained_on"}` of each, empty if there was none, None if nothing is recorded;
        `leakage`: `{"checked_against", "found"}`, None if nothing was checked or recorded.
    """
    record = _record_of(source)
    found: dict[str, Any] = {"teachers": None, "leakage": None}
    teachers = record.get("teachers")
    if isinstance(teachers, list) and all(
        isinstance(one, dict) and isinstance(one.get("name"), str) for one in teachers
    ):
        found["teachers"] = [{"name": one["name"], "trained_on": one.get("trained_on")} for one in teachers]
    checks = record.get("leakage")
    if "filters" in record:  # weak pairs
        steps = [one for one in record["filters"] if one.get("filter") == "leakage"]
        checks = [{**one, "found": one.get("dropped")} for one in steps]
    elif isinstance(checks, dict):  # a prepared release has several, by name
        checks = [checks] if "checked_against" in checks else list(checks.values())
    checked, counts = dict[str, Any](), Counter[str]()
    for check in checks or []:
        checked |= check.get("checked_against") or {}
        counts.update(check.get("found") or {})
    if checked:
        found["leakage"] = {"checked_against": checked, "found": dict(counts)}
    return found


def _record_of(source: Path) -> dict[str, Any]:
    """The nearest record that is about this exact file, or about all files of its folder; empty if there is none."""
    source = source.resolve()
    folder = source if source.is_dir() else source.parent
    above = [folder.parent / FILE_NAME] if folder.name == "data" else []
    for place in [report_path(source), folder / FILE_NAME, *above, folder.parent / COUNTS]:
        with contextlib.suppress(InputError):
            record = read_json_object(place) if place.is_file() else {}
            if place.name == FILE_NAME and record:
                return record
            files, name = record.get("files"), source.relative_to(folder.parent).as_posix()
            named = files.get(name) if isinstance(files, dict) else record.get("file")
            if source.is_file() and isinstance(named, dict) and named.get("sha256") == hash_file(source):
                return record
    return {}


def teachers_text(teachers: list[dict[str, Any]] | None) -> str:
    """Teachers and their training data, for a card."""
    if teachers is None:
        return "not recorded"
    named = [f"{one['name']}, trained on {one.get('trained_on') or 'data that are not recorded'}" for one in teachers]
    return "; ".join(named) or "none"


def leakage_text(leakage: dict[str, Any] | None) -> str:
    """The collections of the leakage check, and how many texts were left out, for a card."""
    if leakage is None:
        return "not recorded: whether texts of test collections were left out is unknown"
    found = sum((leakage.get("found") or {}).values())
    names = collections_text(leakage["checked_against"])
    return f"exact and near copies of texts of {names} left out: {found:,} found"


def collections_text(checked: dict[str, Any]) -> str:
    """Test collections with their sizes, for a card."""
    sizes = ((name, size["queries"], size["documents"]) for name, size in checked.items())
    return ", ".join(f"{name} ({queries:,} queries, {documents:,} documents)" for name, queries, documents in sizes)


# ---- facts about teachers ------------------------------------------------------------------------------


_CARD = "README.md"


def teacher_facts(
    given: Sequence[str], trained_on: Sequence[str] | None = None, here: bool = True
) -> list[dict[str, str | None]]:
    """`{"name", "trained_on"}` of each teacher; `trained_on` is None if it is neither given nor recorded.

    Args:
        given: The user's names of the teachers, see `load_scorer`.
        trained_on: The user's texts, one per teacher.
        here: Whether they run on this machine, not behind a URL.

    Raises:
        InputError: the number of texts differs from the number of teachers.
    """
    if trained_on is not None and len(trained_on) != len(given):
        raise InputError(
            f"--teacher-trained-on takes one text per teacher: {len(given)} teachers, {len(trained_on)} texts"
        )
    known: Sequence[str | None] = trained_on or [
        recorded_training_data(resolve(name).name) if here else None for name in given
    ]
    return [{"name": resolve(name).label, "trained_on": text or None} for name, text in zip(given, known, strict=True)]


def recorded_training_data(source: str) -> str | None:
    """Training data of a model, from the record of its training here or from its card's metadata."""
    release = releases().get(source)
    folder = Path(source) if release is None else release.folder
    if release is None and not folder.is_dir():
        return _of_card(_cached_card(source))
    return _of_record(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else _of_card(folder / _CARD)


def _of_record(path: Path) -> str | None:
    names: list[str] = []
    record = read_json(path)
    while isinstance(record, dict):
        data = record.get("data") or {}
        names += map(str, filter(None, (data.get("name"), *(one["name"] for one in data.get("teachers") or []))))
        record = (record.get("started_from") or {}).get("training")
    return ", ".join(dict.fromkeys(reversed(names))) or None


def _of_card(path: Path | None) -> str | None:
    from huggingface_hub.repocard import metadata_load

    if path is None or not path.is_file():
        return None
    try:
        datasets = (metadata_load(path) or {}).get("datasets")
    except Exception:  # cards are written by third parties; an unreadable one is ignored
        return None
    names = datasets if isinstance(datasets, list) else [datasets] if isinstance(datasets, str) else []
    return ", ".join(dict.fromkeys(map(str, names))) or None


def _cached_card(name: str) -> Path | None:
    """The card of a model on the Hub, if it is in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, _CARD)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None

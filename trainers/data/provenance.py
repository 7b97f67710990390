"""`provenance.json`: where the rows of a released dataset come from, what was done to them, with which versions."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from modeling_tsarank import __version__
from modeling_tsarank.eval.files import read_json, write_json
from modeling_tsarank.file_hashes import hash_file
from modeling_tsarank.ranking_errors import InputError


FILE_NAME = "provenance.json"
FORMAT = 1
"""Raised when a field changes its meaning."""

KINDS = ("weak_pairs", "hard_negatives", "queries", "distillation_lists")


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python, tsarank and the named packages, those that are not installed left out."""
    found = {"python": platform.python_version(), "tsarank": __version__}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_file(path: Path) -> dict[str, Any]:
    """A file or folder by its name, size and fingerprint (see `eval.files.hash_file`); never by its full path."""
    if not path.exists():
        return {"name": path.name}
    if path.is_dir():
        return {"name": path.name, "files": sum(one.is_file() for one in path.rglob("*"))}
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def write_provenance(folder: Path, kind: str, facts: dict[str, Any], packages: Iterable[str] = ()) -> Path:
    """Writes `provenance.json` into a dataset's folder.

    Args:
        folder: The dataset's folder.
        kind: One of `KINDS`.
        facts: What is to be said: for weak pairs `title`, `sources`, `filters`, `sampling`, `rows`, `types`.
        packages: Packages whose versions matter.

    Raises:
        InputError: an unknown kind.
        ResourceError: the file cannot be written.
    """
    if kind not in KINDS:
        raise InputError(f"no kind of dataset {kind!r}; there are {', '.join(KINDS)}")
    path = folder / FILE_NAME
    write_json(path, {"format": FORMAT, "kind": kind, **facts, "versions": package_versions(packages)})
    return path


def read_provenance(folder: Path) -> dict[str, Any]:
    """Reads the `provenance.json` of a folder.

    Raises:
        InputError: there is none, it is not what tsarank wrote, or a later version wrote it.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(f"{folder} has no {FILE_NAME}; give a folder that `tsarank data` wrote")
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("format"), int) or record.get("kind") not in KINDS:
        raise InputError(f"{path} is not a provenance record of tsarank")
    if record["format"] > FORMAT:
        raise InputError(
            f"{path} was written by a later version of tsarank (format {record['format']}, known: {FORMAT})"
        )
    return record

"""Where weak pairs come from: local files and datasets of the Hub, with a mapping from their fields.

One record is in memory at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from modeling_tsarank.files.reading import read_jsonl
from modeling_tsarank.files.tables import read_csv, read_parquet
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES, UNKNOWN_LICENCE, Pair
from modeling_tsarank.trainers.training_sources import load_from_hub


SUFFIXES = (".jsonl", ".csv", ".tsv", ".jsonl.gz", ".csv.gz", ".tsv.gz", ".parquet", ".jsonl.zst", ".jsonl.bz2")


@dataclass
class Source:
    """One source of pairs, as a recipe declares it.

    Attributes:
        type: One of `PAIR_TYPES`.
        path: File, folder, or id of a dataset on the Hub. Variables such as `$HOME` are filled in.
        name: What the column `source` says; by default the file's name without its endings. A file may give it row by
            row (`fields: {source: FIELD}`).
        licence: Licence of the source; `unknown` where none is given.
        fields: The fields of a record that hold query, document and, if there are any, source and licence. A list of
            fields is joined by spaces; `a.b` reaches into an object.
        split: Split of a Hub dataset.
        config: Configuration of a Hub dataset.
        limit: Most pairs to take; 0 takes all.
    """

    type: str
    path: str
    name: str = ""
    licence: str = UNKNOWN_LICENCE
    fields: dict[str, Any] = field(default_factory=dict)
    split: str = "train"
    config: str = ""
    limit: int = 0

    def __post_init__(self) -> None:
        if self.type not in PAIR_TYPES:
            raise InputError(f"no type {self.type!r}; there are {', '.join(PAIR_TYPES)}")
        if not self.path or self.limit < 0:
            raise InputError("a source needs a path, and its limit must be at least 0 (0: all)")
        self.path = expanded(self.path)
        if not self.name:
            self.name = Path(self.path).name.split(".")[0] if Path(self.path).exists() else self.path


def read_source(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """The pairs of one source, up to its limit. A field that holds a list of texts gives a pair for each of them.

    Args:
        source: The source.
        unusable: Counts, by reason, the records that gave no pair.

    Raises:
        InputError: the file is missing or broken (with the line), or has not the fields.
        ResourceError: a package is missing, or the Hub cannot be reached.
    """
    return islice(_pairs(source, unusable), source.limit or None)


def _pairs(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    for name in source.fields:
        if name not in ("query", "document", "source", "licence"):
            raise InputError(f"{source.name}: fields map query, document, source and licence, not {name!r}")
    mapping: dict[str, Any] | None = None
    for place, record in _records(source):
        if not isinstance(record, Mapping):
            raise InputError(f"{place}: expected a record with fields, got {type(record).__name__}")
        if mapping is None:
            mapping = _mapping(source, record, place)
        paths = [mapping.get(name) for name in ("source", "licence")]
        origin, licence = (text_of(field_of(record, path)) if isinstance(path, str) else "" for path in paths)
        for query in _values(record, mapping["query"]):
            for document in _values(record, mapping["document"]):
                if not query or not document:
                    unusable["no document" if query else "no query"] += 1
                else:
                    yield Pair(query, document, source.type, origin or source.name, licence or source.licence)


def _mapping(source: Source, record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The declared fields, completed by those that the first record has."""
    mapping = dict(source.fields)
    # The kinds are named after the fields that such records have, such as `question_answer`.
    for name, own in zip(("query", "document"), source.type.split("_"), strict=True):
        mapping.setdefault(name, next((known for known in (name, own) if known in record), own))
        paths = [mapping[name]] if isinstance(mapping[name], str) else mapping[name]
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise InputError(f"{source.name}: the field of {name} must be a name or a list of names")
        if all(field_of(record, path) is None and path.split(".")[0] not in record for path in paths):
            raise InputError(
                f"{place}: no field {' or '.join(paths)} for the {name}; there are {', '.join(record)}. "
                f"Say which with fields: {{{name}: FIELD}}"
            )
    if not source.fields:
        mapping |= {name: name for name in ("source", "licence") if isinstance(record.get(name), str)}
    return mapping


def _values(record: Mapping[str, Any], paths: Any) -> list[str]:
    """The texts of a field, an empty one where there is none; several fields are joined."""
    if not isinstance(paths, str):
        return [" ".join(filter(None, (text_of(field_of(record, path)) for path in paths)))]
    value = field_of(record, paths)
    if isinstance(value, (list, tuple)):
        return [text for text in map(text_of, value) if text] or [""]
    return [text_of(value)]


def _records(source: Source) -> Iterator[tuple[str, Any]]:
    path = Path(source.path)
    if not path.exists():
        rows = load_from_hub(source.path, source.split, source.config or None, streaming=True)
        yield from ((f"{source.path}, row {number}", row) for number, row in enumerate(rows, start=1))
        return
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file() and one.name.endswith(SUFFIXES))
    if not files or not all(file.name.endswith(SUFFIXES) for file in files):
        raise InputError(f"{path}: expected {', '.join(SUFFIXES)}, or a folder of such files")
    for file in files:
        if file.name.endswith(".parquet"):
            yield from read_parquet(file)
        elif ".jsonl" in file.suffixes:
            yield from read_jsonl(file)
        else:
            yield from read_csv(file)


def expanded(path: str) -> str:
    """A path with `~` and environment variables filled in.

    Raises:
        InputError: a variable is not set.
    """
    filled = os.path.expanduser(os.path.expandvars(path))
    if "$" in filled:
        raise InputError(f"{path}: an environment variable in it is not set; set it, or write the path out")
    return filled


def text_of(value: Any) -> str:
    """A field's text, white space at the ends dropped; empty where it is missing or no text."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def field_of(record: Mapping[str, Any], path: str) -> Any:
    """The value of a field; `a.b` reaches into an object. `None` where there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value

"""Sources of weak pairs: local files and datasets on the Hub, with a mapping from their fields.

Records are streamed, one in memory at a time.
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
    """One source of pairs, as declared in a recipe.

    Attributes:
        type: One of `PAIR_TYPES`.
        path: File, folder, or id of a dataset on the Hub. Variables such as `$HOME` are expanded.
        name: Value of the column `source`; by default the file's name without its suffixes. A file may have one per
            row (`fields: {source: FIELD}`).
        licence: Licence of the source; `unknown` if not given.
        fields: The fields of a record for query, document and, if any, source and licence. A list of fields is joined
            by spaces; `a.b` is a nested field.
        split: Split of a Hub dataset.
        config: Configuration of a Hub dataset.
        limit: Maximum number of pairs; 0 for all.
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
    """The pairs of one source, up to its limit. A field with a list of texts gives one pair per text.

    Args:
        source: The source.
        unusable: Counts, by reason, the records without a pair.

    Raises:
        InputError: the file is missing or malformed (with the line number), or lacks the fields.
        ResourceError: a package is not installed, or the Hub cannot be reached.
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
    """The declared fields, completed with defaults that the first record has."""
    mapping = dict(source.fields)
    # The types are named after the usual fields of such records, for example `question_answer`.
    for name, own in zip(("query", "document"), source.type.split("_"), strict=True):
        mapping.setdefault(name, next((known for known in (name, own) if known in record), own))
        paths = [mapping[name]] if isinstance(mapping[name], str) else mapping[name]
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise InputError(f"{source.name}: the field of {name} must be a name or a list of names")
        if all(field_of(record, path) is None and path.split(".")[0] not in record for path in paths):
            raise InputError(
                f"{place}: no field {' or '.join(paths)} for the {name}; there are {', '.join(record)}. "
                f"Declare it with fields: {{{name}: FIELD}}"
            )
    if not source.fields:
        mapping |= {name: name for name in ("source", "licence") if isinstance(record.get(name), str)}
    return mapping


def _values(record: Mapping[str, Any], paths: Any) -> list[str]:
    """The texts of a field, an empty one if it is missing; several fields are joined."""
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
    """A path with `~` and environment variables expanded.

    Raises:
        InputError: a variable is not set.
    """
    filled = os.path.expanduser(os.path.expandvars(path))
    if "$" in filled:
        raise InputError(f"{path}: an environment variable in it is not set; set it, or write out the path")
    return filled


def text_of(value: Any) -> str:
    """A field's text, stripped; empty if it is missing or not a string."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def field_of(record: Mapping[str, Any], path: str) -> Any:
    """The value of a field; `a.b` is a nested field. `None` if it is missing."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value

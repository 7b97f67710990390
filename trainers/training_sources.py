"""Where training rows come from: files, folders, split names, the Hub, and RankGPT's file of answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import read_json_rows
from modeling_tsarank.files.tables import read_csv, read_parquet
from modeling_tsarank.ranking_errors import InputError, ResourceError


if TYPE_CHECKING:
    from datasets import Dataset


SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".jsonl.gz", ".json.gz")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "eval": "test",
}
_NOTHING = object()


class Source(NamedTuple):
    """A file to read: its path, and the SHA-256 of its content, which makes a changed file another source."""

    path: str
    sha256: str


def import_datasets() -> Any:
    """The `datasets` library. Raises `ResourceError`, naming the extra, where it is missing."""
    try:
        import datasets
    except ImportError as error:
        raise ResourceError("training data needs the package datasets: pip install 'tsarank[train]'") from error
    return datasets


def pick_split(data: Any, split: str, where: Any) -> Dataset:
    """One split of a dict of splits; a Dataset as it is."""
    if not isinstance(data, Mapping):
        return data
    if split not in data:
        raise InputError(f"{where} has no split {split!r}; it has {', '.join(sorted(data)) or 'none'}")
    return data[split]


def load_from_hub(source: str, split: str, config: str | None, streaming: bool = False) -> Any:
    """A dataset of the Hub, or an error that says both what was not found."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.endswith(SUFFIXES):
        raise InputError(f"no file or folder {source!r}; expected a path that exists or a dataset's id on the Hub")
    datasets = import_datasets()
    try:
        return datasets.load_dataset(source, config, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise InputError(f"{source!r} is no file, no folder and no dataset on the Hub that can be read") from error
    except ValueError as error:
        raise InputError(f"dataset {source!r}, split {split!r}: {str(error).splitlines()[0]}") from error
    except (ConnectionError, OSError) as error:
        raise ResourceError(f"{source!r} is no file or folder here, and the Hub cannot be reached") from error


# What a folder of rows may hold beside its rows: where they come from, and what `datasets` notes about them.
RECORDS = ("provenance.json", "dataset_info.json", "dataset_infos.json", "state.json", "training_run.json")


def split_files(path: Path, split: str) -> list[Path]:
    """The files of a split: a file itself, or those of a folder."""
    if "[" in split:
        raise InputError(f"{path}: a slice such as {split!r} works for datasets of the Hub only")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path}: unknown kind of file; expected {', '.join(SUFFIXES)}")
        return [path]
    found = (file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.name not in RECORDS)
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise InputError(f"folder {path} has no file with {', '.join(SUFFIXES)}")
    wanted = SPLIT_WORDS.get(split, split)
    belonging = {file: _split_of(file.relative_to(path)) for file in files}
    chosen = [file for file in files if belonging[file] == wanted]
    if not chosen:
        raise InputError(
            f"folder {path} has no file for the split {split!r}; it has {', '.join(sorted(set(belonging.values())))}"
        )
    return chosen


def _split_of(relative: Path) -> str:
    """The split that a file's name or folder tells, "train" where neither tells one."""
    words = [word for part in reversed(relative.parts) for word in re.split(r"[^a-z]+", part.lower())]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record of a file with the place where it stands ("name, line 3").

    Raises:
        InputError: the file is not what its name says; names the line.
    """
    if path.name.endswith(".csv"):
        # A cell that is empty is a field that the row does not have, such as the fourth of its negatives.
        return ((where, {name: value or None for name, value in row.items()}) for where, row in read_csv(path))
    return read_parquet(path) if path.name.endswith(".parquet") else read_json_rows(path)


def stamp(path: Path) -> Source:
    """The file as it is now."""
    return Source(str(path.resolve()), hash_file(path))


def with_answers(records: Iterator[tuple[str, Any]], permutations: str | Path | None) -> Iterator[tuple[str, Any]]:
    """Puts the i-th answer of a RankGPT permutations file into the i-th record."""
    if permutations is None:
        yield from records
        return
    path = Path(permutations)
    if not path.is_file():
        raise InputError(f"no permutations file {str(path)!r}")
    answers = (answer for _, answer in read_records(path))
    for number, (row, answer) in enumerate(zip_longest(records, answers, fillvalue=_NOTHING)):
        if row is _NOTHING or answer is _NOTHING:
            what = "rows" if row is _NOTHING else "permutations"
            raise InputError(f"{path.name}: expected one permutation for each row; the {what} end at {number}")
        where, record = cast(tuple[str, Any], row)
        yield where, {**record, "permutation": answer} if isinstance(record, Mapping) else record

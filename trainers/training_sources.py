"""Sources of training rows: files, folders, split names, the Hub, and RankGPT's file of answers."""

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
    """A file to read: its path, and the SHA-256 of its content, so that a changed file is a different source."""

    path: str
    sha256: str


def import_datasets() -> Any:
    """The `datasets` library. Raises `ResourceError`, naming the extra, if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ResourceError("training data needs the package datasets: pip install 'tsarank[train]'") from error
    return datasets


def pick_split(data: Any, split: str, where: Any) -> Dataset:
    """One split of a dict of splits; a Dataset is returned unchanged."""
    if not isinstance(data, Mapping):
        return data
    if split not in data:
        raise InputError(f"{where} has no split {split!r}; it has {', '.join(sorted(data)) or 'none'}")
    return data[split]


def load_from_hub(source: str, split: str, config: str | None, streaming: bool = False) -> Any:
    """A dataset on the Hub; errors also say that there is no such local file or folder."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source.endswith(SUFFIXES):
        raise InputError(f"no file or folder {source!r}; expected an existing path or a dataset's id on the Hub")
    datasets = import_datasets()
    try:
        return datasets.load_dataset(source, config, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        raise InputError(f"{source!r} is not a file, a folder or a readable dataset on the Hub") from error
    except ValueError as error:
        raise InputError(f"dataset {source!r}, split {split!r}: {str(error).splitlines()[0]}") from error
    except (ConnectionError, OSError) as error:
        raise ResourceError(f"{source!r} is not a local file or folder, and the Hub cannot be reached") from error


# Other files in a folder of rows: their provenance, and the metadata of `datasets`.
RECORDS = ("provenance.json", "dataset_info.json", "dataset_infos.json", "state.json", "training_run.json")


def split_files(path: Path, split: str) -> list[Path]:
    """The files of a split: a file itself, or those of a folder."""
    if "[" in split:
        raise InputError(f"{path}: a slice such as {split!r} works only for datasets on the Hub")
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError(f"{path}: unknown file type; expected {', '.join(SUFFIXES)}")
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
    """The split in a file's name or folder, "train" if there is none."""
    words = [word for part in reversed(relative.parts) for word in re.split(r"[^a-z]+", part.lower())]
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Every record of a file with its place ("name, line 3").

    Raises:
        InputError: the file's content does not match its suffix; names the line.
    """
    if path.name.endswith(".csv"):
        # An empty cell is a field that the row does not have, such as the fourth of its negatives.
        return ((where, {name: value or None for name, value in row.items()}) for where, row in read_csv(path))
    return read_parquet(path) if path.name.endswith(".parquet") else read_json_rows(path)


def stamp(path: Path) -> Source:
    """The current state of the file."""
    return Source(str(path.resolve()), hash_file(path))


def with_answers(records: Iterator[tuple[str, Any]], permutations: str | Path | None) -> Iterator[tuple[str, Any]]:
    """Adds the i-th answer of a RankGPT permutations file to the i-th record."""
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

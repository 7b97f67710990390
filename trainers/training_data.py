"""Loading training data from files, folders, the Hub, datasets and lists, with conversion to the rows of `rows`.

Files are converted once into Arrow files in the cache of the `datasets` library and read from there afterwards, so
that memory does not grow with the data; a changed file is converted again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers.rows import (
    PERMUTATION,
    PLACE,
    TARGETS,
    Layout,
    Record,
    Row,
    carried_fields,
    layout_of,
    to_row,
)
from modeling_tsarank.trainers.training_sources import (
    Source,
    import_datasets,
    load_from_hub,
    pick_split,
    read_records,
    split_files,
    stamp,
    with_answers,
)


if TYPE_CHECKING:
    from datasets import Dataset, Features


logger = logging.getLogger(__name__)

# Part of the cache key of converted files: increase it whenever a conversion changes.
CONVERSION_VERSION = 3


def load_training_rows(
    source: str | Path | Dataset | Sequence[Record],
    split: str = "train",
    *,
    positives: bool = False,
    config: str | None = None,
    permutations: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Loads training data in any layout of `rows.LAYOUTS`.

    Fields and types are checked here, row by row; the content of the rows (no negatives, a positive among the
    negatives, a broken permutation …) is checked by `row_checks.checked_rows`, which every trainer calls before it
    starts.

    Args:
        source: a file, a folder, a `datasets.Dataset` (or a dict of splits), a list of rows, or a Hub id.
        split: split of a folder, a dict or a Hub dataset; on the Hub a slice such as "train[:1000]" works too. A
            single file is used whole. In a folder where some files are named for a split (`x_dev.jsonl`,
            `test/part.parquet`), a file without such a word belongs to "train".
        positives: whether labels are required, see `rows.to_row`.
        config: configuration of a Hub dataset.
        permutations: RankGPT's second file: a JSON array with the teacher's answer for each row of `source`, in order.
        cache_dir: folder of converted files; by default the cache of `datasets`.

    Returns:
        A `datasets.Dataset` with the columns `query_id, query, documents`, the targets in the data, and the carried
        fields.

    Raises:
        InputError: no such source or split, unknown layout, a missing field or a wrong type (with file and line).
        ResourceError: the `datasets` package is not installed, or the Hub cannot be reached.
    """
    datasets = import_datasets()
    if isinstance(source, (str, Path)) and Path(source).exists():
        path = Path(source)
        if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            found = pick_split(datasets.load_from_disk(str(path)), split, path)
            return _convert_dataset(found, positives, permutations)
        return _convert_files(split_files(path, split), positives, permutations, cache_dir)
    if isinstance(source, (str, Path)):
        return _convert_dataset(load_from_hub(str(source), split, config), positives, permutations)
    if isinstance(source, (datasets.Dataset, Mapping)):
        return _convert_dataset(pick_split(source, split, "the given dict"), positives, permutations)
    if isinstance(source, Sequence):
        return _convert_list(source, positives, permutations)
    raise InputError(
        "expected a path, a Hub id, a Dataset or a list of rows (for a stream, list(stream.take(N))), got "
        f"{type(source).__name__}"
    )


def _convert_files(
    files: list[Path], positives: bool, permutations: str | Path | None, cache_dir: str | Path | None
) -> Dataset:
    datasets = import_datasets()
    if permutations is not None and len(files) > 1:
        raise InputError(f"permutations need a single data file, but there are {len(files)}")
    answers = None if permutations is None else Source(str(permutations), "")
    first = next(_generate([Source(str(files[0]), "")], positives, None, answers), None)
    if first is None:
        raise InputError(f"{files[0]} has no rows")
    columns = list(first)
    try:
        return datasets.Dataset.from_generator(
            _generate,
            features=_features(columns),
            cache_dir=None if cache_dir is None else str(cache_dir),
            gen_kwargs={
                # Tuples: a list in gen_kwargs would be treated as shards.
                "sources": tuple(stamp(file) for file in files),
                "positives": positives,
                "columns": tuple(columns),
                "permutations": None if permutations is None else stamp(Path(permutations)),
                "version": CONVERSION_VERSION,
            },
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, UnicodeEncodeError):
            raise InputError(
                f"{files[0]}: the name {error.__cause__.object!a:.80} of a field is broken Unicode"
            ) from None
        if isinstance(error.__cause__, OSError):
            reason = error.__cause__.strerror or error.__cause__
            raise ResourceError(f"the cache of converted training data cannot be written: {reason}") from error
        raise


def _generate(
    sources: Sequence[Source],
    positives: bool,
    columns: Sequence[str] | None,
    permutations: Source | None,
    version: int = CONVERSION_VERSION,
) -> Iterator[Row]:
    """The generator for `Dataset.from_generator`; `version` is only part of the cache key."""
    for source in sources:
        records = with_answers(read_records(Path(source.path)), permutations and permutations.path)
        yield from _convert_records(records, positives, columns, places=True)


def _convert_records(
    records: Iterator[tuple[str, Any]], positives: bool, columns: Sequence[str] | None = None, places: bool = False
) -> Iterator[Row]:
    """Rows with carried fields; every row gets the columns of the first, or those given."""
    layout = None
    for where, record in records:
        if layout is None and isinstance(record, Mapping):
            layout = _recognize(record, positives, where)
        row = _convert_one(record, positives, layout, where, columns)
        row |= {PLACE: where} if places else {}
        columns = columns or tuple(row)
        yield row


def _recognize(record: Record, positives: bool, where: str) -> Layout:
    """The layout of a file, from its first record."""
    try:
        layout = layout_of(record, positives)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    _warn_of_first_stage_order(record, layout, where)
    return layout


def _convert_one(
    record: Any, positives: bool, layout: Layout | None, where: str, columns: Sequence[str] | None
) -> Row:
    """One row with exactly these columns, or with all it has; errors include its place."""
    try:
        row = to_row(record, positives, layout)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    row |= carried_fields(record, row)
    if columns is None:
        return row
    missing = [name for name in (PERMUTATION, *TARGETS) if name in columns and name not in row]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)}: missing, but the first row has it")
    return {name: row.get(name) for name in columns}


def _warn_of_first_stage_order(record: Record, layout: Layout, where: str) -> None:
    """RankGPT's data file and TWOLAR's have the same fields, but only TWOLAR's passages are in the teacher's order."""
    if not layout.ordered or PERMUTATION in record:
        return
    passages = record.get("retrieved_passages")
    if not isinstance(passages, (list, tuple)) or not all(isinstance(passage, Mapping) for passage in passages):
        return
    ranks = [passage["rank"] for passage in passages if isinstance(passage.get("rank"), int)]
    if ranks and len(ranks) == len(passages) and ranks == sorted(ranks):
        logger.warning(
            "%s: retrieved_passages is used as teacher order, but its `rank` fields ascend like a first stage's; if "
            "the teacher's answers are in another file, give it as permutations",
            where,
        )


def _convert_dataset(dataset: Any, positives: bool, permutations: str | Path | None) -> Dataset:
    datasets = import_datasets()
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(f"expected a Dataset with a length, got {type(dataset).__name__}; streaming is not supported")
    if permutations is not None:
        return _convert_list(dataset, positives, permutations)
    if not len(dataset):
        raise InputError("the dataset has no rows")
    layout = _recognize(dataset[0], positives, "row 1")
    columns = tuple(_convert_one(dataset[0], positives, layout, "row 1", None))

    def convert(record: Record, index: int) -> Row:
        return _convert_one(dict(record), positives, layout, f"row {index + 1}", columns)

    return dataset.map(
        convert,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_features(columns),
        desc="converting rows",
    )


def _convert_list(rows: Any, positives: bool, permutations: str | Path | None) -> Dataset:
    records = ((f"row {number}", record) for number, record in enumerate(rows, start=1))
    converted = list(_convert_records(with_answers(records, permutations), positives))
    if not converted:
        raise InputError("the list has no rows")
    return import_datasets().Dataset.from_list(converted, features=_features(list(converted[0])))


def _features(columns: Sequence[str]) -> Features:
    """The Arrow types of a row's columns; carried columns are strings."""
    datasets = import_datasets()
    text = datasets.Value("string")
    known = {
        "documents": datasets.List({"id": text, "title": text, "text": text}),
        PERMUTATION: datasets.List(datasets.Value("int64")),
        **{name: datasets.List(datasets.Value("float64")) for name in TARGETS},
    }
    return datasets.Features({name: known.get(name, text) for name in columns})


def is_read(source: Any) -> bool:
    """Whether these are rows from `load_training_rows`."""
    names = getattr(source, "column_names", None)
    if not isinstance(names, list) or not {"query", "documents"} < set(names):
        return False
    return bool(source.features["documents"] == _features(["documents"])["documents"])

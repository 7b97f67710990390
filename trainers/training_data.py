"""Training data: which layouts can be read, how they become one canonical row, and the checks before training.

| training | layout | fields of a row | becomes |
|---|---|---|---|
| CPT | pair (canonical) | `query` or `anchor`, `document` or `positive` | query, document |
| SFT | canonical | `query_id`*, `query`, `positives`, `negatives`, `positive_scores`*, `negative_scores`* | the same |
| SFT | Tevatron, RankingGPT | `query_id`*, `query`, `positive_passages`, `negative_passages` | positives, negatives |
| SFT | RankGPT's data file | `query`, `positive_passages`, `retrieved_passages` | the other candidates: negatives |
| SFT | FlagEmbedding | `query`, `pos`, `neg`, `pos_scores`*, `neg_scores`* | positives, negatives, their scores |
| SFT | labelled list | `query`, `documents`, `labels` | label above 0: positive |
| SFT | triplet | `query` or `anchor`, `positive`, `negative(s)` or `negative_1`, … | positives, negatives |
| distillation | order (canonical) | `query`, `documents`, `permutation` (best first) | permutation |
| distillation | scores (canonical) | `query`, `documents`, `teacher_scores` or `scores` | teacher_scores |
| distillation | labelled list (canonical) | `query`, `documents`, `labels` (grades of at least 0) | labels |
| distillation | RankGPT | `query`, `retrieved_passages`; answers in a second file (`permutations=`) | permutation |
| distillation | TWOLAR | `query_id`, `query`, `retrieved_passages` in the teacher's order | permutation |
| distillation | SFT's canonical one or FlagEmbedding's, with the scores | as above | teacher_scores |
| distillation | scored triplet | a triplet with `scores`: a list, or one negative's margin | teacher_scores |
| distillation | any SFT layout | as above | labels 1 and 0 |

Fields with * are optional; `docs` and `passages` serve for `documents`, `question` for `query`. A document is a text
or an object `{"docid"*, "title"*, "text"}` (`contents` and `content` serve for `text`; `_id`, `id` and `pid` for
`docid`), and always an object in the canonical row. A permutation is a list of indexes counted from 0, a list of
docids, or a teacher's answer such as "[2] > [1] > [3]", counted from 1, which is read as `parse_permutation` says; the
answer is kept in `answer`, and `repaired` tells whether something was wrong with it. Any other field whose value is a
text or a number (type, source, teacher, first stage …) is carried along as a text.

Files: `.jsonl`, `.json` (an array, an object with `data`, or one row a line), both also with `.gz`, and `.parquet`; a
folder of such files or one written by `save_to_disk`; a `Dataset`; a list of rows; a dataset's id on the Hub.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.ranking_text import clean_text
from modeling_tsarank.trainers.training_checks import check_rows, drop_unusable_rows, row_problem
from modeling_tsarank.trainers.training_layouts import (
    CANONICAL_FIELDS,
    SFT_SCORES,
    TARGET_FIELDS,
    Layout,
    Record,
    canonical_row,
    check_kind,
    layout_of,
    parse_permutation,
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


__all__ = [
    "canonical_row",
    "check_rows",
    "drop_unusable_rows",
    "load_training_rows",
    "parse_permutation",
    "row_problem",
]

logger = logging.getLogger(__name__)

# Part of the cache key of converted files: raise it whenever a conversion changes.
CONVERSION_VERSION = 2


def load_training_rows(
    source: str | Path | Dataset | Sequence[Record],
    kind: str,
    split: str = "train",
    *,
    config: str | None = None,
    permutations: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Reads training data in any layout of the table above and gives canonical rows.

    Fields and types are checked here, row by row; what the rows say (no negatives, a positive among the negatives, a
    broken permutation …) is checked by `check_rows`, which every trainer calls before it starts.

    Files are converted once into Arrow files in the cache of the `datasets` library and read from there afterwards, so
    that memory does not grow with the data; a changed file is converted anew.

    Args:
        source: a file, a folder, a `datasets.Dataset` (or a dict of splits), a list of rows, or an id on the Hub.
        kind: "cpt", "sft" or "distill".
        split: which split of a folder, a dict or a Hub dataset; on the Hub a slice such as "train[:1000]" works too. A
            single file is taken whole. In a folder where some files are named for a split (`x_dev.jsonl`,
            `test/part.parquet`), a file without such a word belongs to "train".
        config: configuration of a Hub dataset.
        permutations: RankGPT's second file: a JSON array with the teacher's answer for each row of `source`, in order.
        cache_dir: where converted files are kept; by default where `datasets` keeps its own.

    Returns:
        A `datasets.Dataset` with the columns `query, document` (CPT), `query_id, query, positives, negatives` (SFT; a
        teacher's `positive_scores` and `negative_scores` too if the data has them) or `query_id, query, documents` and
        those of `permutation`, `teacher_scores`, `labels` that the data has (distillation), then the carried fields.

    Raises:
        InputError: no such source or split, unknown layout, a missing field or a wrong type (with file and line).
        ResourceError: the `datasets` package is missing, or the Hub cannot be reached.
    """
    check_kind(kind)
    if permutations is not None and kind != "distill":
        raise InputError(f"permutations belong to distillation; they were given for {kind}")
    datasets = import_datasets()
    if isinstance(source, (str, Path)) and Path(source).exists():
        path = Path(source)
        if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            return _convert_dataset(pick_split(datasets.load_from_disk(str(path)), split, path), kind, permutations)
        return _convert_files(split_files(path, split), kind, permutations, cache_dir)
    if isinstance(source, (str, Path)):
        return _convert_dataset(load_from_hub(str(source), split, config), kind, permutations)
    if isinstance(source, (datasets.Dataset, Mapping)):
        return _convert_dataset(pick_split(source, split, "the given dict"), kind, permutations)
    if isinstance(source, Sequence):
        return _convert_list(source, kind, permutations)
    raise InputError(f"expected a path, a Hub id, a Dataset or a list of rows, got {type(source).__name__}")


def _convert_files(
    files: list[Path], kind: str, permutations: str | Path | None, cache_dir: str | Path | None
) -> Dataset:
    datasets = import_datasets()
    if permutations is not None and len(files) > 1:
        raise InputError(f"permutations belong to one data file, and there are {len(files)}")
    first = next(_convert_sources([str(files[0])], kind, None, permutations), None)
    if first is None:
        raise InputError(f"{files[0]} has no rows")
    columns = list(first)
    sources = [stamp(file) for file in files]
    answers = None if permutations is None else stamp(Path(permutations))
    try:
        return datasets.Dataset.from_generator(
            _generate,
            features=_features(columns),
            cache_dir=None if cache_dir is None else str(cache_dir),
            gen_kwargs={
                # Tuples: a list in gen_kwargs would be taken as shards.
                "sources": tuple(sources),
                "kind": kind,
                "columns": tuple(columns),
                "permutations": answers,
                "version": CONVERSION_VERSION,
            },
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, OSError):
            reason = error.__cause__.strerror or error.__cause__
            raise ResourceError(f"the cache of converted training data cannot be written: {reason}") from error
        raise


def _generate(
    sources: tuple[Source, ...], kind: str, columns: tuple[str, ...], permutations: Source | None, version: int
) -> Iterator[dict[str, Any]]:
    """What `Dataset.from_generator` calls; `version` is there to be part of the cache key."""
    answers = None if permutations is None else permutations.path
    yield from _convert_sources([source.path for source in sources], kind, columns, answers)


def _convert_sources(
    paths: list[str], kind: str, columns: Sequence[str] | None, permutations: str | Path | None
) -> Iterator[dict[str, Any]]:
    for path in paths:
        records = read_records(Path(path))
        yield from _convert_records(with_answers(records, permutations), kind, columns)


def _convert_records(
    records: Iterator[tuple[str, Any]], kind: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Canonical rows with carried fields; every row gets the columns of the first, or those given."""
    layout = None
    for where, record in records:
        if layout is None and isinstance(record, Mapping):
            layout = _recognize(record, kind, where)
        row = _convert_one(record, kind, layout, where, columns)
        columns = columns or tuple(row)
        yield row


def _recognize(record: Record, kind: str, where: str) -> Layout:
    """The layout of a file by its first record."""
    try:
        layout = layout_of(record, kind)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    _warn_of_first_stage_order(record, layout.name, where)
    return layout


def _convert_one(
    record: Any, kind: str, layout: Layout | None, where: str, columns: Sequence[str] | None
) -> dict[str, Any]:
    """One canonical row with exactly these columns, or with all it has; errors say where it stands."""
    try:
        row = canonical_row(record, kind, layout)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    row |= _carried(record, kind, row)
    if columns is None:
        return row
    missing = [name for name in (*TARGET_FIELDS, *SFT_SCORES) if name in columns and name not in row]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)}: missing, while the first row has it")
    return {name: row.get(name) for name in columns}


def _carried(record: Record, kind: str, row: Record) -> dict[str, str | None]:
    """Other fields with a plain value, as texts; names of canonical columns are never carried."""
    reserved = {*CANONICAL_FIELDS[kind], *TARGET_FIELDS, *SFT_SCORES, *row}
    consumed = {"anchor", "question", "positive", "positives", "negative", "negatives", "score", "label"}
    return {
        name: None if value is None else clean_text(str(value), name)
        for name, value in record.items()
        if name not in reserved
        and name not in consumed
        and not name.startswith("negative_")
        and (value is None or isinstance(value, (str, int, float)))
    }


def _warn_of_first_stage_order(record: Record, layout: str, where: str) -> None:
    """RankGPT's data file and TWOLAR's have the same fields, but only TWOLAR's passages are in the teacher's order."""
    if layout != "rankgpt" or "permutation" in record:
        return
    passages = record["retrieved_passages"]
    if not isinstance(passages, (list, tuple)) or not all(isinstance(passage, Mapping) for passage in passages):
        return
    ranks = [passage["rank"] for passage in passages if isinstance(passage.get("rank"), int)]
    if ranks and len(ranks) == len(passages) and ranks == sorted(ranks):
        logger.warning(
            "%s: retrieved_passages is taken as the teacher's order, but its `rank` fields ascend as a first stage's "
            "would; if the teacher's answers are in another file, give it as permutations",
            where,
        )


def _convert_dataset(dataset: Any, kind: str, permutations: str | Path | None) -> Dataset:
    datasets = import_datasets()
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(f"expected a Dataset with a length, got {type(dataset).__name__}; streaming is not supported")
    if permutations is not None:
        return _convert_list(dataset, kind, permutations)
    if not len(dataset):
        raise InputError("the dataset has no rows")
    layout = _recognize(dataset[0], kind, "row 1")
    columns = tuple(_convert_one(dataset[0], kind, layout, "row 1", None))

    def convert(record: Record, index: int) -> dict[str, Any]:
        return _convert_one(dict(record), kind, layout, f"row {index + 1}", columns)

    return dataset.map(
        convert,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_features(columns),
        desc="converting rows",
    )


def _convert_list(rows: Any, kind: str, permutations: str | Path | None) -> Dataset:
    records = ((f"row {number}", record) for number, record in enumerate(rows, start=1))
    converted = list(_convert_records(with_answers(records, permutations), kind))
    if not converted:
        raise InputError("the list has no rows")
    return import_datasets().Dataset.from_list(converted, features=_features(list(converted[0])))


def _features(columns: Sequence[str]) -> Features:
    """The Arrow types of canonical columns; carried columns are texts."""
    datasets = import_datasets()
    text, number = datasets.Value("string"), datasets.Value("float64")
    documents = datasets.List({"docid": text, "title": text, "text": text})
    known = {
        "positives": documents,
        "negatives": documents,
        "documents": documents,
        "permutation": datasets.List(datasets.Value("int64")),
        "positive_scores": datasets.List(number),
        "negative_scores": datasets.List(number),
        "teacher_scores": datasets.List(number),
        "labels": datasets.List(number),
    }
    return datasets.Features({name: known.get(name, text) for name in columns})

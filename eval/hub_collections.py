"""Collections from the Hugging Face Hub: `BeIR/NAME` with `BeIR/NAME-qrels`, or `mteb/NAME` as one repository."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from modeling_tsarank.eval.types import Collection, Document, Qrels, StoredDocuments
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.fields import FIELDS, as_id, one_of, record_text, record_title
from modeling_tsarank.ranking_errors import InputError, ResourceError


def table_documents(table: Any, place: str = "the corpus") -> StoredDocuments:
    """Documents from the rows of a `datasets` table, which stays on disk.

    Args:
        table: A `datasets.Dataset` with columns for id, text and optionally title, named as in `files.fields`.
        place: Name of the corpus in error messages.

    Raises:
        InputError: A column is missing, or an id is null or appears twice.
    """
    _column(table, "text", place)
    rows = {identifier: row for row, identifier in enumerate(_ids(table, "id", place))}
    if len(rows) != len(table):
        raise InputError(f"the corpus has {len(table)} rows and only {len(rows)} different ids")
    return StoredDocuments(rows, partial(_document, table, place))


def _document(table: Any, place: str, number: int) -> Document:
    row, place = table[number], f"{place}, row {number + 1}"
    return Document(title=record_title(row, place), text=record_text(row, place))


def load_hub_collection(
    repository: str, name: str, split: str, cache_dir: str | os.PathLike[str] | None = None
) -> Collection:
    """Loads a collection stored on the Hub in BEIR's layout.

    The texts are in the configurations `corpus` and `queries` of `repository`. The judgments are in its configuration
    `default` if it has one (as mteb's do), else in the repository `REPOSITORY-qrels` (as BeIR's do).

    Args:
        repository: Hub id of a dataset.
        name: Name of the collection.
        split: Split of the judgments.
        cache_dir: Cache folder of `datasets`; its own default if None.

    Raises:
        InputError: The repository does not exist, or has no such configuration, split or column.
        ResourceError: The Hub cannot be reached, or `datasets` is not installed.
    """
    require("datasets", extra="eval", purpose="Loading a collection from the Hub")
    corpus = _load_table(repository, "corpus", ("corpus", "train", "test"), cache_dir)
    queries = _load_table(repository, "queries", ("queries", "train", "test"), cache_dir)
    place = f"{repository}, queries"
    texts = queries[_column(queries, "query_text", place)]
    return Collection(
        name=name,
        documents=table_documents(corpus, f"{repository}, corpus"),
        queries={
            query_id: record_text({"text": text}, f"{place}, row {number}")
            for number, (query_id, text) in enumerate(zip(_ids(queries, "query_id", place), texts, strict=True), 1)
        },
        qrels=_load_qrels(repository, split, cache_dir),
    )


def _load_qrels(repository: str, split: str, cache_dir: str | os.PathLike[str] | None) -> Qrels:
    import datasets

    with _clear_errors(f"the dataset {repository!r}"):
        configurations = datasets.get_dataset_config_names(repository)
    if "default" in configurations:
        table = _load_table(repository, "default", (split,), cache_dir)
    else:
        table = _load_table(f"{repository}-qrels", None, (split,), cache_dir)
    names = table.column_names
    missing = [column for column in ("query-id", "corpus-id", "score") if column not in names]
    if missing:
        raise InputError(f"{repository}, judgments: no column {', '.join(missing)}; there are {', '.join(names)}")
    qrels: Qrels = {}
    rows = zip(table["query-id"], table["corpus-id"], table["score"], strict=True)
    for number, (query_id, document_id, grade) in enumerate(rows, start=1):
        place = f"{repository}, judgments, row {number}"
        query_id, document_id = as_id(query_id, f"{place}: the query id"), as_id(document_id, f"{place}: the id")
        if not isinstance(grade, int | float) or isinstance(grade, bool) or not float(grade).is_integer():
            raise InputError(f"{place}: the relevance {grade!r} of query {query_id!r} is not a whole number")
        qrels.setdefault(query_id, {})[document_id] = int(grade)
    return qrels


def _load_table(
    repository: str, configuration: str | None, splits: Iterable[str], cache_dir: str | os.PathLike[str] | None
) -> Any:
    """The first of `splits` that the configuration has."""
    import datasets

    place = f"the dataset {repository!r}" + (f", configuration {configuration!r}" if configuration else "")
    cache = None if cache_dir is None else os.fspath(cache_dir)
    with _clear_errors(place):
        tables = datasets.load_dataset(repository, configuration, cache_dir=cache)
    for split in splits:
        if split in tables:
            return tables[split]
    raise InputError(f"{place} has no split {' or '.join(splits)}; it has {', '.join(tables)}")


@contextmanager
def _clear_errors(place: str) -> Iterator[None]:
    """Converts the exceptions of `datasets` and the Hub to `InputError` and `ResourceError`."""
    import datasets

    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        raise InputError(
            f"{place} is neither a local folder nor a readable dataset on the Hub ({_first_line(error)})"
        ) from error
    except OSError as error:  # base class of the network errors of datasets, huggingface_hub and requests
        raise ResourceError(
            f"the Hub cannot be reached for {place}: {_first_line(error)}; check the network (and HF_HUB_OFFLINE) "
            f"or use a local folder"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{place} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _column(table: Any, meaning: str, place: str) -> str:
    """The name of the column for a field of `files.fields`."""
    filled = [name for name, feature in table.features.items() if getattr(feature, "dtype", "") != "null"]
    name = next((name for name in FIELDS[meaning] if name in filled), None)
    if name is None:
        raise InputError(f"{place}: no column {one_of(FIELDS[meaning])}; there are {', '.join(table.column_names)}")
    return name


def _ids(table: Any, meaning: str, place: str) -> Iterator[str]:
    name = _column(table, meaning, place)
    return (as_id(value, f"{place}, row {number}: {name!r}") for number, value in enumerate(table[name], start=1))

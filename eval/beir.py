"""Collections in BEIR's folder layout: `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv`, and optional run files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.run_files import read_qrels
from modeling_tsarank.eval.types import Collection, Document, StoredDocuments
from modeling_tsarank.files.fields import record_id, record_text, record_title
from modeling_tsarank.files.reading import open_stream, parse_json_object, read_jsonl, read_lines
from modeling_tsarank.ranking_errors import InputError


LAZY_BYTES = 512 * 1024 * 1024
"""A plain corpus file above this size stays on disk; only ids and positions are kept in memory."""

RUN_SUFFIXES = (".trec", ".txt", ".run", ".tsv", ".jsonl", ".json", ".trec.gz", ".txt.gz", ".jsonl.gz")


def stored_documents(path: Path) -> StoredDocuments:
    """Documents of an uncompressed `corpus.jsonl`, each read from disk on access.

    The file is scanned once to find the offset of each document; it must not change afterwards.

    Raises:
        InputError: A line is not a document, or an id appears twice (with the line's number).
    """
    places: dict[str, int] = {}
    begin = 0
    with open_stream(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                add_once(places, document_from_record(parse_json_object(line, place), place)[0], begin, place)
            begin += len(line)
    return StoredDocuments(places, partial(_document_at, path))


def _document_at(path: Path, begin: int) -> Document:
    with path.open("rb") as file:
        file.seek(begin)
        return document_from_record(parse_json_object(file.readline(), f"{path}, byte {begin}"), str(path))[1]


def add_once(records: dict[str, Any], identifier: str, value: Any, place: str) -> None:
    """Adds a record under its id. Raises `InputError` if there is one already."""
    if identifier in records:
        raise InputError(f"{place}: the id {identifier!r} appeared before; ids are unique")
    records[identifier] = value


def document_from_record(record: Mapping[str, Any], place: str) -> tuple[str, Document]:
    """Id and document of one record `{"_id", "title", "text"}`; a missing or null title becomes an empty string.

    Raises:
        InputError: The id or the text is missing, or not text.
    """
    text, title = record_text(record, place), record_title(record, place)
    return record_id(record, place), Document(title=title, text=text)


def query_from_record(record: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Id and text of one record `{"_id", "text"}`.

    Raises:
        InputError: The id or the text is missing, or not text.
    """
    return record_id(record, place, "query_id"), record_text(record, place, "query_text")


def read_corpus(path: str | os.PathLike[str], lazy_bytes: int = LAZY_BYTES) -> Mapping[str, Document]:
    """Reads a corpus file (`.jsonl` or `.jsonl.gz`); a large uncompressed one lazily, see `stored_documents`.

    Raises:
        InputError: No such file, a line that is not a document (with its number), a repeated id, or no document.
    """
    path = Path(path)
    documents: Mapping[str, Document]
    if path.suffix != ".gz" and path.is_file() and path.stat().st_size > lazy_bytes:
        documents = stored_documents(path)
    else:
        documents = read_records(path, document_from_record)
    if not documents:
        raise InputError(f"{path} contains no document")
    return documents


def read_queries(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads a queries file (`.jsonl`, `.jsonl.gz`, or `.tsv` with id and text) as query id to text.

    Raises:
        InputError: No such file, a line that is not a query (with its number), a repeated id, or no query.
    """
    path = Path(path)
    queries = _read_tsv_queries(path) if ".tsv" in path.suffixes else read_records(path, query_from_record)
    if not queries:
        raise InputError(f"{path} contains no query")
    return queries


def read_records(path: Path, parse: Callable[[dict[str, Any], str], tuple[str, Any]]) -> dict[str, Any]:
    """Records of a JSON Lines file by id; `parse(record, place)` returns id and value.

    Raises:
        InputError: A line that `parse` refuses or an id that appears twice.
    """
    records: dict[str, Any] = {}
    for place, record in read_jsonl(path):
        add_once(records, *parse(record, place), place)
    return records


def _read_tsv_queries(path: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    for place, line in read_lines(path):
        query_id, tab, text = line.partition("\t")
        if not tab or not query_id:
            raise InputError(f"{place}: expected a query id, a tab and the query's text")
        add_once(queries, query_id, text, place)
    return queries


def is_beir_folder(folder: Path) -> bool:
    """Whether the folder has a corpus file in BEIR's layout."""
    return any((folder / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def load_beir_folder(folder: Path, name: str, split: str, lazy_bytes: int = LAZY_BYTES) -> Collection:
    """Loads one collection from BEIR's folder layout, with the runs of its `runs/` folder, if any, by file stem.

    Raises:
        InputError: A file is missing or malformed, or the split has no judgments (the message lists the splits that
            exist).
    """
    qrels_folder = folder / "qrels"
    splits = sorted(path.stem for path in qrels_folder.glob("*.tsv"))
    if split not in splits:
        found = f"found: {', '.join(splits)}" if splits else f"there is no *.tsv in {qrels_folder}"
        raise InputError(f"{folder} has no judgments for the split {split!r}; {found}")
    runs_folder = folder / "runs"
    run_paths = [path for path in sorted(runs_folder.glob("*")) if path.name.endswith(RUN_SUFFIXES)]
    return Collection(
        name=name,
        documents=read_corpus(_either(folder, "corpus.jsonl"), lazy_bytes),
        queries=read_queries(_either(folder, "queries.jsonl")),
        qrels=read_qrels(qrels_folder / f"{split}.tsv"),
        runs={path.name.removesuffix(".gz").rpartition(".")[0]: path for path in run_paths},
    )


def _either(folder: Path, name: str) -> Path:
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() and not (folder / name).is_file() else folder / name

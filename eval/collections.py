"""Test collections by name: a folder, a Hub dataset or an ir_datasets name, validated before use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from modeling_tsarank.eval.beir import is_beir_folder, load_beir_folder, read_corpus, read_queries
from modeling_tsarank.eval.hub_collections import load_hub_collection
from modeling_tsarank.eval.ir_datasets_bridge import load_ir_dataset
from modeling_tsarank.eval.run_files import read_qrels
from modeling_tsarank.eval.types import Collection
from modeling_tsarank.ranking_errors import InputError


logger = logging.getLogger(__name__)

IR_DATASETS_PREFIX = "ir_datasets:"

CQADUPSTACK_PARTS = (
    "android",
    "english",
    "gaming",
    "gis",
    "mathematica",
    "physics",
    "programmers",
    "stats",
    "tex",
    "unix",
    "webmasters",
    "wordpress",
)
"""The twelve forums of CQADupStack; BEIR reports the unweighted mean of their results."""


def load_collection(
    name_or_path: str | os.PathLike[str], split: str = "test", cache_dir: str | os.PathLike[str] | None = None
) -> Collection:
    """Loads one test collection.

    Args:
        name_or_path: A folder in BEIR's layout; `ir_datasets:NAME`; or the Hub id of a dataset, such as
            `BeIR/scifact`, whose judgments are in `BeIR/scifact-qrels`.
        split: Split of the judgments.
        cache_dir: Where `datasets` caches its downloads.

    Returns:
        The validated collection. `self_match` is set for ArguAna, and wherever at least half of the judged queries
        are also documents, with the same id and text.

    Raises:
        InputError: There is no such collection, it is CQADupStack (see `load_collections`), a file is malformed (with
            the line number), judged queries have no text, or no judged document is in the corpus.
        ResourceError: The Hub cannot be reached, or an optional package is missing.
    """
    name = os.fspath(name_or_path)
    parts = _parts(name)
    if parts:
        raise InputError(f"{name} is CQADupStack in {len(parts)} parts; use load_collections to load them all")
    return _checked(_load(name, split, cache_dir))


def load_collections(
    name_or_path: str | os.PathLike[str], split: str = "test", cache_dir: str | os.PathLike[str] | None = None
) -> list[Collection]:
    """Like `load_collection`, but CQADupStack is loaded as its twelve parts, named `cqadupstack/PART`.

    CQADupStack is recognized as a folder with the twelve parts as sub-folders, as `ir_datasets:beir/cqadupstack`, or
    as a Hub id that ends in `cqadupstack`, whose parts are `…/cqadupstack-PART`. Average results with `mean_results`.

    Raises:
        InputError: See `load_collection`; also for a CQADupStack folder with missing parts.
        ResourceError: See `load_collection`.
    """
    name = os.fspath(name_or_path)
    parts = _parts(name)
    if not parts:
        return [load_collection(name, split, cache_dir)]
    loaded = []
    for part, part_name in parts.items():
        collection = _load(part_name, split, cache_dir)
        collection.name = f"cqadupstack/{part}"
        loaded.append(_checked(collection))
    return loaded


def load_collection_from_files(
    corpus: str | os.PathLike[str], queries: str | os.PathLike[str], qrels: str | os.PathLike[str], name: str
) -> Collection:
    """A collection from three files, the usual form of TREC collections.

    Args:
        corpus: JSON Lines of `{"_id", "title", "text"}`.
        queries: JSON Lines of `{"_id", "text"}`, or a `.tsv` of id and text.
        qrels: TREC's four columns or BEIR's three.
        name: Name of the collection.

    Raises:
        InputError: A file is missing or malformed (with the line number), or the files are of different collections.
    """
    return _checked(Collection(name, read_corpus(corpus), read_queries(queries), read_qrels(qrels)))


def mean_results(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Unweighted mean of every measure over collections, as BEIR averages the parts of CQADupStack.

    Raises:
        InputError: There are no results, or they have different measures.
    """
    rows = list(results)
    if not rows or any(row.keys() != rows[0].keys() for row in rows):
        raise InputError("cannot average results: at least one is needed, and all need the same measures")
    return {measure: sum(row[measure] for row in rows) / len(rows) for measure in rows[0]}


def _parts(name: str) -> dict[str, str]:
    """The parts of CQADupStack by name if `name` means the whole collection; empty otherwise."""
    folder = Path(name)
    if folder.is_dir():
        present = [part for part in CQADUPSTACK_PARTS if is_beir_folder(folder / part)]
        if not present or is_beir_folder(folder):
            return {}
        if len(present) < len(CQADUPSTACK_PARTS):
            missing = [part for part in CQADUPSTACK_PARTS if part not in present]
            raise InputError(f"{name} has only {len(present)} of CQADupStack's parts; missing: {', '.join(missing)}")
        return {part: os.fspath(folder / part) for part in CQADUPSTACK_PARTS}
    if not name.rstrip("/").lower().endswith("/cqadupstack"):
        return {}
    joint = "/" if name.startswith(IR_DATASETS_PREFIX) else "-"
    return {part: f"{name.rstrip('/')}{joint}{part}" for part in CQADUPSTACK_PARTS}


def _load(name: str, split: str, cache_dir: str | os.PathLike[str] | None) -> Collection:
    if name.startswith(IR_DATASETS_PREFIX):
        dataset_id = name.removeprefix(IR_DATASETS_PREFIX)
        return load_ir_dataset(dataset_id, dataset_id, split)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not is_beir_folder(folder):
            raise InputError(f"{folder} has no corpus.jsonl; expected a folder in BEIR's layout")
        return load_beir_folder(folder, folder.resolve().name, split)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return load_hub_collection(name, name.partition("/")[2], split, cache_dir)
    raise InputError(
        f"no collection {name!r}: expected a folder in BEIR's layout, a Hub id such as BeIR/scifact, or "
        f"{IR_DATASETS_PREFIX}NAME"
    )


def _checked(collection: Collection) -> Collection:
    """Raises for collections that cannot be evaluated and warns of unusual ones."""
    if not len(collection.documents) or not collection.queries or not collection.qrels:
        sizes = f"{len(collection.documents)} documents, {len(collection.queries)} queries"
        raise InputError(f"{collection.name} is empty: {sizes}, judgments of {len(collection.qrels)} queries")
    unknown_queries = [query_id for query_id in collection.qrels if query_id not in collection.queries]
    if unknown_queries:
        raise InputError(
            f"{collection.name}: {len(unknown_queries)} of {len(collection.qrels)} judged queries have no text, "
            f"the first is {unknown_queries[0]!r}; are queries and qrels of the same collection?"
        )
    _check_judged_documents(collection)
    collection.self_match = collection.self_match or _matches_itself(collection)
    return collection


def _check_judged_documents(collection: Collection) -> None:
    """Judged documents may be missing from a partial corpus (the usual TREC-DL candidates), but not all of them."""
    judged = {document_id for grades in collection.qrels.values() for document_id in grades}
    unknown = [document_id for document_id in judged if document_id not in collection.documents]
    if len(unknown) == len(judged):
        raise InputError(
            f"{collection.name}: none of the {len(judged)} judged documents is in the corpus, the first is "
            f"{min(unknown)!r}; are corpus and qrels of the same collection?"
        )
    if unknown:
        logger.warning(
            "%s: %d of %d judged documents are not in the corpus, such as %r; they cannot be retrieved and lower "
            "every run's measures",
            collection.name,
            len(unknown),
            len(judged),
            min(unknown),
        )


def _matches_itself(collection: Collection) -> bool:
    """Whether queries are documents: ArguAna by name, or at least half of the judged queries by id and text."""
    if "arguana" in collection.name.lower():
        return True
    judged = collection.judged_queries()
    same = 0
    for query_id in judged:
        if query_id in collection.documents:
            document = collection.documents[query_id]
            words = collection.queries[query_id].split()
            same += words in (document.text.split(), document.full_text.split())
    return 2 * same >= len(judged) > 0

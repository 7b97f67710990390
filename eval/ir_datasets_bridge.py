"""Collections by their ir_datasets name."""

from __future__ import annotations

from typing import Any

from modeling_tsarank.eval.types import Collection, Document, Qrels, StoredDocuments
from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError, ResourceError


def load_ir_dataset(dataset_id: str, name: str, split: str = "test") -> Collection:
    """Loads a collection by its ir_datasets name.

    Args:
        dataset_id: Such as `beir/scifact/test` or `msmarco-passage/trec-dl-2019/judged`. If it has no queries and
            judgments of its own, `NAME/SPLIT` is tried.
        name: Name of the collection.
        split: See above.

    Raises:
        InputError: ir_datasets does not know the name, or it lacks documents, queries or judgments.
        ResourceError: ir_datasets is not installed, or its files cannot be downloaded.
    """
    ir_datasets = require("ir_datasets", extra="ir-datasets", purpose="A collection named ir_datasets:…")
    dataset = _known_dataset(ir_datasets, dataset_id, split)
    try:
        queries = {str(query.query_id): query.default_text() for query in dataset.queries_iter()}
        qrels: Qrels = {}
        for judgment in dataset.qrels_iter():
            grades = qrels.setdefault(str(judgment.query_id), {})
            document_id, grade = str(judgment.doc_id), judgment.relevance
            if grade != int(grade) or grades.get(document_id, grade) != grade:
                raise InputError(
                    f"ir_datasets' {dataset_id!r}: query {judgment.query_id!r}, document {document_id!r} has the "
                    f"relevance {grade}; expected one whole number per document"
                )
            grades[document_id] = int(grade)
        ids = {document.doc_id: document.doc_id for document in dataset.docs_iter()}
        store = dataset.docs_store()
    except (OSError, RuntimeError) as error:
        raise ResourceError(f"ir_datasets cannot provide {dataset_id!r}: {str(error).splitlines()[0]}") from error
    documents = StoredDocuments(ids, lambda document_id: _document(store.get(document_id)))
    return Collection(name=name, documents=documents, queries=queries, qrels=qrels)


def _known_dataset(ir_datasets: Any, dataset_id: str, split: str) -> Any:
    """The dataset `dataset_id`, or `dataset_id/split`, that has documents, queries and judgments."""
    loaded = None
    for candidate in (dataset_id, f"{dataset_id}/{split}"):
        try:
            dataset = ir_datasets.load(candidate)
        except KeyError:
            continue
        if dataset.has_docs() and dataset.has_queries() and dataset.has_qrels():
            return dataset
        loaded = dataset
    if loaded is None:
        raise InputError(f"ir_datasets knows no dataset {dataset_id!r}; see https://ir-datasets.com for its names")
    parts = [part for part in ("docs", "queries", "qrels") if not getattr(loaded, f"has_{part}")()]
    raise InputError(f"ir_datasets' {dataset_id!r} has no {' and no '.join(parts)}; choose one of its sub-datasets")


def _document(record: Any) -> Document:
    """Title and text of any ir_datasets document type; without a `text` field, all fields together are the text."""
    title, text = getattr(record, "title", None), getattr(record, "text", None)
    if isinstance(text, str):
        return Document(title=title if isinstance(title, str) else "", text=text)
    return Document(title="", text=record.default_text())

"""Runs, relevance judgments, documents and collections."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


Run = dict[str, dict[str, float]]
"""Query id to document id to score; higher is better. The order within a query has no meaning."""

Qrels = dict[str, dict[str, int]]
"""Query id to document id to relevance grade; 0 or less is not relevant."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a collection.

    Attributes:
        title: The title; empty if the collection has none.
        text: The body.
    """

    title: str
    text: str

    @property
    def full_text(self) -> str:
        """Title, one space and text, stripped: the document text that BEIR passes to a ranker."""
        return f"{self.title} {self.text}".strip()


class StoredDocuments(Mapping[str, Document]):
    """Documents that stay in their storage and are loaded on access; only ids and keys are in memory.

    Args:
        places: Document id to the key that `fetch` takes.
        fetch: Loads one document; must be picklable if the documents are passed to other processes.
    """

    def __init__(self, places: Mapping[str, Any], fetch: Callable[[Any], Document]) -> None:
        self._places, self._fetch = places, fetch

    def __getitem__(self, document_id: str) -> Document:
        return self._fetch(self._places[document_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, document_id: object) -> bool:
        return document_id in self._places


@dataclass
class Collection:
    """A test collection: documents, queries and judgments.

    Attributes:
        name: Short name for tables and file names, such as `scifact`.
        documents: Document id to `Document`. Any mapping; a lazy one need not have the corpus in memory.
        queries: Query id to query text, possibly including queries without judgments.
        qrels: Relevance judgments of one split.
        self_match: True if queries are themselves documents of the collection (ArguAna): a query's own
            document, the one with the query's id, is then removed from its candidates.
        runs: First-stage runs published with the collection, by file stem.
    """

    name: str
    documents: Mapping[str, Document]
    queries: dict[str, str]
    qrels: Qrels
    self_match: bool = False
    runs: dict[str, Path] = field(default_factory=dict)

    def judged_queries(self) -> list[str]:
        """Ids of the queries that have a text and at least one judgment, in the order of `queries`."""
        return [query_id for query_id in self.queries if self.qrels.get(query_id)]

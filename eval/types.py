"""The shapes that the measuring room passes around: runs, relevance judgments, documents and collections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


Run = dict[str, dict[str, float]]
"""Query id to document id to score; higher is better. The order inside a query carries no meaning."""

Qrels = dict[str, dict[str, int]]
"""Query id to document id to relevance grade; 0 or less is not relevant."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a collection.

    Attributes:
        title: The title; empty where the collection has none.
        text: The body.
    """

    title: str
    text: str

    @property
    def full_text(self) -> str:
        """Title, one space and text, without surrounding white space: how BEIR shows a document to a ranker."""
        return f"{self.title} {self.text}".strip()


@dataclass
class Collection:
    """A test collection: documents, queries and judgments.

    Attributes:
        name: Short name for tables and file names, such as `scifact`.
        documents: Document id to `Document`. Any mapping will do; a lazy one need not hold the corpus in memory.
        queries: Query id to query text. It may hold queries without judgments.
        qrels: Judgments of one split.
        self_match: True where queries are themselves documents of the collection (ArguAna): a query's own
            document, the one with the query's id, is then removed from its candidates.
        runs: Published first-stage runs that came with the collection, by file stem.
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

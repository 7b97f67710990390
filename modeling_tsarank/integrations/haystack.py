"""Haystack: `TSARankRanker` as a component of pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from . import as_ranker


@component
class TSARankRanker:
    """Orders documents by relevance to the query.

    Args:
        model: A name as `load_ranker` takes it; `None` is the default model. Loaded by `warm_up`.
        top_k: How many documents to keep; `None` keeps all.
    """

    def __init__(self, model: str | None = None, top_k: int | None = None) -> None:
        self.model, self.top_k = model, top_k
        self._ranker: Any = None

    def warm_up(self) -> None:
        """Loads the model."""
        if self._ranker is None:
            self._ranker = as_ranker(self.model)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """`{"documents": …}`, best first, with their scores."""
        self.warm_up()
        if not documents:
            return {"documents": []}
        ranked = self._ranker.rank(query, [document.content or "" for document in documents], top_k or self.top_k)
        return {"documents": [replace(documents[row["corpus_id"]], score=row["score"]) for row in ranked]}

    def to_dict(self) -> dict[str, Any]:
        """For pipelines in files."""
        found: dict[str, Any] = default_to_dict(self, model=self.model, top_k=self.top_k)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TSARankRanker:
        """As `to_dict` wrote it."""
        made: TSARankRanker = default_from_dict(cls, data)
        return made

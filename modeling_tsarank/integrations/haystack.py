"""Haystack: `TSARankRanker` as a component of pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from ..ranking_options import whole_number
from . import as_ranker, found_in, rank_with


def _checked(top_k: int | None) -> int | None:
    return None if top_k is None else whole_number(top_k, "top_k")


@component
class TSARankRanker:
    """Orders documents by relevance to the query.

    Args:
        model: A name for `load_ranker`; `None` is the default model. Loaded by `warm_up`.
        top_k: How many documents to keep, at least 1; `None` keeps all.
        options: Further arguments of `load_ranker`, such as `{"ranker": "setwise"}`.
        rank_options: Further arguments of `rank`, such as `{"passages": "max"}`; the best passage is then added to a
            document's `meta`.
    """

    def __init__(
        self,
        model: str | None = None,
        top_k: int | None = None,
        options: dict[str, Any] | None = None,
        rank_options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.top_k, self.options, self.rank_options = model, _checked(top_k), options, rank_options
        self._ranker: Any = None

    def warm_up(self) -> None:
        """Loads the model."""
        if self._ranker is None:
            self._ranker = as_ranker(self.model, **(self.options or {}))

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """`{"documents": …}`, best first, with their scores."""
        top_k = self.top_k if top_k is None else _checked(top_k)
        self.warm_up()
        if not documents:
            return {"documents": []}
        texts = [document.content or "" for document in documents]
        kept = []
        for row in rank_with(self._ranker, query, texts, top_k, self.rank_options):
            document = documents[row["corpus_id"]]
            kept.append(replace(document, score=row["score"], meta={**document.meta, **found_in(row)}))
        return {"documents": kept}

    def to_dict(self) -> dict[str, Any]:
        """For serialized pipelines."""
        options = {"options": self.options, "rank_options": self.rank_options}
        found: dict[str, Any] = default_to_dict(self, model=self.model, top_k=self.top_k, **options)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TSARankRanker:
        """The inverse of `to_dict`."""
        made: TSARankRanker = default_from_dict(cls, data)
        return made

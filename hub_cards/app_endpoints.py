"""The Space's API: named endpoints for gradio_client, with plain values in and out.

A client error raises an exception with the same one-line message that the page shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from modeling_tsarank.cli.command_line import one_line
from modeling_tsarank.hub_cards.app_inputs import named_documents
from modeling_tsarank.hub_cards.app_ranking import RankingService
from modeling_tsarank.ranking_errors import TSARankError


def make_endpoints(service: RankingService, error: type[Exception]) -> dict[str, Callable[..., Any]]:
    """The endpoint functions by name; `error` is the exception class for client errors (`gradio.Error`)."""

    def rank(query: str, documents: list[str], model: str | None = None) -> dict:
        """Ranks documents for a query, best first; the given order counts as the first stage's.

        Args:
            query: The query.
            documents: Texts.
            model: One of /models; the first one by default.

        Returns:
            query, model, family, first_stage, tokens, seconds, remembered, cut_documents and results: rank, id
            (index in documents, from 1), score, first_stage_rank, moved, text.
        """
        return service.rank_texts(query, documents, model).to_dict()

    def search(query: str, candidates: int = 10, model: str | None = None) -> dict:
        """Retrieves candidates from the built-in collection with BM25 and ranks them.

        Args:
            query: The query.
            candidates: Maximum number of BM25 candidates.
            model: One of /models; the first one by default.

        Returns:
            Like /rank; ids are the collection's.
        """
        return service.search(query, candidates, model).to_dict()

    def explain(query: str, document: str, model: str | None = None) -> dict:
        """Explains the score of a document.

        Args:
            query: The query.
            document: A text.
            model: One of /models; the first one by default.

        Returns:
            kind (the family: parts of query_likelihood are the query's tokens with their log-probabilities, those of
            true_false_logits the answers with their logits), parts [{text, value}], score, rule, tokens, seconds.
        """
        explained = service.explain(query, document, model)
        explanation = explained.explanation
        return {
            "kind": explained.family,
            "parts": [{"text": text, "value": round(value, 6)} for text, value in explanation.parts],
            "score": round(explanation.score, 6),
            "rule": explanation.rule,
            "tokens": explained.tokens,
            "seconds": round(explained.seconds, 4),
        }

    def compare(query: str, documents: list[str], model_a: str, model_b: str) -> dict:
        """Ranks the same documents with two models.

        Args:
            query: The query.
            documents: Texts.
            model_a: One of /models.
            model_b: A different one.

        Returns:
            a and b, each as returned by /rank, same_order (pairs of documents ranked in the same order) and pairs.
        """
        named = named_documents(documents, service.limits)
        return service.compare(service.check_query(query), named, model_a, model_b).to_dict()

    def models() -> list[str]:
        """Names of the models for the other endpoints; the first is the default."""
        return list(service.shelf.names)

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except TSARankError as mistake:
                raise error(one_line(str(mistake))) from None

        return wrapper

    return {function.__name__: guarded(function) for function in (rank, search, explain, compare, models)}

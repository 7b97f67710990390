"""The Space's API: named endpoints that gradio_client calls, with plain values in and out.

A mistake of the caller is an error with the same one-line message that the page shows.
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
    """The endpoint functions by name; `error` is what a caller's mistake is raised as (`gradio.Error`)."""

    def rank(query: str, documents: list[str], model: str | None = None) -> dict:
        """Puts documents in order for a query, best first; the order given counts as the first stage's.

        Args:
            query: What is asked.
            documents: Texts.
            model: One of /models; the first of them by default.

        Returns:
            query, model, family, first_stage, tokens, seconds, remembered, cut_documents and results: rank, id
            (place in documents, from 1), score, first_stage_rank, moved, text.
        """
        return service.rank_texts(query, documents, model).to_dict()

    def search(query: str, candidates: int = 10, model: str | None = None) -> dict:
        """Finds candidates in the built-in collection with BM25 and puts them in order.

        Args:
            query: What is asked.
            candidates: How many BM25 may find.
            model: One of /models; the first of them by default.

        Returns:
            As /rank does; ids are the collection's.
        """
        return service.search(query, candidates, model).to_dict()

    def explain(query: str, document: str, model: str | None = None) -> dict:
        """Says why a document gets its score.

        Args:
            query: What is asked.
            document: A text.
            model: One of /models; the first of them by default.

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
        """Puts the same documents in two models' orders.

        Args:
            query: What is asked.
            documents: Texts.
            model_a: One of /models.
            model_b: Another one.

        Returns:
            a and b, each as /rank returns it, same_order (pairs of documents in the same order) and pairs.
        """
        named = named_documents(documents, service.limits)
        return service.compare(service.check_query(query), named, model_a, model_b).to_dict()

    def models() -> list[str]:
        """Names of the models that the other endpoints take; the first is the default."""
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

"""A ranker behind a URL: any service with a /rerank endpoint, such as Jina's, Cohere's, vLLM's or TEI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .endpoint import Endpoint, EndpointSettings, RequestRefusedError, token_count
from .protocols import chosen_rows, clean_list


# Jina, Cohere, vLLM, llama.cpp; and text-embeddings-inference.
_FIELDS = ("documents", "texts")
_MISSING = (400, 422)
"""Statuses of a response about a missing field."""


class RerankService:
    """Ranks whole lists with a /rerank endpoint.

    The first request finds out which form the service accepts: `{"model", "query", "documents"}` with an answer
    `{"results": [{"index", "relevance_score"}]}`, or `{"query", "texts"}` with an answer `[{"index", "score"}]`.

    Args:
        settings: Address and request settings; the URL is complete, or `/rerank` is appended to it.
        documents: Documents in one request; None for a query's whole list. If a list is split, scores of different
            requests must be comparable.

    Raises:
        InputError, ResourceError: see `Endpoint`.
    """

    def __init__(self, settings: EndpointSettings, documents: int | None = None) -> None:
        path = "" if settings.url.rstrip("/").endswith("rerank") else "/rerank"
        self._endpoint = Endpoint(settings, path)
        self.name = self._endpoint.name
        self._documents = documents
        self._field: str | None = None
        self.last_stats: dict[str, int] = {}

    def rank(
        self, query: str, documents: Sequence[Any], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """The documents, best first, by the service's scores; `top_k` and `return_documents` as in `RankerModel.rank`.

        Raises:
            RequestRefusedError, UnreachableError, ResourceError: see `Endpoint.ask`.
        """
        rows: list[dict[str, Any]] = []
        self.last_stats = {"calls": 0}
        query, documents, texts, _ = clean_list(query, documents, top_k=top_k)
        size = self._documents or max(len(texts), 1)
        for start in range(0, len(texts), size):
            scores = self._ask(query, texts[start : start + size])
            rows += [{"corpus_id": start + place, "score": score} for place, score in enumerate(scores)]
        rows.sort(key=lambda row: (-row["score"], row["corpus_id"]))
        return chosen_rows(rows, documents, top_k, return_documents)

    def _ask(self, query: str, texts: list[str]) -> list[float]:
        refused: RequestRefusedError | None = None
        for field in _FIELDS if self._field is None else [self._field]:
            own = {"truncate": True} if field == "texts" else {"model": self._endpoint.settings.model}
            payload = {"query": query, field: texts, **{name: value for name, value in own.items() if value}}
            self.last_stats["calls"] += 1
            try:
                scores, tokens = self._endpoint.ask(payload, lambda body: _read(body, len(texts)))
            except RequestRefusedError as error:
                if self._field is not None or error.status not in _MISSING:
                    raise
                refused = refused or error
                continue
            self._field = field
            if tokens is not None:
                self.last_stats["tokens"] = self.last_stats.get("tokens", 0) + tokens
            return scores
        assert refused is not None
        raise refused


def _read(body: Any, count: int) -> tuple[list[float], int | None]:
    """The scores in the documents' order, and the tokens if the service reports them."""
    rows, usage = (body, None) if isinstance(body, list) else (body["results"], body.get("usage"))
    scores = {row["index"]: float(row["relevance_score" if "relevance_score" in row else "score"]) for row in rows}
    if len(rows) != count or set(scores) != set(range(count)):
        raise ValueError(f"{len(rows)} results for {count} documents")
    return [scores[place] for place in range(count)], token_count((usage or {}).get("total_tokens"))

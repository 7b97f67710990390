"""The ranker interfaces: a scorer of pairs (`predict`), or a ranker of whole lists (`rank`)."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..ranking_errors import ModelError, NonFiniteScoreError
from ..ranking_options import whole_number
from ..ranking_text import clean_query, document_list, document_text, warn_of_cuts


COUNTS = ("cut_documents", "cut_queries", "calls", "tokens", "unusable")
"""Counts of a ranker's last call in `last_stats`: truncated texts, model calls, prompt and generated tokens, unusable
answers of the model."""


class Scorer(Protocol):
    """Scores pairs: a `TSARankModel`, a `TwolarModel`, a sentence-transformers CrossEncoder, etc."""

    def predict(self, pairs: list[tuple[str, str]]) -> Any:
        """Scores of (query, document) pairs, shape `(len(pairs),)`; higher is better."""


class ListRanker(Protocol):
    """Orders the documents of one query together."""

    def rank(self, query: str, documents: list[str]) -> Sequence[Mapping[str, Any]]:
        """The documents, given in the first stage's order, best first.

        Returns:
            One `{"corpus_id": index of the document, "score": number}` per document, like sentence-transformers'
            `rank`; without scores, the order of the rows counts.
        """


def clean_list(
    query: Any, documents: Any, words: int | None = None, top_k: int | None = None
) -> tuple[str, list[Any], list[str], int]:
    """The query, the documents and their texts, validated as in `RankerModel.rank`, and how many are truncated.

    Args:
        query: Text, not empty.
        documents: Strings, or mappings with a text and perhaps a title.
        words: Maximum words of a document in the prompt; a warning tells how many documents have more.
        top_k: Number of rows, see `chosen_rows`.

    Raises:
        InputError: the query is empty, the documents are not a list of texts, or `top_k` is not positive.
    """
    if top_k is not None:
        whole_number(top_k, "top_k")
    documents = document_list(documents)
    texts = [document_text(one, f"document {place}") for place, one in enumerate(documents)]
    cut = 0 if words is None else sum(len(text.split()) > words for text in texts)
    if words is not None:
        warn_of_cuts(cut, len(texts), words, "passage_words")
    return clean_query(query), documents, texts, cut


def ordered_rows(order: Sequence[int]) -> list[dict[str, Any]]:
    """The rows of documents by their indexes, best first: the score is n for the first and 1 for the last."""
    return [{"corpus_id": i, "score": float(len(order) - place)} for place, i in enumerate(order)]


def chosen_rows(
    rows: list[dict[str, Any]], documents: Sequence[Any], top_k: int | None, return_documents: bool
) -> list[dict[str, Any]]:
    """The first `top_k` rows, all by default; with `return_documents` each has its document under `text`."""
    return [{**row, "text": documents[row["corpus_id"]]} if return_documents else row for row in rows[:top_k]]


class PromptRanker:
    """A ranker of lists that shows documents to a model in prompts; subclasses convert the answers to an order.

    Args:
        model: The language model.
        options: The settings.
    """

    options_class: Any = None

    def __init__(self, model: Any, options: Any = None) -> None:
        self.model, self.options, self.name = model, options or self.options_class(), model.name
        self.last_stats: dict[str, int] = {}

    def rank(
        self, query: str, documents: Sequence[Any], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """The documents, given in the first stage's order, best first; `top_k` and `return_documents` as in
        `RankerModel.rank`.

        Returns:
            `{"corpus_id", "score"}` of each document; the score is n for the first and 1 for the last, for pairwise
            `allpair` its wins and half its ties.

        Raises:
            ModelError: a prompt exceeds the model's context.
            TSARankError: the model is unavailable.
        """
        query, documents, texts, cut = clean_list(query, documents, self.options.passage_words, top_k)
        tally: Counter[str] = Counter(calls=0, tokens=0, unusable=0)
        try:
            return chosen_rows(self._rows(query, texts, tally), documents, top_k, return_documents)
        finally:
            self.last_stats = {**tally, "cut_documents": cut}

    def _rows(self, query: str, documents: list[str], tally: Counter[str]) -> list[dict[str, Any]]:
        """The rows of `rank`; calls, tokens and unusable answers are added to `tally`."""
        raise NotImplementedError


def predict(
    scorer: Scorer, pairs: list[tuple[str, str]], batch_tokens: int | None = None, show: bool = False
) -> np.ndarray:
    """Calls `scorer.predict` with those of our options that it supports, and checks the shape of its result.

    Returns:
        Shape `(len(pairs),)`, in the scorer's own float type.

    Raises:
        ModelError: not one number per pair.
    """
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "show_progress": None if show else False}
    options["show_progress_bar"] = False
    values = np.asarray(scorer.predict(pairs, **_taken(scorer.predict, options)))
    if values.shape != (len(pairs),):
        raise ModelError(
            f"{type(scorer).__name__}.predict returned shape {values.shape} for {len(pairs)} pairs; "
            f"expected ({len(pairs)},), one score a pair"
        )
    return values


def rank_scores(ranker: ListRanker, query: str, documents: list[str], batch_tokens: int | None = None) -> list[float]:
    """Calls `ranker.rank` and turns its rows into one score a document.

    Ties of equal scores are broken: the first one of the list keeps the score, each further one gets the next
    smaller float32.

    Args:
        ranker: The ranker.
        query: The query.
        documents: n texts, in the first stage's order.
        batch_tokens: Token budget of a batch, for a ranker with that option.

    Returns:
        n scores in the order of `documents`, no two equal.

    Raises:
        ModelError: the rows are not the n documents, each once.
        NonFiniteScoreError: a score is NaN or infinite.
    """
    rows = list(ranker.rank(query, documents, **_taken(ranker.rank, {"batch_tokens": batch_tokens})))
    given = {int(row.get("corpus_id", -1)): row.get("score", len(rows) - place) for place, row in enumerate(rows)}
    if len(rows) != len(documents) or set(given) != set(range(len(documents))):
        raise ModelError(
            f"{type(ranker).__name__}.rank returned {len(rows)} rows for {len(documents)} documents; expected one "
            "with its corpus_id for each"
        )
    with np.errstate(over="ignore"):
        values = {place: np.float32(score) for place, score in given.items()}
    for place, value in values.items():
        if not np.isfinite(value):
            raise NonFiniteScoreError(
                f"{type(ranker).__name__} scored document {place + 1} of the query {query[:60]!r} as {value}"
            )
    order = sorted(values, key=lambda one: (-values[one], one))
    apart = dict(zip(order, told_apart([float(values[place]) for place in order]), strict=True))
    return [apart[place] for place in range(len(rows))]


def told_apart(scores: Sequence[float]) -> list[float]:
    """Scores in descending order without ties in float32, as trec_eval compares them: of equal ones, each later one
    is the next smaller float32."""
    found, last = [], np.float32(np.inf)
    for score in scores:
        single = np.float32(score)
        tied = not single < last
        last = np.nextafter(last, np.float32(-np.inf)) if tied else single
        found.append(float(last) if tied else score)
    return found


def last_counts(ranker: Scorer | ListRanker) -> dict[str, int]:
    """The counts of a ranker's last call, see `COUNTS`; `last_stats` is a mapping or an object."""
    stats = getattr(ranker, "last_stats", None)
    told = stats.get if isinstance(stats, Mapping) else partial(getattr, stats)
    found = ((name, told(name, None)) for name in COUNTS)
    return {name: int(value) for name, value in found if value is not None}


def _taken(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in parameters}

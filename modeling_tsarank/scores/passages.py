"""Long documents: a document is split into overlapping passages, whose scores are aggregated to the document's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ranking_errors import InputError
from ..ranking_options import whole_number
from ..ranking_text import TITLE_FIELDS, clean_text, document_list, document_text


_TOP = re.compile(r"top-?([1-9]\d?)")
PASSAGES = "first, max, mean or top-K such as top-3"


@dataclass(frozen=True)
class Passage:
    """A part of a document's text, `text[start:end]`."""

    start: int
    end: int


def aggregation(name: str) -> str:
    """Returns `name` if it is a valid aggregation. Raises `InputError` otherwise."""
    if name not in ("first", "max", "mean") and (not isinstance(name, str) or _TOP.fullmatch(name) is None):
        raise InputError(f"unknown way to score passages {name!r:.80}; expected {PASSAGES}")
    return name


def split_passages(text: str, tokenizer: Any, length: int, stride: int) -> list[Passage]:
    """Windows of `length` tokens that begin `stride` tokens apart, extended to whole words; together the whole text.

    Args:
        tokenizer: A fast tokenizer.
        length, stride: In tokens; `stride` is at most `length`.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = encoded["offset_mapping"]
    if len(offsets) <= length:
        return [Passage(0, len(text))]
    found: list[Passage] = []
    for first in range(0, len(offsets), stride):
        last = min(first + length, len(offsets))
        start = _word_edge(text, offsets[first][0], -1) if first else 0
        if last == len(offsets):
            return [*found, Passage(start, len(text))]
        found.append(Passage(start, _word_edge(text, offsets[last - 1][1], 1)))
    return found


def _word_edge(text: str, place: int, step: int) -> int:
    """The next position before (`step` -1) or after (1) the word around `place`."""
    while 0 < place < len(text) and not text[place - 1].isspace() and not text[place].isspace():
        place += step
    return place


@dataclass(frozen=True)
class SplitDocument:
    """A document's title, which goes before every passage, its text, and the passages of the text."""

    title: str
    text: str
    passages: list[Passage]

    def pairs(self, query: str) -> list[tuple[str, str]]:
        """The scored pairs: the query with each passage."""
        return [(query, f"{self.title} {self.text[one.start : one.end]}".strip()) for one in self.passages]


class PassageRanker:
    """Ranks documents of any length by their passages.

    Args:
        model: A ranking model.
        passages: `max`: the best passage's score; `mean`; `top-K`: the mean of its K best; `first`:
            only the first passage is scored.
        length: Tokens of a passage; `None` is the maximum for the model with the longest query.
        stride: Tokens from the start of one passage to the next; `None` is half of `length`.

    Raises:
        InputError: unknown `passages`, `stride` is larger than `length`, or the model does not score pairs of texts.
    """

    def __init__(
        self, model: Any, passages: str = "max", length: int | None = None, stride: int | None = None
    ) -> None:
        self.model, self.passages = model, aggregation(passages)
        if not hasattr(model, "options") or not hasattr(model, "tokenizer"):
            raise InputError(f"passages are for ranking models that score pairs, not for a {type(model).__name__}")
        longest = model.options.max_length - model.options.max_query_length
        self.length = whole_number(length if length is not None else longest, "passage_length")
        self.stride = whole_number(stride if stride is not None else max(self.length // 2, 1), "passage_stride")
        if self.stride > self.length:
            raise InputError(f"passage_stride ({self.stride}) must not be larger than passage_length ({self.length})")
        self.last_stats: dict[str, int] = {}

    def rank(
        self,
        query: str,
        documents: Sequence[Any],
        *,
        instruction: str | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Documents in order, best first, each with its best passage.

        Args:
            query: Text, not empty.
            documents: Strings, or mappings with `text` and optionally `title`, which goes before every passage.
            instruction, batch_tokens, show_progress: As in the model's `predict`.

        Returns:
            `[{"corpus_id", "score", "passage": {"start", "end", "text"}}, …]`: offsets in the document's text without
            its title. Equal scores keep the given order.

        Raises like the model's `rank`.
        """
        documents = document_list(documents)
        if not documents:
            raise InputError("no documents to rank")
        found = self._rows([(query, document) for document in documents], instruction, batch_tokens, show_progress)
        rows = [{"corpus_id": i, **row} for i, row in enumerate(found)]
        return sorted(rows, key=lambda row: (-row["score"], row["corpus_id"]))

    def predict(self, pairs: Any, **options: Any) -> Any:
        """Like the model's `predict`, with `instruction`, `batch_tokens`, `show_progress` and `stop`."""
        single = isinstance(pairs, tuple | list) and len(pairs) == 2 and isinstance(pairs[0], str)
        scores = [row["score"] for row in self._rows([pairs] if single else pairs, **options)]
        return np.float32(scores[0]) if single else np.asarray(scores, dtype=np.float32)

    def split(self, document: Any, what: str = "a document") -> SplitDocument:
        """A document with its scored passages. Raises `InputError` for an invalid document."""
        title, text = _title_and_text(document, what)
        found = split_passages(text, self.model.tokenizer, self.length, self.stride)
        return SplitDocument(title, text, found[:1] if self.passages == "first" else found)

    def row(self, document: SplitDocument, scores: np.ndarray) -> dict[str, Any]:
        """Score and best passage of a document, from its passages' scores `(passages,)`."""
        best = document.passages[int(np.argmax(scores))]
        passage = {"start": best.start, "end": best.end, "text": document.text[best.start : best.end]}
        return {"score": self._aggregate(scores), "passage": passage}

    def _rows(
        self,
        pairs: Sequence[Any],
        instruction: str | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[dict[str, Any]]:
        for i, pair in enumerate(pairs):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"pair {i} must be (query, document), got {type(pair).__name__}")
        parts = [self.split(document, f"document {i}") for i, (_, document) in enumerate(pairs)]
        asked = [pair for (query, _), part in zip(pairs, parts, strict=True) for pair in part.pairs(query)]
        found = self.model.predict(
            asked, instruction=instruction, batch_tokens=batch_tokens, show_progress=show_progress, stop=stop
        )
        self.last_stats = {**self.model.last_stats, "passages": len(asked)}
        ends = np.cumsum([len(part.passages) for part in parts])
        return [self.row(part, scores) for part, scores in zip(parts, np.split(found, ends[:-1]), strict=True)]

    def _aggregate(self, scores: np.ndarray) -> float:
        top = _TOP.fullmatch(self.passages)
        if top is not None:
            return float(np.sort(scores)[::-1][: int(top[1])].mean())
        return float(scores.mean() if self.passages == "mean" else scores.max())


def _title_and_text(document: Any, what: str) -> tuple[str, str]:
    if not isinstance(document, Mapping):
        return "", document_text(document, what)
    body = {name: value for name, value in document.items() if name not in TITLE_FIELDS}
    title = next((document[name] for name in TITLE_FIELDS if document.get(name) is not None), "")
    return clean_text(title, f"the title of {what}"), document_text(body, what)

"""Long documents: a document is split into overlapping passages, which are scored; its score is made of theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    """`name` if passages can be aggregated so. Raises `InputError` otherwise."""
    if name not in ("first", "max", "mean") and _TOP.fullmatch(name) is None:
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
        start = _word_start(text, offsets[first][0]) if first else 0
        if last == len(offsets):
            return [*found, Passage(start, len(text))]
        found.append(Passage(start, _word_end(text, offsets[last - 1][1])))
    return found


def _word_start(text: str, place: int) -> int:
    while 0 < place < len(text) and not text[place - 1].isspace() and not text[place].isspace():
        place -= 1
    return place


def _word_end(text: str, place: int) -> int:
    while 0 < place < len(text) and not text[place - 1].isspace() and not text[place].isspace():
        place += 1
    return place


class PassageRanker:
    """Ranks documents of any length by their passages.

    Args:
        model: A ranking model.
        passages: `max`: a document is as good as its best passage; `mean`; `top-K`: the mean of its K best; `first`:
            only the first passage is scored.
        length: Of a passage, in tokens; `None` is what the model takes beside the longest query.
        stride: Tokens from the start of one passage to the next; `None` is half of `length`.

    Raises:
        InputError: unknown `passages`, or `stride` is larger than `length`.
    """

    def __init__(
        self, model: Any, passages: str = "max", length: int | None = None, stride: int | None = None
    ) -> None:
        self.model, self.passages = model, aggregation(passages)
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
        top_k: int | None = None,
        *,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Documents in order, best first, each with its best passage.

        Args:
            query: Text, not empty.
            documents: Strings, or mappings with `text` and optionally `title`, which goes before every passage.

        Returns:
            `[{"corpus_id", "score", "passage": {"start", "end", "text"}}, …]`: offsets in the document's text without
            its title. Equal scores keep the given order.

        Raises as the model's `rank`.
        """
        documents = document_list(documents)
        if not documents:
            raise InputError("no documents to rank")
        top_k = top_k if top_k is None else whole_number(top_k, "top_k")
        texts = [_title_and_text(document, i) for i, document in enumerate(documents)]
        parts = [self._split(text) for _, text in texts]
        pairs = [
            (query, f"{title} {text[part.start : part.end]}".strip())
            for (title, text), own in zip(texts, parts, strict=True)
            for part in own
        ]
        found = self.model.predict(pairs, batch_tokens=batch_tokens, show_progress=show_progress)
        self.last_stats = {**self.model.last_stats, "passages": len(pairs)}
        rows: list[dict[str, Any]] = []
        start = 0
        for i, own in enumerate(parts):
            scores = found[start : start + len(own)]
            start += len(own)
            best = own[int(np.argmax(scores))]
            passage = {"start": best.start, "end": best.end, "text": texts[i][1][best.start : best.end]}
            rows.append({"corpus_id": i, "score": self._aggregate(scores), "passage": passage})
        return sorted(rows, key=lambda row: (-row["score"], row["corpus_id"]))[:top_k]

    def _split(self, text: str) -> list[Passage]:
        found = split_passages(text, self.model.tokenizer, self.length, self.stride)
        return found[:1] if self.passages == "first" else found

    def _aggregate(self, scores: np.ndarray) -> float:
        top = _TOP.fullmatch(self.passages)
        if top is not None:
            return float(np.sort(scores)[::-1][: int(top[1])].mean())
        return float(scores.mean() if self.passages == "mean" else scores.max())


def _title_and_text(document: Any, place: int) -> tuple[str, str]:
    what = f"document {place}"
    if not isinstance(document, Mapping):
        return "", document_text(document, what)
    body = {name: value for name, value in document.items() if name not in TITLE_FIELDS}
    title = next((document[name] for name in TITLE_FIELDS if document.get(name) is not None), "")
    return clean_text(title, f"the title of {what}"), document_text(body, what)

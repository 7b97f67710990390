"""A model as the service uses it: validated texts in, scores out, in the batches of `batching`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ranking_text import clean_pairs
from ..scores.passages import PassageRanker
from .batching import Batcher


@dataclass(frozen=True)
class Scored:
    """What was found of one query's documents.

    Attributes:
        scores: Shape `(documents,)`, in the given order.
        tokens: Of all prompts.
        cut_documents: How many were cut.
        passages: Of each document the best one, `{"start", "end", "text"}`, where passages were scored.
    """

    scores: np.ndarray
    tokens: int
    cut_documents: int
    passages: list[dict[str, Any]] | None = None


class ServedModel:
    """One model behind a name."""

    def __init__(self, name: str, batcher: Batcher) -> None:
        self.name, self.batcher, self.model = name, batcher, batcher.model
        self.calibration = getattr(self.model, "calibration", None)

    def warm_up(self) -> None:
        """The first call costs more than later ones."""
        self.model.predict([("warm", "up"), ("warm", "up and running")], show_progress=False)

    async def score(
        self, query: str, documents: Sequence[Any], *, truncate: bool = True, by_passages: PassageRanker | None = None
    ) -> Scored | None:
        """Scores of one query's documents, `None` if one would have to be cut and may not be.

        Raises what `Batcher.score` raises, and `InputError` for texts that no model takes.
        """
        if by_passages is None:
            parts, asked = [], [(query, document) for document in documents]
        else:
            parts = await asyncio.to_thread(lambda: [by_passages.split(document) for document in documents])
            asked = [pair for part in parts for pair in part.pairs(query)]
        pairs = clean_pairs(asked)
        lengths, cut = await asyncio.to_thread(self._lengths, pairs)
        if cut and not truncate:
            return None
        scores = await self.batcher.score(pairs, lengths)
        if by_passages is None:
            return Scored(scores, sum(lengths), cut)
        ends = np.cumsum([len(part.passages) for part in parts])[:-1]
        rows = [by_passages.row(part, own) for part, own in zip(parts, np.split(scores, ends), strict=True)]
        values = np.array([row["score"] for row in rows], dtype=np.float32)
        return Scored(values, sum(lengths), cut, [row["passage"] for row in rows])

    def _lengths(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[int], int]:
        encoded = self.model.encoder.pairs(pairs)
        cut = {document for (_, document), pair in zip(pairs, encoded, strict=True) if pair.cut}
        return [len(pair.prompt) + len(pair.query) for pair in encoded], len(cut)

    def shorten(self, text: str, tokens: int) -> str:
        """The beginning of a text that has so many tokens."""
        offsets = self.model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = offsets["offset_mapping"]
        return text if len(ends) <= tokens else text[: ends[tokens - 1][1]]

    async def index(self, documents: Sequence[Any]) -> int:
        """Caches the documents' states; how many were computed. Without a store nothing is cached."""
        store = self.model.document_store
        if store is None:
            return 0
        encoded: int = await self.batcher.run(lambda: self.model.index(documents, store, show_progress=False))
        return encoded

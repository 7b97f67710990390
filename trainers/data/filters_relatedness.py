"""A filter on whether query and document have to do with each other, by their words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filter_steps import Outcome, Step
from modeling_tsarank.trainers.data.weak_types import Pair


@dataclass
class LexicalRelatedness(Step):
    """Drops pairs whose texts share too few words, or whose query is copied out of the document.

    Words are Snowball stems of English words that are no stop words.

    Attributes:
        min_share: Fewest common stems, as a share of the stems of the text that has fewer.
        min_words: Fewest common stems, as a number.
        max_copied: Most words of the query that stand in the document in runs of `copied_run` words or more, as a
            share: 1 turns it off. An extractive summary teaches copying, not relevance.
        copied_run: See `max_copied`.
    """

    name: ClassVar[str] = "lexical"
    min_share: float = 0.0
    min_words: int = 1
    max_copied: float = 1.0
    copied_run: int = 8

    def __post_init__(self) -> None:
        if not (0 <= self.min_share <= 1 and 0 <= self.max_copied <= 1 and self.copied_run >= 1):
            raise InputError("min_share and max_copied must be from 0 to 1, copied_run at least 1")
        stemmer = require("Stemmer", extra="eval", purpose="The lexical filter")
        stop_words = require("bm25s.stopwords", extra="eval", purpose="The lexical filter")
        self._stem = stemmer.Stemmer("english").stemWords
        self._stop_words = frozenset(stop_words.STOPWORDS_EN_PLUS)

    def judge(self, pair: Pair) -> Outcome:
        query, document = (self._stems(pair.view(name).words) for name in ("query", "document"))
        common = len(query & document)
        if common < self.min_words or common < self.min_share * min(len(query), len(document)):
            return "unrelated_words"
        if self.max_copied < 1 and self.copied_share(pair) > self.max_copied:
            return "copied_query"
        return pair

    def _stems(self, words: list[str]) -> set[str]:
        return set(self._stem([word for word in words if word not in self._stop_words and len(word) > 1]))

    def copied_share(self, pair: Pair) -> float:
        """Share of the query's words that are inside a run of `copied_run` words of the document."""
        query, document = pair.view("query"), pair.view("document")
        if len(query.words) < self.copied_run:
            return 0.0
        hits = np.isin(query.grams(self.copied_run), document.grams(self.copied_run))
        covered = np.zeros(len(query.words), dtype=bool)
        for offset in range(self.copied_run):
            covered[offset : offset + len(hits)] |= hits
        return float(covered.mean())

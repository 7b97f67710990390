"""Filters on whether query and document have to do with each other: by their words, or by a model."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np

from modeling_tsarank.files.extras import require
from modeling_tsarank.models.sentence_encoders import load_encoder
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import Outcome, Step
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


@dataclass
class ModelRelatedness(Step):
    """Drops pairs that a model finds unrelated.

    Two ways, which can be combined: a least score, whose scale is the model's; and that the pair's own document must
    score higher than those of some other pairs of the same type, which needs no scale (the round trip of Promptagator,
    Dai et al., 2022, over a handful of documents).

    Attributes:
        model: A reranker of this project (name, folder, or `default`), or `sentence-transformers:NAME` for the cosine
            of a bi-encoder.
        min_score: Least score; `None` for no limit.
        beat: Number of other documents that the pair's own must outrank, drawn from the same batch.
        max_words: Words of a document that the model is shown.
        seed: Seed of the draw.
    """

    name: ClassVar[str] = "model"
    model: str = "default"
    min_score: float | None = None
    beat: int = 0
    max_words: int = 150
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_score is None and self.beat < 1:
            raise InputError("give min_score, beat (such as 3), or both")
        if self.min_score is not None and (isinstance(self.min_score, bool) or not isinstance(self.min_score, Real)):
            raise InputError(f"min_score must be a number, got {self.min_score!r}")
        self._random = random.Random(self.seed)
        self._scorer: Any = None

    def apply(self, pairs: list[Pair]) -> list[Outcome]:
        if not pairs:
            return []
        others = self._others(pairs)
        documents = [" ".join(pair.document.split()[: self.max_words]) for pair in pairs]
        texts = [(pair.query, documents[place]) for place, pair in enumerate(pairs)]
        texts += [(pairs[place].query, documents[other]) for place, drawn in enumerate(others) for other in drawn]
        scores = self._scores(texts)
        rival = np.full(len(pairs), -np.inf)
        start = len(pairs)
        for place, drawn in enumerate(others):
            if drawn:
                rival[place] = scores[start : start + len(drawn)].max()
                start += len(drawn)
        return [self._outcome(pair, float(scores[n]), float(rival[n])) for n, pair in enumerate(pairs)]

    def _outcome(self, pair: Pair, score: float, rival: float) -> Outcome:
        if self.min_score is not None and score < self.min_score:
            return "low_score"
        return "outranked" if score <= rival else pair

    def _others(self, pairs: list[Pair]) -> list[list[int]]:
        """For each pair, places of other pairs of its type with another document and another query."""
        by_type = defaultdict(list)
        for place, pair in enumerate(pairs):
            by_type[pair.type].append(place)
        chosen = []
        for place, pair in enumerate(pairs):
            same = by_type[pair.type]
            drawn = self._random.sample(same, min(self.beat + 1, len(same))) if self.beat else []
            chosen.append(
                [
                    other
                    for other in drawn
                    if other != place and pairs[other].document != pair.document and pairs[other].query != pair.query
                ][: self.beat]
            )
        return chosen

    def _scores(self, texts: list[tuple[str, str]]) -> np.ndarray:
        if self._scorer is None:
            self._scorer = _bi_encoder(self.model) if self.model.startswith(_ST) else _reranker(self.model)
        return self._scorer(texts)

    def close(self) -> None:
        self._scorer = None

    def public_options(self, options: dict[str, Any]) -> dict[str, Any]:
        name = self.model.removeprefix(_ST)
        shown = name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
        return {**options, "model": shown if name == self.model else f"{_ST}{shown}"}


_ST = "sentence-transformers:"


def _reranker(name: str) -> Any:
    from modeling_tsarank import load_ranker

    model = load_ranker(None if name == "default" else name)
    return lambda texts: np.asarray(model.predict(texts, show_progress=False))


def _bi_encoder(name: str) -> Any:
    model = load_encoder(name.removeprefix(_ST))

    def score(texts: list[tuple[str, str]]) -> np.ndarray:
        distinct = {text: place for place, text in enumerate(dict.fromkeys(text for pair in texts for text in pair))}
        vectors = model.encode(list(distinct), normalize_embeddings=True, show_progress_bar=False)
        left, right = (vectors[[distinct[pair[side]] for pair in texts]] for side in (0, 1))
        return np.einsum("nd,nd->n", left, right)

    return score

"""Filters that compare texts: exact repetitions, near duplicates, and lexical overlap of query and document."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import settle_whole_numbers
from modeling_tsarank.trainers.data.filters_index import KeyTable, SignatureIndex, stack
from modeling_tsarank.trainers.data.weak_text import BANDS, PERMUTATIONS, band_keys, similarity
from modeling_tsarank.trainers.data.weak_types import Outcome, Pair, Step


QUERY_PERMUTATIONS = 60
COPIED_RUN = 8


@dataclass
class Repeats(Step):
    """Drops repeated pairs, and limits the number of pairs with the same document or query.

    Texts are equal if their words are (see `weak_text`). Memory: 36 bytes per output pair.

    Attributes:
        per_document: Maximum pairs with the same document.
        per_query: Maximum pairs with the same query.
    """

    name: ClassVar[str] = "repeats"
    per_document: int = 3
    per_query: int = 3

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "per_document", "per_query")
        self._limits = {"pair": 1, "document": self.per_document, "query": self.per_query}
        self._tables = {name: KeyTable() for name in self._limits}

    def apply(self, pairs: list[Pair]) -> list[Outcome]:
        documents = np.array([pair.view("document").key for pair in pairs], dtype=np.uint64)
        queries = np.array([pair.view("query").key for pair in pairs], dtype=np.uint64)
        keys = {"pair": documents * np.uint64(0x9E3779B97F4A7C15) + queries, "document": documents, "query": queries}
        seen = {name: self._seen(name, keys[name]) for name in keys}
        outcomes: list[Outcome] = []
        kept = []
        for place, pair in enumerate(pairs):
            own = {name: int(keys[name][place]) for name in keys}
            reason = next((name for name, limit in self._limits.items() if seen[name][own[name]] >= limit), None)
            if reason is None:
                kept.append(place)
                for name, key in own.items():
                    seen[name][key] += 1
            outcomes.append(pair if reason is None else f"same_{reason}")
        for name, table in self._tables.items():
            table.add(keys[name][kept], np.zeros(len(kept)))
        return outcomes

    def _seen(self, name: str, keys: np.ndarray) -> Counter[int]:
        """How many earlier output pairs had each key, up to the limit."""
        unique = np.unique(keys)
        places, _ = self._tables[name].find(unique, self._limits[name])
        return Counter(unique[places].tolist())


@dataclass
class NearDuplicates(Step):
    """Drops a pair whose document nearly duplicates an earlier one (MinHash over 3-word shingles; Broder, 1997).

    If the two documents are equal word by word, the pair stays if its query differs: several good queries for one
    document are useful, and `repeats` limits them.

    Memory: 240 bytes per output pair, and 728 on disk.

    Attributes:
        threshold: Minimum estimated Jaccard similarity of near-duplicate documents.
        query_threshold: The same for the queries of equal documents.
    """

    name: ClassVar[str] = "near_duplicates"
    threshold: float = 0.7
    query_threshold: float = 0.7

    def __post_init__(self) -> None:
        if not (0.4 <= self.threshold <= 1 and 0 < self.query_threshold <= 1):
            raise InputError("threshold must be from 0.4 to 1 (below, candidates are missed), query_threshold to 1")
        self._index = SignatureIndex(extra=QUERY_PERMUTATIONS + 2)

    def apply(self, pairs: list[Pair]) -> list[Outcome]:
        documents = stack([pair.view("document").signature for pair in pairs])
        queries = stack([pair.view("query").signature for pair in pairs])[:, :QUERY_PERMUTATIONS]
        keys = np.array([pair.view("document").key for pair in pairs], dtype=np.uint64).view(np.uint32).reshape(-1, 2)
        extra = np.concatenate([queries, keys], axis=1)
        dropped = np.zeros(len(pairs), dtype=bool)
        places, _, earlier = self._index.near(documents, self.threshold)
        dropped[places[self._same(extra[places], earlier)]] = True
        self._compare_within(documents, extra, dropped)
        self._index.add(documents[~dropped], extra[~dropped])
        return [
            "near_duplicate" if is_dropped else pair for pair, is_dropped in zip(pairs, dropped.tolist(), strict=True)
        ]

    def _same(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """For pairs with similar documents: whether the documents differ in a word, or the queries are similar too."""
        same_document = (one[:, QUERY_PERMUTATIONS:] == other[:, QUERY_PERMUTATIONS:]).all(axis=1)
        near_query = similarity(one[:, :QUERY_PERMUTATIONS], other[:, :QUERY_PERMUTATIONS]) >= self.query_threshold
        return ~same_document | near_query

    def _compare_within(self, documents: np.ndarray, extra: np.ndarray, dropped: np.ndarray) -> None:
        """Drops near duplicates of an earlier output pair in the same batch."""
        buckets: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]
        for place, keys in enumerate(band_keys(documents).tolist()):
            if dropped[place]:
                continue
            near = sorted(
                {earlier for bucket, key in zip(buckets, keys, strict=True) for earlier in bucket.get(key, ())}
            )
            if near:
                close = [n for n in near if similarity(documents[n], documents[place]) >= self.threshold]
                if close and self._same(np.repeat(extra[place][None], len(close), axis=0), extra[close]).any():
                    dropped[place] = True
                    continue
            for bucket, key in zip(buckets, keys, strict=True):
                bucket.setdefault(key, []).append(place)

    def facts(self) -> dict[str, Any]:
        return {"signature": f"{PERMUTATIONS} permutations, {BANDS} bands"}

    def close(self) -> None:
        self._index.close()


@dataclass
class LexicalRelatedness(Step):
    """Drops pairs whose texts share too few words, or whose query is copied from the document.

    Words are Snowball stems of English words except stop words.

    Attributes:
        min_share: Minimum common stems, as a fraction of the stems of the text with fewer stems.
        min_words: Minimum number of common stems.
        max_copied: Maximum fraction of the query's words that occur in the document in runs of 8 words or more; 1
            turns it off. An extractive summary teaches copying, not relevance.
    """

    name: ClassVar[str] = "lexical"
    min_share: float = 0.0
    min_words: int = 1
    max_copied: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.min_share <= 1 and 0 <= self.max_copied <= 1):
            raise InputError("min_share and max_copied must be from 0 to 1")
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
        """Fraction of the query's words that are inside an 8-word run of the document."""
        query, document = pair.view("query"), pair.view("document")
        if len(query.words) < COPIED_RUN:
            return 0.0
        hits = np.isin(query.grams(COPIED_RUN), document.grams(COPIED_RUN))
        covered = np.zeros(len(query.words), dtype=bool)
        for offset in range(COPIED_RUN):
            covered[offset : offset + len(hits)] |= hits
        return float(covered.mean())

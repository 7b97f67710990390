"""Leakage: no query and no passage of a test collection may stand in training data."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from modeling_tsarank.eval.beir import is_beir_folder, read_corpus, read_queries
from modeling_tsarank.eval.bm25 import EnglishAnalyzer
from modeling_tsarank.eval.collections import load_collections
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filter_steps import Outcome, Step
from modeling_tsarank.trainers.data.filters_index import KeyTable, SignatureIndex, stack
from modeling_tsarank.trainers.data.readers import expanded
from modeling_tsarank.trainers.data.weak_text import TextView, words_of
from modeling_tsarank.trainers.data.weak_types import Pair


_BATCH = 4096
_TITLE_WORDS = 4
_QUESTION_WORDS = {
    *("what", "who", "whom", "whose", "which", "when", "where", "why", "how", "do", "does", "did", "can", "could"),
    *("should", "would", "has", "have", "had", "am", "been", "being", "were", "from", "about", "s"),
    *("i", "you", "we", "my", "your", "me"),
}


@dataclass
class Leakage(Step):
    """Drops every pair of which query or document is a text of a test collection.

    Each of the two texts is held against all queries (judged or not), passages, and titles of at least 4 words:

    - `exact`: the same words in the same order, and for texts of under `near_words` words in any order;
    - `near`: MinHash similarity over runs of 3 words, for texts of at least `near_words` words;
    - `run`: a run of `run_words` words in common, which finds a passage inside a longer text;
    - `similar`: queries only, of any length: the Jaccard similarity of their stems without stop words (English).

    The reason says how and in which collection. Remembers about 250 bytes in memory and 480 on disk for each text of
    the collections, and with `run` 12 bytes for each of their words.

    Attributes:
        collections: Folders in BEIR's layout, Hub ids or `ir_datasets:NAME`; a folder of such folders means them all.
        threshold: Least similarity of `near`.
        near_words: See above.
        run_words: See above; 0 turns it off.
        similar_queries: Least similarity of `similar`; 0 turns it off.
    """

    name: ClassVar[str] = "leakage"
    collections: tuple[str, ...] = ()
    threshold: float = 0.6
    near_words: int = 8
    run_words: int = 13
    similar_queries: float = 0.0

    def __post_init__(self) -> None:
        if not self.collections or not all(isinstance(name, str) for name in self.collections):
            raise InputError("collections must name at least one test collection")
        if not 0.4 <= self.threshold <= 1 or self.near_words < 3 or not (self.run_words == 0 or self.run_words >= 5):
            raise InputError("threshold must be from 0.4 to 1, near_words at least 3, run_words 0 or at least 5")
        if not (self.similar_queries == 0 or 0.5 <= self.similar_queries <= 1):
            raise InputError(f"similar_queries must be 0 or from 0.5 to 1, got {self.similar_queries}")
        self._exact, self._runs = KeyTable(), KeyTable()
        self._index = SignatureIndex(extra=1)
        self._queries = SimilarQueries(self.similar_queries) if self.similar_queries else None
        self._sizes: dict[str, dict[str, int]] = {}
        for name in self.collections:
            for folder in _folders(name):
                self._remember(folder)
        self._names = list(self._sizes)

    def _remember(self, name: str) -> None:
        for collection, queries, documents in _load(name):
            number = len(self._sizes)
            self._sizes[collection] = {"queries": len(queries), "documents": len(documents)}
            if self._queries is not None:
                self._queries.add(queries.values(), number)
            batch: list[TextView] = []
            for text in _texts(queries, documents):
                batch.append(TextView(text))
                if len(batch) == _BATCH:
                    self._add(batch, number)
                    batch = []
            self._add(batch, number)

    def _add(self, views: list[TextView], number: int) -> None:
        views = [view for view in views if view.words]
        keys = np.array([key for view in views for key in self._keys(view)], dtype=np.uint64)
        self._exact.add(keys, np.full(len(keys), number))
        long = [view for view in views if len(view.words) >= self.near_words]
        self._index.add(stack([view.signature for view in long]), np.full((len(long), 1), number, dtype=np.uint32))
        if self.run_words:
            runs = [view.grams(self.run_words) for view in views if len(view.words) >= self.run_words]
            grams = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *runs]))
            self._runs.add(grams, np.full(len(grams), number))

    def _keys(self, view: TextView) -> list[int]:
        return [view.key] if len(view.words) >= self.near_words else [view.bag]

    def apply(self, pairs: list[Pair]) -> list[Outcome]:
        queries = self.find([pair.view("query") for pair in pairs], "query")
        documents = self.find([pair.view("document") for pair in pairs], "document")
        return [query or document or pair for pair, query, document in zip(pairs, queries, documents, strict=True)]

    def find(self, views: list[TextView], side: str) -> list[str | None]:
        """Why each text leaks, or None; `side` says whether they are each a "query" or a "document"."""
        reasons: list[str | None] = [None] * len(views)
        for how, places, numbers in self._matches(views):
            for place, number in zip(places.tolist(), numbers.tolist(), strict=True):
                reasons[place] = reasons[place] or f"{how}_{side}:{self._names[number]}"
        if self._queries is not None and side == "query":
            for place, view in enumerate(views):
                if reasons[place] is None and (like := self._queries.find(view.words)) is not None:
                    reasons[place] = f"similar_query:{self._names[like]}"
        return reasons

    def _matches(self, views: list[TextView]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """How, which texts (places in `views`) and which collections."""
        keys = np.array([self._keys(view)[0] for view in views], dtype=np.uint64)
        yield "exact", *self._exact.find(keys, 1)
        long = np.array([n for n, view in enumerate(views) if len(view.words) >= self.near_words], dtype=np.int64)
        places, _, numbers = self._index.near(stack([views[n].signature for n in long]), self.threshold)
        yield "near", long[places], numbers[:, 0]
        if self.run_words:
            runs = [
                view.grams(self.run_words) if len(view.words) >= self.run_words else np.zeros(0, dtype=np.uint64)
                for view in views
            ]
            owners = np.repeat(np.arange(len(views)), [len(run) for run in runs])
            found, numbers = self._runs.find(np.concatenate([np.zeros(0, dtype=np.uint64), *runs]), 1)
            yield "run", owners[found], numbers

    def facts(self) -> dict[str, Any]:
        return {"checked_against": self._sizes}

    def public_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "collections": self._names}

    def close(self) -> None:
        self._index.close()


class SimilarQueries:
    """Finds queries that share most of their stems with a remembered one; stop and question words do not count.

    Two sets whose Jaccard similarity is at least t share a share t of either. So of the looked-up query's n stems any
    n - ceil(t n) + 1 hold a shared one, and only queries with one of the rarest so many are compared.

    Args:
        threshold: t, above 0 and at most 1.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._analyze = EnglishAnalyzer()
        self._stems: list[tuple[frozenset[str], int]] = []
        self._places: dict[str, list[int]] = {}

    def add(self, texts: Iterable[str], number: int) -> None:
        """Remembers queries, with a number of the caller's."""
        for text in texts:
            stems = self._content(words_of(text))
            for stem in stems:
                self._places.setdefault(stem, []).append(len(self._stems))
            self._stems.append((stems, number))

    def find(self, words: Sequence[str]) -> int | None:
        """The number of a remembered query that is like the one of these words, or None."""
        stems = self._content(words)
        rarest = sorted(stems, key=lambda stem: (len(self._places.get(stem, ())), stem))
        enough = math.ceil(self._threshold * len(stems) - 1e-9)
        for place in {place for stem in rarest[: len(stems) - enough + 1] for place in self._places.get(stem, ())}:
            other, number = self._stems[place]
            if len(stems & other) >= self._threshold * len(stems | other) - 1e-9:
                return number
        return None

    def _content(self, words: Sequence[str]) -> frozenset[str]:
        """Stems of the words that say what is asked for; all words where there are no others."""
        content = [word for word in words if word not in _QUESTION_WORDS]
        return frozenset(self._analyze(" ".join(content)) or self._analyze(" ".join(words)) or words)


def _folders(name: str) -> list[str]:
    """The collections that a name means: a folder of folders in BEIR's layout means them all."""
    name = expanded(name)
    folder = Path(name)
    if not folder.is_dir() or is_beir_folder(folder):
        return [os.fspath(folder) if folder.is_dir() else name]
    inside = sorted(one for one in folder.iterdir() if one.is_dir() and is_beir_folder(one))
    if not inside:
        raise InputError(f"{folder} has no corpus.jsonl, and neither has a folder in it")
    return [os.fspath(one) for one in inside]


def _load(name: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, queries and documents of a collection; a folder needs no judgments for this."""
    folder = Path(name)
    if not folder.is_dir():
        for collection in load_collections(name):
            yield collection.name, collection.queries, collection.documents
        return
    files = {stem: next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None) for stem in _FILES}
    if files["queries.jsonl"] is None or files["corpus.jsonl"] is None:
        raise InputError(f"{folder} needs queries.jsonl beside corpus.jsonl to be checked for leakage")
    yield folder.resolve().name, read_queries(files["queries.jsonl"]), read_corpus(files["corpus.jsonl"])


_FILES = ("corpus.jsonl", "queries.jsonl")


def _texts(queries: Any, documents: Any) -> Iterator[str]:
    yield from queries.values()
    for identifier in documents:
        document = documents[identifier]
        yield document.full_text
        if document.title:
            yield document.text
            if len(TextView(document.title).words) >= _TITLE_WORDS:
                yield document.title

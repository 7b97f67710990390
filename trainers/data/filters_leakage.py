"""Leakage: detects queries and passages of test collections in training data."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.eval.beir import is_beir_folder, read_corpus, read_queries
from modeling_tsarank.eval.bm25 import EnglishAnalyzer
from modeling_tsarank.eval.collections import load_collections
from modeling_tsarank.eval.types import Document
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters_index import KeyTable, SignatureIndex, stack
from modeling_tsarank.trainers.data.list_building import ListTask
from modeling_tsarank.trainers.data.readers import expanded
from modeling_tsarank.trainers.data.weak_text import TextView, words_of
from modeling_tsarank.trainers.data.weak_types import Outcome, Pair, Step


_BATCH = 4096
_TITLE_WORDS = 4
_QUESTION_WORDS = {
    *("what", "who", "whom", "whose", "which", "when", "where", "why", "how", "do", "does", "did", "can", "could"),
    *("should", "would", "has", "have", "had", "am", "been", "being", "were", "from", "about", "s"),
    *("i", "you", "we", "my", "your", "me"),
}


@dataclass
class Leakage(Step):
    """Drops every pair whose query or document is a text of a test collection.

    Each of the two texts is compared with all queries (judged or not), passages, and titles of at least 4 words:

    - `exact`: the same words in the same order, and for texts of fewer than `near_words` words in any order;
    - `near`: MinHash similarity of 3-word shingles, for texts of at least `near_words` words;
    - `run`: a common run of `run_words` words, which finds a passage inside a longer text;
    - `similar`: queries only, of any length: the Jaccard similarity of their stems without stop words (English).

    The recorded reason includes the kind of match and the collection. Memory: about 250 bytes, and 480 on disk, per
    text of the collections, and with `run` 12 bytes for each of their words.

    Attributes:
        collections: Folders in BEIR's layout, Hub ids or `ir_datasets:NAME`; a folder of such folders includes them
        all.
        threshold: Minimum similarity for `near`.
        near_words: See above.
        run_words: See above; 0 turns it off.
        similar_queries: Minimum similarity for `similar`; 0 turns it off.
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
            views = map(TextView, _texts(queries, documents))
            while batch := list(islice(views, _BATCH)):
                self._add(batch, number)

    def _add(self, views: list[TextView], number: int) -> None:
        views = [view for view in views if view.words]
        keys = np.array([self._key(view) for view in views], dtype=np.uint64)
        self._exact.add(keys, np.full(len(keys), number))
        long = [view for view in views if len(view.words) >= self.near_words]
        self._index.add(stack([view.signature for view in long]), np.full((len(long), 1), number, dtype=np.uint32))
        if self.run_words:
            grams = np.unique(np.concatenate(self._grams(views)))
            self._runs.add(grams, np.full(len(grams), number))

    def _key(self, view: TextView) -> int:
        return view.key if len(view.words) >= self.near_words else view.bag

    def _grams(self, views: list[TextView]) -> list[np.ndarray]:
        """The word runs of each text, and of one empty text."""
        none = np.zeros(0, dtype=np.uint64)
        return [*(one.grams(self.run_words) if len(one.words) >= self.run_words else none for one in views), none]

    def apply(self, pairs: list[Pair]) -> list[Outcome]:
        queries = self.find([pair.view("query") for pair in pairs], "query")
        documents = self.find([pair.view("document") for pair in pairs], "document")
        return [query or document or pair for pair, query, document in zip(pairs, queries, documents, strict=True)]

    def find(self, views: list[TextView], side: str) -> list[str | None]:
        """The reason why each text leaks, or None; `side` says whether they are all "query" or "document" texts."""
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
        """Kind of match, indices of the texts in `views`, and the collections."""
        keys = np.array([self._key(view) for view in views], dtype=np.uint64)
        yield "exact", *self._exact.find(keys, 1)
        long = np.array([n for n, view in enumerate(views) if len(view.words) >= self.near_words], dtype=np.int64)
        places, _, numbers = self._index.near(stack([views[n].signature for n in long]), self.threshold)
        yield "near", long[places], numbers[:, 0]
        if self.run_words:
            runs = self._grams(views)
            owners = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
            found, numbers = self._runs.find(np.concatenate(runs), 1)
            yield "run", owners[found], numbers

    def facts(self) -> dict[str, Any]:
        return {"checked_against": self._sizes}

    def public_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "collections": self._names}

    def close(self) -> None:
        self._index.close()


class SimilarQueries:
    """Finds stored queries that share most of their stems with a query; stop and question words are ignored.

    Two sets with a Jaccard similarity of at least t share at least a fraction t of each. So of a query's n stems, any
    n - ceil(t n) + 1 include a shared one, and only queries with one of that many rarest stems are compared.

    Args:
        threshold: t, above 0 and at most 1.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._analyze = EnglishAnalyzer()
        self._stems: list[tuple[frozenset[str], int]] = []
        self._places: dict[str, list[int]] = {}

    def add(self, texts: Iterable[str], number: int) -> None:
        """Stores queries, with a number chosen by the caller."""
        for text in texts:
            stems = self._content(words_of(text))
            for stem in stems:
                self._places.setdefault(stem, []).append(len(self._stems))
            self._stems.append((stems, number))

    def find(self, words: Sequence[str]) -> int | None:
        """The number of a stored query similar to the one with these words, or None."""
        stems = self._content(words)
        rarest = sorted(stems, key=lambda stem: (len(self._places.get(stem, ())), stem))
        enough = math.ceil(self._threshold * len(stems) - 1e-9)
        for place in {place for stem in rarest[: len(stems) - enough + 1] for place in self._places.get(stem, ())}:
            other, number = self._stems[place]
            if len(stems & other) >= self._threshold * len(stems | other) - 1e-9:
                return number
        return None

    def _content(self, words: Sequence[str]) -> frozenset[str]:
        """Stems of the content words of a query; of all words if there are no content words."""
        content = [word for word in words if word not in _QUESTION_WORDS]
        return frozenset(self._analyze(" ".join(content)) or self._analyze(" ".join(words)) or words)


def _folders(name: str) -> list[str]:
    """The collections of a name: for a folder of folders in BEIR's layout, all of them."""
    name = expanded(name)
    folder = Path(name)
    if not folder.is_dir() or is_beir_folder(folder):
        return [os.fspath(folder) if folder.is_dir() else name]
    inside = sorted(one for one in folder.iterdir() if one.is_dir() and is_beir_folder(one))
    if not inside:
        raise InputError(f"{folder} has no corpus.jsonl, nor do its subfolders")
    return [os.fspath(one) for one in inside]


def _load(name: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, queries and documents of a collection; a folder needs no judgments here."""
    folder = Path(name)
    if not folder.is_dir():
        for collection in load_collections(name):
            yield collection.name, collection.queries, collection.documents
        return
    places = [[folder / f"{stem}.jsonl", folder / f"{stem}.jsonl.gz"] for stem in ("queries", "corpus")]
    queries, corpus = (next((path for path in paths if path.is_file()), None) for paths in places)
    if queries is None or corpus is None:
        raise InputError(f"{folder} needs queries.jsonl in addition to corpus.jsonl to be checked for leakage")
    yield folder.resolve().name, read_queries(queries), read_corpus(corpus)


def _texts(queries: Any, documents: Any) -> Iterator[str]:
    yield from queries.values()
    for identifier in documents:
        document = documents[identifier]
        yield document.full_text
        if document.title:
            yield document.text
            if len(TextView(document.title).words) >= _TITLE_WORDS:
                yield document.title


# ---- checking queries, lists and rows ------------------------------------------------------------------


T = TypeVar("T")
SIMILAR_QUERIES = 0.7
"""Minimum Jaccard similarity of the stems of two queries that are treated as equal."""

_ROWS = 256


class LeakageCheck:
    """Finds texts of test collections, exact or near copies; see the filter `leakage` for how texts are compared.

    Args:
        collections: As in that filter.
        options: Other options of that filter.

    Raises:
        InputError: a collection cannot be read.
    """

    def __init__(self, collections: Sequence[str], **options: Any) -> None:
        self._step = Leakage(collections=tuple(collections), **{"similar_queries": SIMILAR_QUERIES, **options})
        self._found: Counter[str] = Counter()

    def __enter__(self) -> LeakageCheck:
        return self

    def __exit__(self, *error: object) -> None:
        self._step.close()

    def record(self) -> dict[str, Any]:
        """For a provenance record: `checked_against` (collection to size) and `found` (reason to number of texts)."""
        return {**self._step.facts(), "found": dict(sorted(self._found.items()))}

    def query_leaks(self, texts: Sequence[str]) -> list[bool]:
        """Whether each query is in a test collection."""
        return self._leaks([(text,) for text in texts], "query")

    def passage_leaks(self, passages: Sequence[Document]) -> list[bool]:
        """Whether each passage, with or without its title, is in a test collection."""
        return self._leaks(
            [(one.full_text, one.text) if one.title else (one.full_text,) for one in passages], "document"
        )

    def _leaks(self, texts: Sequence[tuple[str, ...]], side: str) -> list[bool]:
        leaks = []
        for start in tqdm(range(0, len(texts), _BATCH), desc=f"checking each {side}", disable=None, leave=False):
            batch = texts[start : start + _BATCH]
            reasons = iter(self._step.find([TextView(text) for forms in batch for text in forms], side))
            for forms in batch:
                reason = next(filter(None, [next(reasons) for _ in forms]), None)
                self._found.update([] if reason is None else [reason])
                leaks.append(reason is not None)
        return leaks

    def clean_queries(self, items: Sequence[T], query: Callable[[T], str] = attrgetter("query")) -> list[T]:
        """The items whose query is in no test collection."""
        leaks = self.query_leaks([query(item) for item in items])
        return [item for item, leak in zip(items, leaks, strict=True) if not leak]

    def clean_texts(self, texts: Sequence[str]) -> list[str]:
        """The passages, without titles, that are in no test collection."""
        leaks = self.passage_leaks([Document("", text) for text in texts])
        return [text for text, leak in zip(texts, leaks, strict=True) if not leak]

    def clean_pairs(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The weak pairs with neither text in a test collection."""
        left = self.clean_queries(pairs)
        clean = set(self.clean_texts([pair.document for pair in left]))
        return [pair for pair in left if pair.document in clean]

    def clean_lists(self, tasks: Sequence[ListTask], documents: Mapping[str, Document]) -> list[ListTask]:
        """The lists without passages of test collections; the caller has to check how many are left in each."""
        names = list(dict.fromkeys(name for task in tasks for name in task.document_ids))
        leaks = dict(zip(names, self.passage_leaks([documents[name] for name in names]), strict=True))
        return [
            replace(task, document_ids=tuple(name for name in task.document_ids if not leaks[name])) for task in tasks
        ]

    def clean_rows(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Canonical rows for fine-tuning without documents of test collections.

        Rows whose query is in one are dropped, as are rows left without a positive or a negative.
        """
        left = iter(rows)
        while batch := [dict(row) for row in islice(left, _ROWS)]:
            batch = self.clean_queries(batch, itemgetter("query"))
            sides = [(row, side) for row in batch for side in ("positives", "negatives")]
            passages = [Document(d.get("title") or "", d["text"]) for row, side in sides for d in row[side]]
            leaks = iter(self.passage_leaks(passages))
            for row, side in sides:
                row[side] = [document for document in row[side] if not next(leaks)]
            yield from (row for row in batch if row["positives"] and row["negatives"])

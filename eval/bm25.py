"""BM25 close to Anserini's: Lucene's formula, k1 = 0.9, b = 0.4, an English analyzer with stop words and stemming.

Scoring is done by bm25s. The analyzer is close to Lucene's EnglishAnalyzer: words are runs of two or more letters,
digits and underscores, lower-cased; Lucene's 33 stop words are removed and the rest is stemmed. Three small
differences from Anserini remain: the stemmer is Snowball's English one (Porter 2; Lucene uses Porter), words of one
character are dropped (Lucene drops only the possessive s), and document lengths are exact (Lucene rounds them to one
byte). Title and text are indexed as one field.

Reference: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009; the variant is
`lucene` in Kamphuis et al., Which BM25 Do You Mean?, ECIR 2020. Anserini's parameters: Yang, Fang and Lin, 2018.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from modeling_tsarank.eval.index_cache import cached_index, content_hash
from modeling_tsarank.eval.selection import TopSelector
from modeling_tsarank.eval.types import Run
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.ranking_errors import InputError


ANALYZER = "english-1"
"""Name of the analyzer below, part of the index's cache key; change it whenever the tokens change."""

_STOP_WORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to
was will with
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""The stop words of Lucene's EnglishAnalyzer."""

_WORD = re.compile(r"\w\w+")


class EnglishAnalyzer:
    """Splits a text into stems, see the module docstring."""

    def __init__(self) -> None:
        stemmer = require("Stemmer", extra="eval", purpose="BM25's English stemmer")
        self._stem = functools.cache(stemmer.Stemmer("english").stemWord)

    def __call__(self, text: str) -> list[str]:
        """The stems of `text` in order, repetitions included."""
        return [self._stem(word) for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


class BM25Index:
    """A BM25 index over one corpus; make one with `build`."""

    def __init__(self, retriever: Any, ids: Sequence[str]) -> None:
        self._retriever = retriever
        self._selector = TopSelector(ids)
        self._analyze = EnglishAnalyzer()

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        texts: Sequence[str],
        cache_dir: str | os.PathLike[str] | None = None,
        *,
        k1: float = 0.9,
        b: float = 0.4,
        show_progress: bool | None = None,
    ) -> BM25Index:
        """Indexes a corpus, or loads the index of the same corpus and parameters from the cache.

        Args:
            ids: Document ids, unique.
            texts: Their texts, including titles.
            cache_dir: See `files.caches.cache_root`.
            k1: Term frequency saturation, 0 or more.
            b: Length normalization, from 0 to 1.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Raises:
            InputError: No documents, duplicate ids, or a parameter out of range.
            ResourceError: bm25s or PyStemmer is not installed, or the cache cannot be written.
        """
        if not k1 >= 0 or not 0 <= b <= 1:
            raise InputError(f"BM25 needs k1 >= 0 and b from 0 to 1, got k1={k1}, b={b}")
        bm25s = require("bm25s", extra="eval", purpose="BM25")
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # importing bm25s sets it to DEBUG
        stemmer = require("Stemmer", extra="eval", purpose="BM25's English stemmer")
        made_from = {
            "analyzer": ANALYZER,
            "stemmer": stemmer.version(),
            "bm25s": bm25s.__version__,
            "method": "lucene",
            "k1": float(k1),
            "b": float(b),
            "content": content_hash(ids, texts),
        }

        def build(folder: Path) -> None:
            corpus = _tokenized(texts, show_progress)
            retriever = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
            retriever.index(corpus, show_progress=False)
            retriever.save(folder, show_progress=False)
            write_json(folder / "ids.json", list(ids))

        def load(folder: Path) -> BM25Index:
            loaded_ids = read_json(folder / "ids.json")
            return cls(bm25s.BM25.load(folder, mmap=True), loaded_ids)

        return cached_index("bm25", made_from, build, load, cache_dir)

    def search(self, queries: Mapping[str, str], depth: int = 100, show_progress: bool | None = None) -> Run:
        """The best documents for each query.

        A document that contains none of the query's terms is never returned, so a query may have fewer than `depth`
        results; a query without any indexed term has an empty entry in the run.

        Args:
            queries: Query id to text.
            depth: Maximum number of documents per query, 1 or more.
            show_progress: Progress bar on stderr; None shows it on a terminal only.

        Returns:
            Query id to document id to score, best first; ties are ordered by document id, descending.
        """
        run: Run = {}
        hidden = None if show_progress is None else not show_progress
        for query_id, text in tqdm(queries.items(), desc="BM25", unit="query", disable=hidden):
            token_ids = self._retriever.get_tokens_ids(self._analyze(text))
            scores = self._retriever.get_scores_from_ids(token_ids) if token_ids else np.zeros(0, dtype=np.float32)
            found = np.flatnonzero(scores > 0)
            run[query_id] = self._selector.select(scores[found], depth, found)
        return run


def _tokenized(texts: Iterable[str], show_progress: bool | None) -> tuple[list[np.ndarray], dict[str, int]]:
    """Token ids of every text, and the vocabulary."""
    analyze = EnglishAnalyzer()
    vocabulary: dict[str, int] = {}
    hidden = None if show_progress is None else not show_progress
    token_ids = [
        np.array([vocabulary.setdefault(stem, len(vocabulary)) for stem in analyze(text)], dtype=np.int32)
        for text in tqdm(texts, desc="BM25 index", unit="doc", disable=hidden)
    ]
    if not vocabulary:
        raise InputError(f"none of the {len(token_ids)} documents has a word that BM25 could index")
    return token_ids, vocabulary

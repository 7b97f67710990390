"""Query making: sentences cropped from passages, selection among candidates with counts, and the file of queries.

Cropping: Lin et al., How to Train Your DRAGON, 2023, section 3; TWOLAR uses 10K of them. Sentence boundaries are from
pySBD (Sadvilkar and Neumann, 2020), rule-based and for 22 languages.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.bm25 import STOP_WORDS
from modeling_tsarank.eval.types import Document
from modeling_tsarank.files.extras import require
from modeling_tsarank.files.writing import write_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.list_building import SourceQuery
from modeling_tsarank.trainers.data.provenance import write_report


# Letters and digits; an apostrophe (straight or curly) or a hyphen inside is part of the word.
_WORD = re.compile("[^\\W_]+(?:['\u2019-][^\\W_]+)*")


@dataclass(frozen=True)
class QueryLimits:
    """Requirements on a query.

    Attributes:
        min_words: Minimum number of words.
        max_words: Maximum number of words.
        min_content_words: Minimum number of distinct words longer than one letter, without stop words and numbers.
        min_letters: Minimum fraction of letters among all characters except white space.

    Raises:
        InputError: limits that no query can satisfy.
    """

    min_words: int = 3
    max_words: int = 32
    min_content_words: int = 2
    min_letters: float = 0.6

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise InputError(f"need 1 <= min_words <= max_words, got {self.min_words} and {self.max_words}")
        if not 0 <= self.min_letters <= 1:
            raise InputError(f"the share of letters must be from 0 to 1, got {self.min_letters}")

    def problem(self, query: str) -> str | None:
        """Why the query is rejected, as a short name for the count, or None."""
        words = _WORD.findall(query)
        if len(words) < self.min_words:
            return "too short"
        if len(words) > self.max_words:
            return "too long"
        content = {word.casefold() for word in words if len(word) > 1 and not word.isdigit()} - STOP_WORDS
        if len(content) < self.min_content_words:
            return "no content"
        visible = [letter for letter in query if not letter.isspace()]
        if sum(letter.isalpha() for letter in visible) < self.min_letters * len(visible):
            return "few letters"
        return None


def normalized(text: str) -> str:
    """A text without differences in case, punctuation and white space, for comparisons."""
    return " ".join(_WORD.findall(text.casefold()))


@dataclass
class QueryCollector:
    """Accepts queries until there are enough; counts rejected candidates by reason.

    Attributes:
        wanted: Number of queries to accept.
        query_type: Recorded with each query.
        limits: Requirements on them.
        generator: Recorded with each query.
        avoid: Normalized texts to reject (those of another file).
        leaks: Whether a query, or the document it was made from (by its id), is in a test collection.
        queries: Accepted queries.
        rejected: Reason to number of candidates.
        candidates: Number of candidates.
    """

    wanted: int
    query_type: str
    limits: QueryLimits = field(default_factory=QueryLimits)
    generator: str | None = None
    avoid: frozenset[str] = frozenset()
    leaks: Callable[[str, str], bool] | None = None
    queries: list[SourceQuery] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    candidates: int = 0
    _seen: set[str] = field(default_factory=set, repr=False)

    @property
    def full(self) -> bool:
        """Whether there are enough queries."""
        return len(self.queries) >= self.wanted

    def offer(self, text: str, source: str, reason: str | None = None) -> bool:
        """Accepts a candidate made from document `source`, or counts why not; `reason` is the caller's, if any."""
        self.candidates += 1
        key = normalized(text)
        problem = reason or self.limits.problem(text)
        if problem is None and key in self._seen:
            problem = "duplicate"
        if problem is None and key in self.avoid:
            problem = "to be avoided"
        if problem is None and self.leaks is not None and self.leaks(text, source):
            problem = "in a test collection"
        if problem is not None:
            self.rejected[problem] += 1
            return False
        self._seen.add(key)
        query_id = f"{self.query_type}-{len(self.queries) + 1:06d}"
        self.queries.append(SourceQuery(query_id, text, self.query_type, source, self.generator))
        return True

    def report(self) -> dict[str, Any]:
        """Counts: candidates are accepted plus rejected ones."""
        return {
            "query_type": self.query_type,
            "generator": self.generator,
            "wanted": self.wanted,
            "candidates": self.candidates,
            "taken": len(self.queries),
            "rejected": dict(sorted(self.rejected.items())),
        }


def write_queries(path: Path, queries: Iterable[SourceQuery], report: Mapping[str, Any]) -> None:
    """Writes queries in BEIR's layout, `{"_id", "text", "metadata": {query_type, docid, generator}}`, one per line,
    and the report as JSON to `NAME.report.txt` (readers of training data ignore this suffix)."""
    rows = []
    for one in queries:
        about = {"query_type": one.query_type, "docid": one.source, "generator": one.generator}
        rows.append({"_id": one.query_id, "text": one.text, "metadata": about})
    write_jsonl(path, rows)
    write_report(path, dict(report))


LONGEST_PASSAGE = 20_000
"""Characters of a passage that are used: the splitter's time grows faster than linearly."""

# White space, quotation marks (straight, curly, angled), dashes and list bullets.
_EDGES = " \t\r\n\"'\u201c\u201d\u2018\u2019\u00ab\u00bb-\u2013\u2014\u2022*\u00b7|>"
# Marks that continue something that was cut off; a full stop may be part of a name, such as .NET.
_CONTINUATION = ",;: "
_NUMBERING = re.compile(r"(?:\(?\d{1,3}[.)]|[a-z][.)])\s+")


def sentence_splitter(language: str = "en") -> Callable[[str], list[str]]:
    """A function that splits a text into its sentences, stripped of white space.

    Raises:
        InputError: a language that is not supported.
        ResourceError: pysbd is not installed.
    """
    pysbd = require("pysbd", extra="data", purpose="Cropping sentences")
    try:
        segmenter = pysbd.Segmenter(language=language, clean=False)
    except ValueError as error:
        codes = ", ".join(sorted(pysbd.languages.LANGUAGE_CODES))
        raise InputError(f"no sentence rules for the language {language!r}; there are {codes}") from error

    def split(text: str) -> list[str]:
        return [sentence.strip() for sentence in segmenter.segment(text) if sentence.strip()]

    return split


def tidy_sentence(sentence: str) -> str:
    """A sentence as a query: one line, without marks at its ends that belong to the context (list bullets, quotation
    marks, the full stop); a question keeps its question mark."""
    line = " ".join(sentence.split()).strip(_EDGES).lstrip(_CONTINUATION + _EDGES)
    numbering = _NUMBERING.match(line)
    if numbering is not None:
        line = line[numbering.end() :].strip(_EDGES)
    return line.rstrip(".,;:! ").rstrip(_EDGES)


def fill(
    collector: QueryCollector, passages: Iterable[tuple[str, Iterable[tuple[str, str | None]]]], most: int, doing: str
) -> None:
    """Offers candidates to a collector until it is full.

    Args:
        collector: Accepts them; may stay incomplete if there are no more.
        passages: Id of each passage, and candidates from it: a text, and why it must be rejected, if already known.
        most: Maximum queries per passage.
        doing: Label of the progress bar on stderr.
    """
    with tqdm(total=collector.wanted, desc=f"{doing} queries", unit="query", disable=None) as bar:
        for document_id, candidates in passages:
            left = most
            for text, reason in candidates:
                if collector.offer(text, document_id, reason):
                    left -= 1
                    bar.update(1)
                if collector.full:
                    return
                if not left:
                    break


def crop_queries(
    documents: Mapping[str, Document],
    collector: QueryCollector,
    seed: int = 0,
    per_passage: int = 1,
    language: str = "en",
) -> None:
    """Fills a collector with sentences of randomly sampled passages.

    Only the body is cropped, never the title. A sentence that is the whole passage is rejected ("whole passage"): it
    would retrieve its passage by being identical. The order of passages and the sentence of each depend only on the
    seed.

    Args:
        documents: Document id to document.
        collector: Accepts the queries; may stay incomplete if the corpus has no more.
        seed: Random seed.
        per_passage: Maximum sentences per passage.
        language: Language of the sentence splitter.

    Raises:
        InputError: the language is not supported.
        ResourceError: pysbd is not installed.
    """
    split = sentence_splitter(language)
    generator = random.Random(seed)
    ids = list(documents)
    generator.shuffle(ids)

    def sentences(text: str) -> Iterator[tuple[str, str | None]]:
        found = [tidy_sentence(sentence) for sentence in split(text)]
        generator.shuffle(found)
        whole = normalized(text)
        yield from ((one, "whole passage" if normalized(one) == whole else None) for one in found if one)

    passages = ((name, sentences(documents[name].text[:LONGEST_PASSAGE])) for name in ids)
    fill(collector, passages, per_passage, "cropping")

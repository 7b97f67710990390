"""Made queries: sentences cropped from passages, the choice among candidates, counted, and the file of queries.

Cropping: Lin et al., How to Train Your DRAGON, 2023, section 3; TWOLAR takes 10K of them. Sentence boundaries are
pySBD's (Sadvilkar and Neumann, 2020), rule-based and for 22 languages.
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


# Letters and digits; an apostrophe (straight or curly) or a hyphen inside belongs to the word.
_WORD = re.compile("[^\\W_]+(?:['\u2019-][^\\W_]+)*")


@dataclass(frozen=True)
class QueryLimits:
    """What a made query must look like.

    Attributes:
        min_words: Words at least.
        max_words: Words at most.
        min_content_words: Different words at least that are longer than one letter, no stop words and no numbers.
        min_letters: Share of letters among all characters but white space, at least.

    Raises:
        InputError: limits that nothing fits.
    """

    min_words: int = 3
    max_words: int = 32
    min_content_words: int = 2
    min_letters: float = 0.6

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words:
            raise InputError(f"a query's words must be limited from 1 up, got {self.min_words} to {self.max_words}")
        if not 0 <= self.min_letters <= 1:
            raise InputError(f"the share of letters must be from 0 to 1, got {self.min_letters}")

    def problem(self, query: str) -> str | None:
        """Why the query is not taken, as a short name for the count, or None."""
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
    """What two queries share that differ in case, punctuation and white space only."""
    return " ".join(_WORD.findall(text.casefold()))


@dataclass
class QueryCollector:
    """Takes queries until there are enough; counts what it does not take, and why.

    Attributes:
        wanted: How many.
        query_type: Recorded with each.
        limits: What they must look like.
        generator: Recorded with each.
        avoid: Normalized texts that are not taken (those of another file).
        leaks: Whether a query, or the document that it was made from (by its id), is a test collection's.
        queries: Those taken.
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
        """Whether there are enough."""
        return len(self.queries) >= self.wanted

    def offer(self, text: str, source: str, reason: str | None = None) -> bool:
        """Takes a candidate made from document `source`, or counts why not; `reason` is one the caller has found."""
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
        """Counts: candidates are those taken and those rejected."""
        return {
            "query_type": self.query_type,
            "generator": self.generator,
            "wanted": self.wanted,
            "candidates": self.candidates,
            "taken": len(self.queries),
            "rejected": dict(sorted(self.rejected.items())),
        }


def write_queries(path: Path, queries: Iterable[SourceQuery], report: Mapping[str, Any]) -> None:
    """Writes queries in BEIR's layout, `{"_id", "text", "metadata": {query_type, docid, generator}}`, one a line, and
    beside them, as `NAME.report.txt`, the report as JSON (a suffix that no reader takes for rows)."""
    rows = []
    for one in queries:
        about = {"query_type": one.query_type, "docid": one.source, "generator": one.generator}
        rows.append({"_id": one.query_id, "text": one.text, "metadata": about})
    write_jsonl(path, rows)
    write_report(path, dict(report))


LONGEST_PASSAGE = 20_000
"""Characters of a passage that are looked at: the splitter's time grows faster than the text."""

# White space, quotation marks (straight, curly, angled), dashes and the signs of lists.
_EDGES = " \t\r\n\"'\u201c\u201d\u2018\u2019\u00ab\u00bb-\u2013\u2014\u2022*\u00b7|>"
# What goes on from something that was cut away; a full stop may be a name's own, such as .NET's.
_CONTINUATION = ",;: "
_NUMBERING = re.compile(r"(?:\(?\d{1,3}[.)]|[a-z][.)])\s+")


def sentence_splitter(language: str = "en") -> Callable[[str], list[str]]:
    """A function from text to its sentences, without outer white space.

    Raises:
        InputError: a language without rules.
        ResourceError: pysbd is missing.
    """
    pysbd = require("pysbd", extra="data", purpose="Cropping sentences")
    try:
        segmenter = pysbd.Segmenter(language=language, clean=False)
    except ValueError as error:
        codes = ", ".join(sorted(pysbd.languages.LANGUAGE_CODES))
        raise InputError(f"no rules for sentences of the language {language!r}; there are {codes}") from error

    def split(text: str) -> list[str]:
        return [sentence.strip() for sentence in segmenter.segment(text) if sentence.strip()]

    return split


def tidy_sentence(sentence: str) -> str:
    """A sentence as a query: one line, without the marks at its ends that belong to its surroundings (list signs,
    quotation marks, the full stop); a question keeps its mark."""
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
        collector: Takes them; may stay unfilled where there are no more.
        passages: Id of each passage, and candidates made of it: a text, and why it cannot be taken if that is known.
        most: Queries of one passage at most.
        doing: For the progress bar on stderr.
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
    """Fills a collector with sentences of passages drawn at random.

    The body alone is cropped, never the title. A sentence that is the whole passage is not taken ("whole passage"):
    it would find its passage by being it. Passages are visited in an order that depends on the seed only, and so is
    the sentence taken from each.

    Args:
        documents: Document id to document.
        collector: Takes the queries; may stay unfilled where the corpus has no more.
        seed: Of the order.
        per_passage: Sentences of one passage at most.
        language: Of the sentence rules.

    Raises:
        InputError: no such language.
        ResourceError: pysbd is missing.
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

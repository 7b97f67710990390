"""Made queries: the choice among candidates, counted, and the file they are written to."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.bm25 import STOP_WORDS
from modeling_tsarank.files.writing import write_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number
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

    def __post_init__(self) -> None:
        self.wanted = whole_number(self.wanted, "the number of queries")

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
    lines = []
    for query in queries:
        about = {"query_type": query.query_type, "docid": query.source, "generator": query.generator}
        record = {"_id": query.query_id, "text": query.text, "metadata": about}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    write_report(path, dict(report))

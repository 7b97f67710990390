"""Queries cropped from passages: whole sentences of informative length.

Reference: Lin et al., How to Train Your DRAGON, 2023, section 3 (sentence cropping); TWOLAR takes 10K of them.
Sentence boundaries are pySBD's (Sadvilkar and Neumann, 2020), rule-based and for 22 languages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

from tqdm.auto import tqdm

from modeling_tsarank.eval.types import Document
from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number
from modeling_tsarank.trainers.data.query_files import QueryCollector, normalized


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


def crop_queries(
    documents: Mapping[str, Document],
    collector: QueryCollector,
    seed: int = 0,
    per_passage: int = 1,
    language: str = "en",
    show_progress: bool | None = None,
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
        show_progress: Progress bar on stderr; None shows it on a terminal only.

    Raises:
        InputError: `per_passage` below 1, or no such language.
        ResourceError: pysbd is missing.
    """
    per_passage = whole_number(per_passage, "the number of sentences of a passage")
    split = sentence_splitter(language)
    generator = random.Random(seed)
    ids = list(documents)
    generator.shuffle(ids)
    hidden = None if show_progress is None else not show_progress
    with tqdm(total=collector.wanted, desc="cropping sentences", unit="query", disable=hidden) as bar:
        for document_id in ids:
            if collector.full:
                return
            text = documents[document_id].text[:LONGEST_PASSAGE]
            sentences = [tidy_sentence(sentence) for sentence in split(text)]
            generator.shuffle(sentences)
            taken = 0
            for sentence in sentences:
                whole = normalized(sentence) == normalized(text)
                if sentence and collector.offer(sentence, document_id, "whole passage" if whole else None):
                    taken += 1
                    bar.update(1)
                if taken == per_passage or collector.full:
                    break

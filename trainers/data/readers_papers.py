"""Papers: arXiv's metadata, and full texts with citations in the layout of S2ORC."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modeling_tsarank.files.reading import read_jsonl
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.readers import Source, text_of, usable
from modeling_tsarank.trainers.data.text_store import TextStore
from modeling_tsarank.trainers.data.weak_types import Pair


_SPACE = re.compile(r"\s+")
# A full stop, and the like, in front of a capital: enough to find the sentence around a citation. Abbreviations that
# citations are full of do not end one.
_SENTENCE_END = re.compile(
    r"(?<!\bal)(?<!\be\.g)(?<!\bi\.e)(?<!\bcf)(?<!\bFig)(?<!\bEq)(?<!\bSec)(?<!\b[A-Z])[.!?]\s+(?=[A-Z\"(])"
)


def _single(value: Any) -> str:
    return _SPACE.sub(" ", text_of(value))


def read_arxiv(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """Pairs (title, abstract) of arXiv's metadata snapshot: JSON lines with `title`, `abstract`, `categories`.

    Option: `categories`, a list such as ["cs.IR", "math"]; a paper stays where one of its categories is among them or
    below. A withdrawn paper has no abstract worth reading and is left out. The column `licence` takes over the
    record's `license`.
    """
    wanted = source.option("categories", [])
    for _, record in read_jsonl(Path(source.path)):
        own = text_of(record.get("categories")).split()
        if wanted and not any(one == w or one.startswith(f"{w}.") for one in own for w in wanted):
            unusable["other category"] += 1
            continue
        query, document = _single(record.get("title")), _single(record.get("abstract"))
        if re.match(r"(?:this|the) (?:paper|article|submission) has been withdrawn", document, re.IGNORECASE):
            unusable["withdrawn"] += 1
        elif usable(query, document, unusable):
            yield source.pair(query, document, licence=text_of(record.get("license")))


def read_citations(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """Pairs (citing sentence, cited paper's title and abstract), or (title, abstract), of papers as JSON lines.

    A record is a paper in the layout of S2ORC (Lo et al., 2020): `paper_id`, `title`, `abstract`, `body_text` as a
    list of `{"text", "cite_spans": [{"start", "end", "ref_id"}]}` and `bib_entries` as `{ref_id: {"title", "link"}}`,
    `link` being the cited paper's id. `abstract` may also be a list of paragraphs. Only papers that are themselves in
    the file, with an abstract, can be cited documents: a bibliography entry is none.

    Option: `min_words`, the fewest words of a citing sentence (default 6).
    """
    path = Path(source.path)
    if source.type == "title_abstract":
        for _, record in read_jsonl(path):
            query, document = _single(record.get("title")), _abstract(record)
            if usable(query, document, unusable):
                yield source.pair(query, document)
        return
    with TextStore() as papers:
        for _, record in read_jsonl(path):
            identifier, title, abstract = _paper_id(record), _single(record.get("title")), _abstract(record)
            if identifier and title and abstract:
                papers.put(identifier, title, abstract)
        for place, record in read_jsonl(path):
            for sentence, cited in _citations(record, place):
                paper = papers.get(cited)
                if paper is None:
                    unusable["cited paper not in the file"] += 1
                elif len(sentence.split()) < source.option("min_words", 6):
                    unusable["short citing sentence"] += 1
                else:
                    yield source.pair(sentence, f"{paper[0].rstrip('.')}. {paper[1]}")


def _paper_id(record: Mapping[str, Any]) -> str:
    return text_of(record.get("paper_id", record.get("corpusid")))


def _abstract(record: Mapping[str, Any]) -> str:
    value = record.get("abstract")
    if isinstance(value, list):
        return " ".join(_single(part.get("text") if isinstance(part, Mapping) else part) for part in value).strip()
    return _single(value)


def _citations(record: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
    """Every citation of a paper as its sentence and the cited paper's id; a sentence cites a paper once."""
    entries = record.get("bib_entries") or {}
    paragraphs = record.get("body_text") or []
    if not isinstance(entries, Mapping) or not isinstance(paragraphs, list):
        raise InputError(f"{place}: body_text must be a list and bib_entries an object, as in S2ORC")
    seen = set()
    for paragraph in paragraphs:
        text = paragraph.get("text", "") if isinstance(paragraph, Mapping) else ""
        for span in (paragraph.get("cite_spans") or []) if text else []:
            entry = entries.get(span.get("ref_id")) or {}
            cited = text_of(entry.get("link"))
            start = span.get("start")
            if not cited or not isinstance(start, int) or not 0 <= start < len(text):
                continue
            sentence = _single(sentence_around(text, start))
            if (sentence, cited) not in seen:
                seen.add((sentence, cited))
                yield sentence, cited


def sentence_around(text: str, position: int) -> str:
    """The sentence of `text` that the character at `position` belongs to."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end.end() > position:
            return text[start : end.start() + 1]
        start = end.end()
    return text[start:]

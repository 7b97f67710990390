"""Reddit's submissions and comments as JSON lines, and DBpedia's labels and abstracts as N-Triples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modeling_tsarank.files.reading import read_jsonl, read_lines
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.readers import Source, text_of, usable
from modeling_tsarank.trainers.data.text_store import TextStore
from modeling_tsarank.trainers.data.weak_types import Pair


_GONE = {"", "[deleted]", "[removed]"}


def read_reddit(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """Pairs (post, comment on it) of submissions and comments, or (title, body) of submissions alone.

    `path` is the file of submissions (`id`, `title`, `selftext`, `score`), `comments` that of comments (`body`,
    `parent_id`, `score`), both JSON lines, plain or packed. Only comments on the submission itself are taken: an
    answer to a comment needs what it answers. Pinned comments and those of AutoModerator are left out.

    Options: `comments`; `min_score` of comments, and for title_body of submissions (default 1); `with_body` (bool,
    default true): the post's text follows its title in the query.
    """
    if source.type == "title_body":
        for _, record in read_jsonl(Path(source.path)):
            title, body = _post(record)
            if _is_liked(record, source, unusable) and usable(title, body, unusable):
                yield source.pair(title, body)
        return
    comments = source.option("comments", "")
    if not comments:
        raise InputError("reddit: post_comment needs the option comments, the file of comments")
    with_body = source.option("with_body", True)
    with TextStore() as posts:
        for place, record in read_jsonl(Path(source.path)):
            title, body = _post(record)
            if not text_of(record.get("id")):
                raise InputError(f"{place}: a submission needs an id")
            if title:
                posts.put(text_of(record["id"]), f"{title} {body}".strip() if with_body else title)
        for _, record in read_jsonl(Path(comments).expanduser()):
            kind, _, parent = text_of(record.get("parent_id")).partition("_")
            if kind != "t3":
                unusable["answer to a comment"] += 1
                continue
            post, comment = posts.get(parent), text_of(record.get("body"))
            if post is None:
                unusable["post not in the file"] += 1
            elif record.get("stickied") or record.get("author") == "AutoModerator":
                unusable["pinned or automatic"] += 1
            elif _is_liked(record, source, unusable):
                if comment in _GONE:
                    unusable["deleted"] += 1
                else:
                    yield source.pair(post[0], comment)


def _post(record: Mapping[str, Any]) -> tuple[str, str]:
    title, body = text_of(record.get("title")), text_of(record.get("selftext"))
    return ("" if title in _GONE else title), ("" if body in _GONE else body)


def _is_liked(record: Mapping[str, Any], source: Source, unusable: Counter[str]) -> bool:
    score = record.get("score", 1)
    liked = isinstance(score, (int, float)) and score >= source.option("min_score", 1)
    unusable["low score"] += not liked
    return liked


# https://www.w3.org/TR/n-triples/: IRI, IRI, and a literal with a language; other triples are none of ours.
_TRIPLE = re.compile(
    r'\s*(<[^<>\s]*>|_:\S+)\s*<([^<>\s]*)>\s*(?:"((?:[^"\\]|\\.)*)"(?:@([\w-]+)|\^\^<[^<>\s]*>)?|<[^<>\s]*>|_:\S+)\s*\.\s*(?:#.*)?'
)
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|(.))", re.DOTALL)
_PLAIN_ESCAPES = {"t": "\t", "b": "\b", "n": "\n", "r": "\r", "f": "\f", '"': '"', "'": "'", "\\": "\\"}
_LABEL = ("http://www.w3.org/2000/01/rdf-schema#label",)
_ABSTRACT = (
    "http://dbpedia.org/ontology/abstract",
    "http://www.w3.org/2000/01/rdf-schema#comment",
    "http://purl.org/dc/terms/description",
    "http://schema.org/description",
)


def read_dbpedia(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """Pairs (label, abstract) of DBpedia's N-Triples.

    `path` is the file of abstracts (`dbo:abstract`, or `rdfs:comment` for the short ones), plain or packed. Options:
    `labels`, the file of labels (default: the same file); `language` (default en).
    """
    language = source.option("language", "en")
    path = Path(source.path)
    with TextStore() as labels:
        for subject, text in _literals(
            Path(source.option("labels", "")).expanduser() if source.options.get("labels") else path, _LABEL, language
        ):
            labels.put(subject, text)
        for subject, text in _literals(path, _ABSTRACT, language):
            label = labels.get(subject)
            if label is None:
                unusable["no label"] += 1
            elif usable(label[0].strip(), text.strip(), unusable):
                yield source.pair(label[0].strip(), text.strip())


def _literals(path: Path, predicates: tuple[str, ...], language: str) -> Iterator[tuple[str, str]]:
    """Subject and text of the triples with one of the predicates and a literal in the language."""
    for place, line in read_lines(path):
        if line.lstrip().startswith("#"):
            continue
        match = _TRIPLE.fullmatch(line.rstrip("\r\n"))
        if match is None:
            raise InputError(f"{place}: not an N-Triples line: {line.strip():.60}")
        subject, predicate, text, own = match.groups()
        if predicate in predicates and text is not None and (own or "").lower().split("-")[0] == language:
            yield subject, _unescaped(text, place)


def _unescaped(text: str, place: str) -> str:
    def character(found: re.Match[str]) -> str:
        short, long, plain = found.groups()
        if plain is None:
            return chr(int(short or long, 16))
        if plain not in _PLAIN_ESCAPES:
            raise InputError(f"{place}: unknown escape \\{plain}")
        return _PLAIN_ESCAPES[plain]

    return _ESCAPE.sub(character, text)

"""Pages: Stack Exchange's dumps of posts, and news as HTML."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from modeling_tsarank.files.extras import require
from modeling_tsarank.files.reading import open_stream
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.readers import Source, usable
from modeling_tsarank.trainers.data.text_store import TextStore
from modeling_tsarank.trainers.data.weak_types import Pair


_QUESTION, _ANSWER = "1", "2"
_BLOCKS = {"p", "br", "li", "ul", "ol", "pre", "blockquote", "hr", "h1", "h2", "h3", "h4", "div", "tr"}


class _Text(HTMLParser):
    """The text of a post without its code blocks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._code += tag == "pre"
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "pre" and self._code > 0
        if tag in _BLOCKS:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.parts.append(data)


def text_of_html(markup: str) -> str:
    """The text of a post's HTML, code blocks left out, white space made single."""
    parser = _Text()
    parser.feed(markup)
    parser.close()
    return re.sub(r"\s+", " ", "".join(parser.parts)).strip()


def read_stackexchange(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """Pairs of a `Posts.xml`: (title, body) of questions, or (title, accepted answer).

    Options: `min_score` (of question and answer, default 0); `with_body` (bool): the question's body follows its title
    in the query of question_answer.

    Posts are licensed under CC BY-SA; which version depends on their date and stands in the attribute ContentLicense,
    which the column `licence` takes over where the post has it.
    """
    if source.type == "title_body":
        for post in _posts(Path(source.path)):
            if post.get("PostTypeId") == _QUESTION and _is_liked(post, source, unusable):
                query, document = post.get("Title", "").strip(), text_of_html(post.get("Body", ""))
                if usable(query, document, unusable):
                    yield source.pair(query, document, licence=post.get("ContentLicense", ""))
        return
    with TextStore() as questions:
        for post in _posts(Path(source.path)):
            accepted = post.get("AcceptedAnswerId")
            if post.get("PostTypeId") != _QUESTION:
                continue
            if not accepted:
                unusable["no accepted answer"] += 1
            elif _is_liked(post, source, unusable):
                body = text_of_html(post.get("Body", "")) if source.option("with_body", False) else ""
                questions.put(accepted, f"{post.get('Title', '').strip()} {body}".strip())
        for post in _posts(Path(source.path)):
            if post.get("PostTypeId") != _ANSWER:
                continue
            question = questions.get(post.get("Id", ""))
            if question is not None and _is_liked(post, source, unusable):
                document = text_of_html(post.get("Body", ""))
                if usable(question[0], document, unusable):
                    yield source.pair(question[0], document, licence=post.get("ContentLicense", ""))


def _is_liked(post: dict[str, str], source: Source, unusable: Counter[str]) -> bool:
    score = post.get("Score", "0")
    if not re.fullmatch(r"-?\d+", score):
        raise InputError(f"{source.path}: post {post.get('Id')} has the score {score!r}, a whole number was expected")
    liked = int(score) >= source.option("min_score", 0)
    unusable["low score"] += not liked
    return liked


def _posts(path: Path) -> Iterator[dict[str, str]]:
    """The attributes of every `<row>`; elements are forgotten at once, so that memory does not grow."""
    with open_stream(path) as stream:
        try:
            root = None
            for event, element in ElementTree.iterparse(stream, events=("start", "end")):
                if root is None:
                    root = element
                if event == "end" and element.tag == "row":
                    yield dict(element.attrib)
                    root.clear()
        except ElementTree.ParseError as error:
            raise InputError(f"{path} is not the XML of a Stack Exchange dump: {error}") from error


def read_html(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """Pairs of HTML files: (headline, text), or (the page's own description, text), extracted by trafilatura.

    `path` is a file, a folder (all its .html and .htm files) or a pattern.
    """
    trafilatura = require("trafilatura", extra="html", purpose="Reading news pages")
    for path in _pages(source.path):
        with open_stream(path) as stream:
            content = stream.read()
        page = trafilatura.bare_extraction(content, with_metadata=True, include_comments=False, include_tables=False)
        if page is None:
            unusable["no text found"] += 1
            continue
        query = (page.title if source.type == "title_body" else page.description) or ""
        if usable(query.strip(), (page.text or "").strip(), unusable):
            yield source.pair(query.strip(), page.text.strip())


def _pages(name: str) -> Iterator[Path]:
    path = Path(name)
    pages: Iterator[Path]
    if path.is_dir():
        pages = (one for one in sorted(path.rglob("*")) if one.suffix in (".html", ".htm") and one.is_file())
    elif path.is_file():
        pages = iter([path])
    else:
        pages = (Path(one) for one in sorted(glob.glob(name, recursive=True)))
    first = next(pages, None)
    if first is None:
        raise InputError(f"no HTML file in {name!r}; give a file, a folder with .html files, or a pattern")
    yield first
    yield from pages

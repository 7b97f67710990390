"""Where weak pairs come from: tables with a field mapping, and public dumps in their own formats.

Every reader streams: it holds one record at a time, and where two records belong together (a question and its answer)
the texts wait in a temporary database on disk.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES, UNKNOWN_LICENCE, Pair


@dataclass
class Source:
    """One source of pairs, as a recipe declares it.

    Attributes:
        type: One of `PAIR_TYPES`.
        path: File, folder, or id of a dataset on the Hub; a pattern such as `pages/*.html` for `html`. Variables such
            as `$HOME` are filled in.
        reader: Name of a reader, see `reader_functions`.
        name: What the column `source` says; by default the file's name without its endings. A table may give it row by
            row (`fields: {source: FIELD}`).
        licence: Licence of the source; `unknown` where none is given.
        fields: For `table`: the fields of a record that hold query, document and, if there are any, source and
            licence. A list of fields is joined by spaces; `a.b` reaches into an object.
        split: Split of a Hub dataset.
        config: Configuration of a Hub dataset.
        limit: Most pairs to take.
        options: Options of the reader.
    """

    type: str
    path: str
    reader: str = "table"
    name: str = ""
    licence: str = UNKNOWN_LICENCE
    fields: dict[str, Any] = field(default_factory=dict)
    split: str = "train"
    config: str = ""
    limit: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in PAIR_TYPES:
            raise InputError(f"no type {self.type!r}; there are {', '.join(PAIR_TYPES)}")
        known = reader_functions()
        if self.reader not in known:
            raise InputError(f"no reader {self.reader!r}; there are {', '.join(known)}")
        types = known[self.reader].types
        if self.type not in types:
            raise InputError(f"the reader {self.reader} gives {', '.join(types)}, not {self.type}")
        if not self.path or self.limit < 0:
            raise InputError("a source needs a path, and its limit must be at least 0 (0: all)")
        self.path = expanded(self.path)
        if not self.name:
            self.name = Path(self.path).name.split(".")[0] if Path(self.path).exists() else self.path

    def pair(self, query: str, document: str, source: str = "", licence: str = "") -> Pair:
        """A pair of this source."""
        return Pair(query, document, self.type, source or self.name, licence or self.licence)

    def option(self, name: str, default: Any) -> Any:
        """An option of the reader, checked to be of the default's type.

        Raises:
            InputError: it is of another type.
        """
        value = self.options.get(name, default)
        if default is not None and (
            not isinstance(value, type(default)) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise InputError(f"{self.reader}: {name} must be of type {type(default).__name__}, got {value!r:.60}")
        return value


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        read: Gives the pairs of a source, and counts by reason the records that give none.
        types: The types of pairs it can give.
        options: The options it knows.
        summary: One line for the help.
    """

    read: Callable[[Source, Counter[str]], Iterator[Pair]]
    types: tuple[str, ...]
    options: tuple[str, ...]
    summary: str


def reader_functions() -> dict[str, Reader]:
    """Every reader by its name."""
    from modeling_tsarank.trainers.data import readers_dumps, readers_papers, readers_tables, readers_web

    return {
        "table": Reader(
            readers_tables.read_table,
            tuple(PAIR_TYPES),
            (),
            "jsonl, csv, tsv (also .gz), parquet, a folder of them, or a Hub dataset, with `fields`",
        ),
        "stackexchange": Reader(
            readers_web.read_stackexchange,
            ("title_body", "question_answer"),
            ("min_score", "with_body"),
            "Posts.xml of a Stack Exchange dump",
        ),
        "arxiv": Reader(
            readers_papers.read_arxiv, ("title_abstract",), ("categories",), "arXiv's metadata as JSON lines"
        ),
        "citations": Reader(
            readers_papers.read_citations,
            ("citation_reference", "title_abstract"),
            ("min_words",),
            "papers with citation spans and bibliography entries as JSON lines (S2ORC)",
        ),
        "reddit": Reader(
            readers_dumps.read_reddit,
            ("post_comment", "title_body"),
            ("comments", "min_score", "with_body"),
            "submissions as JSON lines, with `comments`, the file of comments",
        ),
        "dbpedia": Reader(
            readers_dumps.read_dbpedia,
            ("entity_description",),
            ("labels", "language"),
            "abstracts as N-Triples, with `labels`, the file of labels",
        ),
        "html": Reader(
            readers_web.read_html,
            ("title_body", "summary_content"),
            (),
            "news pages as HTML files, their text by trafilatura",
        ),
    }


def read_source(source: Source, unusable: Counter[str]) -> Iterator[Pair]:
    """The pairs of one source, up to its limit.

    Args:
        source: The source.
        unusable: Counts, by reason, the records that gave no pair.

    Raises:
        InputError: the file is missing or is not what the reader expects (with the line), or an unknown option.
        ResourceError: a package is missing, or the Hub cannot be reached.
    """
    reader = reader_functions()[source.reader]
    for name in source.options:
        if name not in reader.options:
            raise InputError(
                f"the reader {source.reader} has no option {name!r}; it has {', '.join(reader.options) or 'none'}"
            )
    for number, pair in enumerate(reader.read(source, unusable), start=1):
        yield pair
        if number == source.limit:
            return


def expanded(path: str) -> str:
    """A path with `~` and environment variables filled in.

    Raises:
        InputError: a variable is not set.
    """
    filled = os.path.expanduser(os.path.expandvars(path))
    if "$" in filled:
        raise InputError(f"{path}: an environment variable in it is not set; set it, or write the path out")
    return filled


def text_of(value: Any) -> str:
    """A field's text, white space at the ends dropped; empty where it is missing or no text."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def usable(query: str, document: str, unusable: Counter[str]) -> bool:
    """Whether both texts are there; counts what is missing."""
    if not query:
        unusable["no query"] += 1
    elif not document:
        unusable["no document"] += 1
    return bool(query and document)


def field_of(record: Mapping[str, Any], path: str) -> Any:
    """The value of a field; `a.b` reaches into an object. `None` where there is none."""
    if path in record:
        return record[path]
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value

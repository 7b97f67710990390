"""Tables of weak pairs in every format, and what is wrong with files."""

from __future__ import annotations

import bz2
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from modeling_tsarank.files.reading import open_stream
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.readers import Source, read_source


def write_lines(path: Path, records: list[Any]) -> Path:
    text = "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".bz2":
        path.write_bytes(bz2.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def read(type_: str, path: Path | str, **options: Any) -> tuple[list[tuple[str, str]], Counter[str]]:
    unusable: Counter[str] = Counter()
    pairs = list(read_source(Source(type_, str(path), **options), unusable))
    assert all(pair.type == type_ for pair in pairs)
    return [(pair.query, pair.document) for pair in pairs], +unusable


ROWS = [
    {"title": "Tides", "body": "The sea rises twice a day.", "by": "almanac", "terms": "cc0-1.0"},
    {"title": "Quays", "body": "Ships lie along them.", "by": "harbour book", "terms": "mit"},
    {"title": "", "body": "Nobody named this.", "by": "x", "terms": "mit"},
    {"title": "Empty", "body": "  ", "by": "x", "terms": "mit"},
]
EXPECTED = [(row["title"], row["body"]) for row in ROWS[:2]]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.bz2", "t.csv", "t.tsv", "t.parquet"])
def test_a_table_gives_the_same_pairs_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        Dataset.from_list(ROWS).to_parquet(path)
    elif ".jsonl" in name:
        write_lines(path, ROWS)
    else:
        mark = "\t" if name.endswith("tsv") else ","
        path.write_text("\n".join([mark.join(ROWS[0]), *(mark.join(row.values()) for row in ROWS)]) + "\n")
    pairs, unusable = read("title_body", path)
    assert pairs == EXPECTED
    assert unusable == {"no query": 1, "no document": 1}


def test_fields_are_mapped_joined_and_reached_into(tmp_path: Path) -> None:
    record = {"ask": {"text": "Why?"}, "head": "Because", "tail": "it floats.", "more": ["First.", "Second.", ""]}
    path = write_lines(tmp_path / "qa.jsonl", [record])
    fields = {"query": "ask.text", "document": ["head", "tail"]}
    assert read("question_answer", path, fields=fields)[0] == [("Why?", "Because it floats.")]
    listed = read("question_answer", path, fields={"query": "ask.text", "document": "more"})
    assert listed[0] == [("Why?", "First."), ("Why?", "Second.")]


def test_source_and_licence_come_from_fields_or_from_the_declaration(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "notes.jsonl", ROWS[:2])
    mapped = Source("title_body", str(path), fields={"source": "by", "licence": "terms"})
    assert [(p.source, p.licence) for p in read_source(mapped, Counter())] == [
        ("almanac", "cc0-1.0"),
        ("harbour book", "mit"),
    ]
    plain = Source("title_body", str(path), licence="cc-by-4.0")
    assert {(p.source, p.licence) for p in read_source(plain, Counter())} == {("notes", "cc-by-4.0")}


def test_a_limit_ends_a_source_early(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "t.jsonl", [*ROWS[:2], "this line is never reached"])
    assert read("title_body", path, limit=2)[0] == EXPECTED


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"type_": "title_corpse", "path": "x"}, "no type 'title_corpse'"),
        ({"type_": "title_body", "path": "no/such/file.jsonl"}, "no file or folder"),
        ({"type_": "title_body", "path": "$NO_SUCH_VARIABLE/x"}, "is not set"),
    ],
)
def test_wrong_declarations(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**declared)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"title": "a", "body": "b"}\n{"title": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"title": "a", "body": "b"}\n[1]\n', "line 2: expected a JSON object"),
        ("a.jsonl", b'{"headline": "a", "body": "b"}\n', r"no field title for the query; there are headline, body"),
        ("a.jsonl", b'{"title": "\xff"}\n', "line 1: not UTF-8"),
        ("a.jsonl.gz", b"not packed", "line .*: damaged or incomplete"),
        ("a.jsonl.gz", gzip.compress(b'{"title": "a", "body": "b"}\n' * 999)[:-20], "line .*: damaged or incomplete"),
        ("a.jsonl.bz2", b"not packed", "line .*: damaged or incomplete"),
        ("a.csv", b"title,body\nonly one\n", "line 2: the number of fields"),
        ("a.csv", b'title,body\n"never closed,b\n', "line"),
        ("a.txt", b"x", "expected .jsonl"),
        ("a.parquet", b"PAR0", "cannot be read as Parquet"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read("title_body", tmp_path / name)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"), open_stream(tmp_path) as stream:
        stream.read()

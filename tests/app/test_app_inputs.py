"""Pasted, uploaded, listed and built-in documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.hub_cards.app_inputs import BuiltInCollection, named_documents, read_pasted, read_upload
from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.ranking_errors import InputError


LIMITS = Limits(documents=5, total_bytes=2_000, document_bytes=1_000)


def test_pasted_lines_and_json_lines() -> None:
    assert [(d.id, d.text) for d in read_pasted("one\n\n two \r\n", LIMITS)] == [("1", "one"), ("3", "two")]
    rows = '{"_id": "a", "title": "T", "text": "x"}\n{"text": "y"}'
    documents = read_pasted(rows, LIMITS)
    assert [(d.id, d.text, d.title) for d in documents] == [("a", "T x", "T"), ("2", "y", "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no documents were pasted"),
        (" \n ", "no documents were pasted"),
        (None, "no documents were pasted"),
        ('{"text": "a"}\n{"txt": "b"}', "the pasted text, line 2: no field 'text'"),
        ('{"text": ', "the pasted text, line 1: not JSON"),
        ("\n".join("abcdef"), "6 documents were given; at most 5"),
        ("x" * 2001, "the pasted text has 2,001 bytes; at most 2,000"),
        ("x" * 1001, "document 1 has 1,001 bytes"),
    ],
)
def test_what_is_wrong_with_pasted_text_is_said(text: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_pasted(text, LIMITS)
    assert message in str(caught.value)
    assert "/" not in str(caught.value), "a path of the server is nobody's business"


def test_uploads(tmp_path: Path) -> None:
    good = tmp_path / "notes.jsonl"
    good.write_text('{"text": "a", "title": null}\n\n{"text": "b", "title": "B"}\n')
    assert [(d.id, d.text, d.title) for d in read_upload(good, LIMITS)] == [("1", "a", ""), ("3", "B b", "B")]
    for name, data, message in [
        ("bad.jsonl", b'{"text": "a"}\nnope', "bad.jsonl, line 2: not JSON"),
        ("latin.txt", "Grüße".encode("latin-1"), "latin.txt, line 1: not UTF-8"),
        ("table.csv", b"a,b", "table.csv: unknown file type '.csv'; expected .txt or .jsonl"),
        ("empty.txt", b"\n \n", "empty.txt has no documents"),
        ("large.txt", b"x\n" * 1001, "large.txt has 2,002 bytes; at most 2,000"),
    ]:
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_upload(path, LIMITS)
        assert str(caught.value).startswith(message)
        assert str(tmp_path) not in str(caught.value)
        assert "--format" not in str(caught.value)
    with pytest.raises(InputError, match="no file was uploaded"):
        read_upload(None, LIMITS)


def test_listed_documents() -> None:
    assert [(d.id, d.text) for d in named_documents([" a ", "", "\ud800"], LIMITS)] == [
        ("1", "a"),
        ("2", ""),
        ("3", "\ufffd"),
    ]
    for value, message in [
        ("text", "must be a list of texts, got str"),
        (["a", 3], "document 2 must be a string, got int"),
        ([], "there are no documents"),
        (["a"] * 6, "6 documents were given"),
    ]:
        with pytest.raises(InputError, match=message):
            named_documents(value, LIMITS)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300))
def test_any_pasted_text_is_read_or_refused(text: str) -> None:
    try:
        documents = read_pasted(text, LIMITS)
    except InputError:
        return
    assert documents
    assert all(d.text.encode() for d in documents)


def test_the_collection_finds_with_bm25(collection: BuiltInCollection) -> None:
    assert len(collection) >= 50
    assert len(collection.queries) >= 5
    found = collection.search("which bees waggle", 4)
    assert found[0].id == "bee-dance"
    assert found[0].title == "The waggle dance"
    assert len(found) == 4
    for query in collection.queries:
        assert len(collection.search(query, 10)) >= 2
    with pytest.raises(InputError, match="BM25 finds none of the"):
        collection.search("xylophone", 4)
    for depth in (0, -1, 1.5, True, "3", None, float("nan")):
        with pytest.raises(InputError, match="must be a positive whole number"):
            collection.search("bees", depth)  # type: ignore[arg-type]


def test_the_shipped_collection_is_sound() -> None:
    examples = Path(__file__).parent.parent.parent / "examples"
    rows = [json.loads(line) for line in (examples / "collection.jsonl").read_text().splitlines()]
    assert len({row["_id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows)
    assert all(60 < len(row["text"]) < 260 and row["title"] for row in rows)

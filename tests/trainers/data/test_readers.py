"""Readers: small dumps in each public format, written here by hand, and what is wrong with files."""

from __future__ import annotations

import bz2
import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from modeling_tsarank.files.reading import open_stream
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers.data.readers import Source, read_source
from modeling_tsarank.trainers.data.readers_papers import sentence_around
from modeling_tsarank.trainers.data.readers_web import text_of_html
from modeling_tsarank.trainers.data.text_store import TextStore


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


STACK = """<?xml version="1.0" encoding="utf-8"?>
<posts>
  <row Id="1" PostTypeId="1" AcceptedAnswerId="3" Score="4" Title="How do I tie a bowline?"
    Body="&lt;p&gt;My knot slips.&lt;/p&gt;&lt;pre&gt;&lt;code&gt;x = 1&lt;/code&gt;&lt;/pre&gt;"
    ContentLicense="CC BY-SA 4.0" />
  <row Id="2" PostTypeId="2" ParentId="1" Score="9" Body="&lt;p&gt;Not accepted.&lt;/p&gt;" />
  <row Id="3" PostTypeId="2" ParentId="1" Score="2" ContentLicense="CC BY-SA 4.0"
    Body="&lt;p&gt;Form a loop &amp;amp; pass the end &lt;b&gt;through&lt;/b&gt; it.&lt;p&gt;Pull.&lt;/p&gt;" />
  <row Id="4" PostTypeId="1" Score="-3" Title="Nobody likes this" Body="&lt;p&gt;Text.&lt;/p&gt;" />
  <row Id="5" PostTypeId="5" Body="a tag's wiki" />
</posts>
"""


def test_stack_exchange(tmp_path: Path) -> None:
    path = tmp_path / "Posts.xml"
    path.write_text(STACK, encoding="utf-8")
    pairs, unusable = read("title_body", path, reader="stackexchange")
    assert pairs == [("How do I tie a bowline?", "My knot slips.")]
    assert unusable == {"low score": 1}
    answer = "Form a loop & pass the end through it. Pull."
    pairs, unusable = read("question_answer", path, reader="stackexchange")
    assert pairs == [("How do I tie a bowline?", answer)]
    assert unusable == {"no accepted answer": 1}
    full, _ = read("question_answer", path, reader="stackexchange", options={"with_body": True})
    assert full == [("How do I tie a bowline? My knot slips.", answer)]
    strict, _ = read("question_answer", path, reader="stackexchange", options={"min_score": 3})
    assert strict == []
    source = Source("title_body", str(path), reader="stackexchange", licence="cc-by-sa-3.0")
    assert next(read_source(source, Counter())).licence == "CC BY-SA 4.0"


def test_posts_are_forgotten_after_reading(tmp_path: Path) -> None:
    """Memory does not grow with a dump: 2,000 posts of 2 kB are read in less than 1 MB."""
    import tracemalloc

    path = tmp_path / "Posts.xml"
    with path.open("w", encoding="utf-8") as file:
        file.write("<posts>\n")
        for number in range(2_000):
            file.write(f'<row Id="{number}" PostTypeId="1" Score="1" Title="t{number}" Body="{"word " * 400}" />\n')
        file.write("</posts>\n")
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_source(Source("title_body", str(path), reader="stackexchange"), Counter()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 2_000
    assert path.stat().st_size > 4_000_000
    assert peak < 1_000_000


def test_html_of_posts_becomes_text() -> None:
    assert text_of_html("<p>a &lt; b</p><ul><li>one</li><li>two</li></ul><pre>code</pre>end") == "a < b one two end"
    assert text_of_html("<pre>never closed") == ""


ARXIV = [
    {"id": "1", "title": "On\n  tides", "abstract": "  We measure\n  tides. ", "categories": "physics.ao-ph math.CA"},
    {"id": "2", "title": "On sums", "abstract": "We add.", "categories": "math.CO", "license": "http://x/by/4.0/"},
    {"id": "3", "title": "Gone", "abstract": "This paper has been withdrawn by the author.", "categories": "math.CO"},
]


def test_arxiv(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "arxiv.json", ARXIV)
    pairs, unusable = read("title_abstract", path, reader="arxiv")
    assert pairs == [("On tides", "We measure tides."), ("On sums", "We add.")]
    assert unusable == {"withdrawn": 1}
    pairs, unusable = read("title_abstract", path, reader="arxiv", options={"categories": ["physics"]})
    assert pairs == [("On tides", "We measure tides.")]
    assert unusable == {"other category": 2}
    licences = [p.licence for p in read_source(Source("title_abstract", str(path), reader="arxiv"), Counter())]
    assert licences == ["unknown", "http://x/by/4.0/"]


def test_reddit(tmp_path: Path) -> None:
    posts = write_lines(
        tmp_path / "posts.jsonl",
        [
            {"id": "a", "title": "Which rope?", "selftext": "For a small boat.", "score": 10},
            {"id": "b", "title": "[deleted]", "selftext": "", "score": 3},
            {"id": "c", "title": "A link", "selftext": "[removed]", "score": 3},
        ],
    )
    comments = write_lines(
        tmp_path / "comments.jsonl.gz",
        [
            {"parent_id": "t3_a", "body": "Nylon stretches well.", "score": 5},
            {"parent_id": "t1_z", "body": "I agree.", "score": 5},
            {"parent_id": "t3_a", "body": "[removed]", "score": 5},
            {"parent_id": "t3_a", "body": "Read the rules.", "score": 1, "author": "AutoModerator"},
            {"parent_id": "t3_a", "body": "No.", "score": -4},
            {"parent_id": "t3_b", "body": "To a deleted post.", "score": 2},
            {"parent_id": "t3_c", "body": "Nice picture.", "score": 2},
        ],
    )
    pairs, unusable = read("post_comment", posts, reader="reddit", options={"comments": str(comments)})
    assert pairs == [("Which rope? For a small boat.", "Nylon stretches well."), ("A link", "Nice picture.")]
    assert unusable == {
        "answer to a comment": 1,
        "deleted": 1,
        "pinned or automatic": 1,
        "low score": 1,
        "post not in the file": 1,
    }
    assert sum(unusable.values()) + len(pairs) == 7
    titles, _ = read("title_body", posts, reader="reddit")
    assert titles == [("Which rope?", "For a small boat.")]
    with pytest.raises(InputError, match="needs the option comments"):
        read("post_comment", posts, reader="reddit")


LABELS = [
    "# started 2026",
    '<http://d/Quay> <http://www.w3.org/2000/01/rdf-schema#label> "Quay"@en .',
    '<http://d/Quay> <http://www.w3.org/2000/01/rdf-schema#label> "Kai"@de .',
    r'<http://d/Cafe> <http://www.w3.org/2000/01/rdf-schema#label> "Caf\u00E9 \"Tide\""@en .',
]
ABSTRACTS = [
    r'<http://d/Quay> <http://dbpedia.org/ontology/abstract> "A quay is a wall.\nShips lie there."@en .',
    '<http://d/Quay> <http://dbpedia.org/ontology/abstract> "Ein Kai ist eine Mauer."@de .',
    '<http://d/Cafe> <http://dbpedia.org/ontology/abstract> "A house at the sea."@en .',
    '<http://d/None> <http://dbpedia.org/ontology/abstract> "It has no label."@en .',
    "<http://d/Quay> <http://www.w3.org/2002/07/owl#sameAs> <http://e/Quay> .",
    '<http://d/Quay> <http://d/height> "3"^^<http://www.w3.org/2001/XMLSchema#integer> .',
]


def test_dbpedia(tmp_path: Path) -> None:
    labels = write_lines(tmp_path / "labels.nt", LABELS)
    abstracts = write_lines(tmp_path / "abstracts.nt.bz2", ABSTRACTS)
    pairs, unusable = read("entity_description", abstracts, reader="dbpedia", options={"labels": str(labels)})
    assert pairs == [("Quay", "A quay is a wall.\nShips lie there."), ('Café "Tide"', "A house at the sea.")]
    assert unusable == {"no label": 1}
    both = write_lines(tmp_path / "both.nt", [*LABELS, *ABSTRACTS])
    german, _ = read("entity_description", both, reader="dbpedia", options={"language": "de"})
    assert german == [("Kai", "Ein Kai ist eine Mauer.")]
    broken = write_lines(tmp_path / "broken.nt", [LABELS[1], "<http://d/Quay> is broken"])
    with pytest.raises(InputError, match=r"broken\.nt, line 2: not an N-Triples line"):
        read("entity_description", broken, reader="dbpedia")


TEXT = "Waves are old. We follow Sand et al. (2001), e.g. for tides in the north sea. Others differ."


def test_citations(tmp_path: Path) -> None:
    papers = [
        {"paper_id": "p1", "title": "Tides.", "abstract": [{"text": "We measure"}, {"text": "tides."}]},
        {
            "paper_id": "p2",
            "title": "Waves",
            "abstract": "We look at waves.",
            "body_text": [
                {
                    "text": TEXT,
                    "cite_spans": [
                        {"start": 26, "end": 44, "ref_id": "b0"},
                        {"start": 30, "end": 44, "ref_id": "b0"},
                        {"start": 83, "end": 89, "ref_id": "b1"},
                        {"start": 79, "end": 85, "ref_id": "b0"},
                    ],
                }
            ],
            "bib_entries": {"b0": {"title": "Tides", "link": "p1"}, "b1": {"title": "Elsewhere", "link": "p9"}},
        },
    ]
    path = write_lines(tmp_path / "s2orc.jsonl", papers)
    pairs, unusable = read("citation_reference", path, reader="citations")
    sentence = "We follow Sand et al. (2001), e.g. for tides in the north sea."
    assert pairs == [(sentence, "Tides. We measure tides.")]
    assert unusable == {"cited paper not in the file": 1, "short citing sentence": 1}
    titles, _ = read("title_abstract", path, reader="citations")
    assert titles == [("Tides.", "We measure tides."), ("Waves", "We look at waves.")]


def test_the_sentence_around_a_place() -> None:
    assert sentence_around(TEXT, 0) == "Waves are old."
    assert sentence_around(TEXT, len(TEXT) - 1) == "Others differ."
    assert sentence_around("No end", 3) == "No end"


PAGE = """<html><head><title>Harbour reopens</title>
<meta name="description" content="Ships are back in the harbour."></head>
<body><nav><a href="/">Home</a></nav>
<article><h1>Harbour reopens</h1>{}</article>
<footer>All rights reserved</footer></body></html>"""


def test_news_pages(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    paragraphs = "".join(
        f"<p>The harbour opened again on day {n}, and the pilots brought {n + 3} ships to the quay before noon.</p>"
        for n in range(6)
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.html").write_text(PAGE.format(paragraphs), encoding="utf-8")
    (tmp_path / "site" / "b.html").write_text("<html></html>", encoding="utf-8")
    pairs, unusable = read("title_body", tmp_path / "site", reader="html")
    assert [query for query, _ in pairs] == ["Harbour reopens"]
    assert "brought 8 ships to the quay" in pairs[0][1]
    assert "All rights reserved" not in pairs[0][1]
    assert sum(unusable.values()) == 1
    summaries, _ = read("summary_content", f"{tmp_path}/site/*.html", reader="html")
    assert [query for query, _ in summaries] == ["Ships are back in the harbour."]


def test_a_missing_extractor_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    with pytest.raises(ResourceError, match=r"tsarank\[html\]"):
        read("title_body", tmp_path / "a.html", reader="html")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"type_": "title_corpse", "path": "x"}, "no type 'title_corpse'"),
        ({"type_": "title_body", "path": "x", "reader": "gopher"}, "no reader 'gopher'"),
        ({"type_": "title_body", "path": "x", "reader": "arxiv"}, "gives title_abstract, not title_body"),
        ({"type_": "title_body", "path": "no/such/file.jsonl"}, "no file or folder"),
        ({"type_": "title_body", "path": "$NO_SUCH_VARIABLE/x"}, "is not set"),
        ({"type_": "title_abstract", "path": "no.json", "reader": "arxiv"}, "no such file: no.json"),
        ({"type_": "title_abstract", "path": "x", "reader": "arxiv", "options": {"colour": 1}}, "no option 'colour'"),
        ({"type_": "title_body", "path": "x", "reader": "stackexchange", "options": {"x": 1}}, "it has min_score"),
    ],
)
def test_wrong_declarations(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**declared)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"title": "a", "body": "b"}\n{"title": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"title": "a", "body": "b"}\n[1]\n', "line 2: a JSON object was expected"),
        ("a.jsonl", b'{"headline": "a", "body": "b"}\n', r"no field title for the query; there are headline, body"),
        ("a.jsonl", b'{"title": "\xff"}\n', "line 1: not UTF-8"),
        ("a.jsonl.gz", b"not packed", "line .*: damaged or not whole"),
        ("a.jsonl.gz", gzip.compress(b'{"title": "a", "body": "b"}\n' * 999)[:-20], "line .*: damaged or not whole"),
        ("a.jsonl.bz2", b"not packed", "line .*: damaged or not whole"),
        ("a.csv", b"title,body\nonly one\n", "line 2: not as many fields"),
        ("a.csv", b'title,body\n"never closed,b\n', "line"),
        ("a.txt", b"x", "expected .jsonl"),
        ("a.parquet", b"PAR0", "cannot be read as Parquet"),
    ],
)
def test_broken_files_say_where(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read("title_body", tmp_path / name)


def test_a_broken_dump_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "Posts.xml"
    path.write_text(STACK[:200], encoding="utf-8")
    with pytest.raises(InputError, match="not the XML of a Stack Exchange dump"):
        read("title_body", path, reader="stackexchange")


def test_the_store_keeps_the_last_text_of_a_key() -> None:
    with TextStore() as store:
        store.put("a", "one")
        store.put("a", "two", "second")
        assert store.get("a") == ("two", "second")
        assert store.get("b") is None


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"), open_stream(tmp_path) as stream:
        stream.read()

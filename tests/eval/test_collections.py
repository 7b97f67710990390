"""Collections from folders, files and by name, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
from pathlib import Path

import pytest

from modeling_tsarank.eval.beir import load_beir_folder, read_corpus
from modeling_tsarank.eval.collections import (
    CQADUPSTACK_PARTS,
    load_collection,
    load_collection_from_files,
    load_collections,
    mean_results,
)
from modeling_tsarank.eval.types import Collection, Document, StoredDocuments
from modeling_tsarank.ranking_errors import InputError


CORPUS = [
    {"_id": "d1", "title": "Bread", "text": "Flour and water."},
    {"_id": "d2", "title": "", "text": "Ice, slowly flowing."},
    {"_id": 3, "title": None, "text": "Zoë's violin\u2028sings."},
    {"_id": "d4", "text": "", "metadata": {}},
]
QUERIES = [{"_id": "q1", "text": "how to bake"}, {"_id": "q2", "text": "glacier"}, {"_id": "q3", "text": "unjudged"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\nq2\td1\t0\n"


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def make(folder: Path, corpus: str = lines(CORPUS), queries: str = lines(QUERIES), qrels: str = QRELS) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(corpus, encoding="utf-8")
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return folder


def test_a_beir_folder(tmp_path):
    folder = make(tmp_path / "kitchen")
    (folder / "runs").mkdir()
    (folder / "runs" / "bm25.top100.trec").write_text("q1 Q0 d1 1 2.0 bm25\n")
    (folder / "runs" / "README.md").write_text("not a run")
    collection = load_collection(folder)
    assert collection.name == "kitchen"
    assert dict(collection.documents) == {
        "d1": Document("Bread", "Flour and water."),
        "d2": Document("", "Ice, slowly flowing."),
        "3": Document("", "Zoë's violin\u2028sings."),
        "d4": Document("", ""),
    }
    assert collection.queries == {"q1": "how to bake", "q2": "glacier", "q3": "unjudged"}
    assert collection.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": 0}}
    assert collection.judged_queries() == ["q1", "q2"]
    assert collection.runs == {"bm25.top100": folder / "runs" / "bm25.top100.trec"}
    assert collection.self_match is False
    assert [collection.documents[name].full_text for name in ("d1", "d2", "d4")] == [
        "Bread Flour and water.",
        "Ice, slowly flowing.",
        "",
    ]


def test_packed_files_and_other_splits(tmp_path):
    folder = make(tmp_path / "kitchen")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    (folder / "qrels" / "dev.tsv").write_text("q3\td1\t1\n")
    assert load_collection(folder, split="dev").judged_queries() == ["q3"]
    with pytest.raises(InputError, match="no judgments for the split 'train'; found: dev, test"):
        load_collection(folder, split="train")


def test_a_large_corpus_stays_on_disk_and_reads_the_same(tmp_path):
    folder = make(tmp_path / "kitchen", corpus="\n" + lines(CORPUS).rstrip("\n"))
    lazy = load_beir_folder(folder, "kitchen", "test", lazy_bytes=0).documents
    assert isinstance(lazy, StoredDocuments)
    eager = read_corpus(folder / "corpus.jsonl")
    assert dict(lazy) == dict(eager)
    assert list(lazy) == list(eager)
    assert "d1" in lazy
    assert "zz" not in lazy
    with pytest.raises(KeyError):
        lazy["zz"]
    assert dict(pickle.loads(pickle.dumps(lazy))) == dict(eager)


@pytest.mark.parametrize("lazy_bytes", [0, 1 << 30])
@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ('{"_id": "d1", "text": "x"}\n{"_id": "d2", "text"\n', r"corpus.jsonl, line 2: not JSON"),
        ('{"_id": "d1", "text": "x"}\n[1]\n', "line 2: expected a JSON object, found list"),
        ('{"_id": "d1", "text": "x"}\n\n{"_id": "d1", "text": "y"}\n', "line 3: the .*id 'd1' appeared before"),
        ('{"name": "d1", "text": "x"}\n', "line 1: no '_id'"),
        ('{"_id": "d1", "body": "x"}\n', "line 1: no 'text', 'contents', 'content' or 'passage'; fields: _id, body"),
        ('{"_id": "d1", "text": "x", "title": 3}\n', "line 1: 'title' must be a string, found 3"),
        ("", "corpus.jsonl contains no document"),
    ],
)
def test_wrong_corpora_are_refused_with_the_line(tmp_path, corpus, message, lazy_bytes):
    folder = make(tmp_path / "kitchen", corpus=corpus)
    with pytest.raises(InputError, match=message):
        read_corpus(folder / "corpus.jsonl", lazy_bytes)
    with pytest.raises(InputError, match=message):
        load_collection(folder)


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("queries", "", "queries.jsonl contains no query"),
        ("queries", '{"_id": "q1", "text": null}', "line 1: no 'text'"),
        ("queries", lines(QUERIES[:1]), "1 of 2 judged queries have no text, the first is 'q2'"),
        ("qrels", "query-id\tcorpus-id\tscore\n", "contains no judgment"),
        ("qrels", "q1\tzz1\t1\nq2\tzz2\t1\n", "none of the 2 judged documents is in the corpus, the first is 'zz1'"),
        ("qrels", "nobody\td1\t1\n", "1 of 1 judged queries have no text, the first is 'nobody'"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tmp_path, part, text, message):
    with pytest.raises(InputError, match=message):
        load_collection(make(tmp_path / "kitchen", **{part: text}))


def test_judged_documents_outside_a_partial_corpus_are_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        collection = load_collection(make(tmp_path / "kitchen", qrels="q1\td1\t1\nq1\tzz\t1\n"))
    assert "kitchen: 1 of 2 judged documents are not in the corpus, such as 'zz'" in caplog.text
    assert collection.qrels == {"q1": {"d1": 1, "zz": 1}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-folder", "no collection 'no-such-folder': expected a folder"),
        ("a/b/c", "no collection 'a/b/c'"),
        (".", r"has no corpus\.jsonl"),
    ],
)
def test_names_that_mean_nothing(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_collection(name)


def test_three_files(tmp_path):
    folder = make(tmp_path / "kitchen")
    (tmp_path / "topics.tsv").write_text("q1\thow to\tbake\nq2\tglacier\n")
    (tmp_path / "qrels.txt").write_text("q1 0 d1 1\nq2 0 d2 3\n")
    collection = load_collection_from_files(
        folder / "corpus.jsonl", tmp_path / "topics.tsv", tmp_path / "qrels.txt", "mine"
    )
    assert collection.name == "mine"
    assert collection.queries == {"q1": "how to\tbake", "q2": "glacier"}
    assert collection.qrels == {"q1": {"d1": 1}, "q2": {"d2": 3}}
    (tmp_path / "topics.tsv").write_text("q1\thow\nno tab\n")
    with pytest.raises(InputError, match=r"topics.tsv, line 2: expected a query id, a tab"):
        load_collection_from_files(folder / "corpus.jsonl", tmp_path / "topics.tsv", tmp_path / "qrels.txt", "mine")


def test_arguana_matches_itself_by_name_and_by_content(tmp_path):
    assert load_collection(make(tmp_path / "ArguAna")).self_match is True
    queries = lines([{"_id": "d1", "text": "Flour  and water."}, {"_id": "d2", "text": "Ice, slowly flowing."}])
    same = make(tmp_path / "debates", queries=queries, qrels="d1\td2\t1\nd2\td1\t1\n")
    assert load_collection(same).self_match is True
    # Ids alone mean nothing: Cranfield numbers queries and documents from 1.
    queries = lines([{"_id": "d1", "text": "something else"}, {"_id": "d2", "text": "and more"}])
    other = make(tmp_path / "cranfield", queries=queries, qrels="d1\td2\t1\nd2\td1\t1\n")
    assert load_collection(other).self_match is False


def test_cqadupstack_gives_twelve_parts(tmp_path):
    folder = tmp_path / "cqadupstack"
    for number, part in enumerate(CQADUPSTACK_PARTS):
        make(folder / part, qrels=f"q1\td1\t{number + 1}\n")
    parts = load_collections(folder)
    assert [part.name for part in parts] == [f"cqadupstack/{name}" for name in CQADUPSTACK_PARTS]
    assert [part.qrels["q1"]["d1"] for part in parts] == list(range(1, 13))
    with pytest.raises(InputError, match="load_collections"):
        load_collection(folder)
    (folder / "tex" / "corpus.jsonl").unlink()
    with pytest.raises(InputError, match="only 11 of CQADupStack's parts; missing: tex"):
        load_collections(folder)


def test_any_other_collection_is_a_list_of_one(tmp_path):
    (only,) = load_collections(make(tmp_path / "kitchen"))
    assert only.name == "kitchen"


def test_results_of_parts_are_averaged_plainly():
    assert mean_results([{"ndcg@10": 0.2, "map": 1.0}, {"ndcg@10": 0.4, "map": 0.0}]) == pytest.approx(
        {"ndcg@10": 0.3, "map": 0.5}
    )
    for wrong in ([], [{"map": 1.0}, {"ndcg@10": 1.0}]):
        with pytest.raises(InputError, match="all need the same measures"):
            mean_results(wrong)


def test_judged_queries_need_text_and_judgments():
    collection = Collection("x", {}, {"a": "t", "b": "t", "c": "t"}, {"c": {"d": 1}, "a": {"d": 0}, "b": {}})
    assert collection.judged_queries() == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "documents", "judged"),
    [("scifact", 5183, 300), ("trec-dl-19", 7230, 43), ("cranfield", 1400, 225), ("cisi", 1460, 76)],
)
def test_real_collections(data_dir, name, documents, judged):
    collection = load_collection(data_dir / "beir" / name)
    assert (len(collection.documents), len(collection.judged_queries())) == (documents, judged)
    assert collection.self_match is False

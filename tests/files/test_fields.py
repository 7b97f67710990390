"""Null counts as absent, ids are strings or whole numbers, and every reader knows the same names of a field."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.cache.state_files import read_documents
from modeling_tsarank.eval.beir import LAZY_BYTES, read_corpus, read_queries
from modeling_tsarank.files.fields import FIELDS
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import document_text
from modeling_tsarank.trainers.data import list_building
from modeling_tsarank.trainers.rows import layout_of, read_document, to_row


ROOT = Path(__file__).parent.parent.parent


def written(folder: Path, record: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"_id": "first", "text": "the first"}) + "\n" + json.dumps(record) + "\n")
    return path


def as_ranked(folder: Path, record: Any) -> tuple[str | None, str]:
    document = read_documents(str(written(folder, record)))[1]
    return document.id, document.text


def as_uploaded(folder: Path, record: Any) -> tuple[str | None, str]:
    from modeling_tsarank.hub_cards.app_inputs import read_upload
    from modeling_tsarank.hub_cards.app_limits import Limits

    document = read_upload(written(folder, record), Limits())[1]
    return document.id, document.text


def as_pasted(folder: Path, record: Any) -> tuple[str | None, str]:
    from modeling_tsarank.hub_cards.app_inputs import read_pasted
    from modeling_tsarank.hub_cards.app_limits import Limits

    document = read_pasted(written(folder, record).read_text(), Limits())[1]
    return document.id, document.text


def as_corpus(lazy_bytes: int) -> Callable[[Path, Any], tuple[str | None, str]]:
    def read(folder: Path, record: Any) -> tuple[str | None, str]:
        corpus = read_corpus(written(folder, record), lazy_bytes)
        found = list(corpus)[1]
        return found, corpus[found].text

    return read


def as_table(folder: Path, record: Any) -> tuple[str | None, str]:
    datasets = pytest.importorskip("datasets")
    from modeling_tsarank.eval.hub_collections import table_documents

    if isinstance(record.get("_id"), bool | float | list | dict):
        raise InputError("row 1: a column of a table has one type")
    table = table_documents(datasets.Dataset.from_list([record]))
    found = next(iter(table))
    return found, table[found].text


def as_trained_on(folder: Path, record: Any) -> tuple[str | None, str]:
    found = read_document(record, "row 1: documents[0]")
    return found["id"], str(found["text"])


def as_query(folder: Path, record: Any) -> tuple[str | None, str]:
    return list(read_queries(written(folder, record)).items())[1]


def as_query_for_lists(folder: Path, record: Any) -> tuple[str | None, str]:
    query = list_building.read_queries([written(folder, record)])[1]
    return query.query_id, query.text


DOCUMENTS = {
    "rank, index": as_ranked,
    "upload": as_uploaded,
    "pasted": as_pasted,
    "evaluate": as_corpus(LAZY_BYTES),
    "evaluate, large corpus": as_corpus(0),
    "evaluate, Hub": as_table,
    "train": as_trained_on,
}
QUERIES = {"evaluate": as_query, "data lists": as_query_for_lists}
CASES = [(FIELDS["id"], FIELDS["text"], read) for read in DOCUMENTS.values()]
CASES += [(FIELDS["query_id"], FIELDS["query_text"], read) for read in QUERIES.values()]
NAMES = [*(f"document: {name}" for name in DOCUMENTS), *(f"query: {name}" for name in QUERIES)]


@pytest.mark.parametrize(("ids", "texts", "read"), CASES, ids=NAMES)
def test_every_reader_knows_every_name_and_takes_null_for_absent(tmp_path, ids, texts, read):
    for id_name in ids:
        for text_name in texts:
            nulls = dict.fromkeys([*ids, *texts, "title"])
            assert read(tmp_path, {**nulls, id_name: "d7", text_name: "yeast"}) == ("d7", "yeast")
            assert read(tmp_path, {id_name: 7, text_name: "yeast"}) == ("7", "yeast")


@pytest.mark.parametrize(("ids", "texts", "read"), CASES, ids=NAMES)
@pytest.mark.parametrize("text", [None, 3, ["a"], {"a": "b"}, True])
def test_a_text_that_is_null_or_no_text_is_refused_by_file_and_row(tmp_path, ids, texts, read, text):
    with pytest.raises(InputError, match=r"line 2|row 1|the corpus: no column") as caught:
        read(tmp_path, {ids[0]: "d7", texts[0]: text, "name": "x"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ids", "texts", "read"), CASES, ids=NAMES)
@pytest.mark.parametrize("identifier", [True, 1.5, ["a"], {"a": 1}, "", "\ud800", "a\0b"])
def test_an_id_is_a_string_or_a_whole_number(tmp_path, ids, texts, read, identifier):
    if read is as_table and identifier in ("", "\ud800"):
        pytest.skip("a table cannot hold it")
    with pytest.raises(InputError, match=r"line 2|row 1") as caught:
        read(tmp_path, {ids[0]: identifier, texts[0]: "yeast"})
    str(caught.value).encode()


@pytest.mark.parametrize("read", [as_corpus(LAZY_BYTES), as_corpus(0), as_query, as_query_for_lists])
def test_an_id_that_is_needed_and_null_is_refused_by_file_and_row(tmp_path, read):
    with pytest.raises(InputError, match="line 2: no '_id'"):
        read(tmp_path, {"_id": None, "text": "yeast"})


def test_an_id_that_is_null_leaves_the_number_of_the_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"_id": null, "text": "a"}\n{"_id": null, "text": "b"}\n')
    assert [document.id for document in read_documents(str(path))] == ["1", "2"]


def test_the_text_of_a_document_takes_null_for_absent():
    assert document_text({"text": None, "contents": "b", "title": None}) == "b"
    assert document_text({"content": "b", "title": "a"}) == "a b"
    with pytest.raises(InputError, match=r"document 3 has no field 'text'; its fields are: body"):
        document_text({"text": None, "body": "b"}, "document 3")


def test_rankgpt_rows_without_docids_keep_their_candidates():
    row = {
        "query": "q",
        "positive_passages": [{"docid": None, "text": "good"}],
        "retrieved_passages": [{"text": "good"}, {"docid": None, "text": "bad"}, {"text": "worse"}],
        "negative_passages": None,
    }
    assert [one["text"] for one in to_row(row, positives=True)["documents"]] == ["good", "bad", "worse"]


@pytest.mark.parametrize("positives", [True, False])
@pytest.mark.parametrize("absent", [{"pos_scores": None}, {"pos_scores": None, "neg_scores": None}])
def test_scores_that_are_null_are_absent(positives, absent):
    whole = {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1], "neg_scores": [0]}
    layout = layout_of(whole)
    row = {**whole, **absent}
    if len(absent) == 2:
        assert "teacher_scores" not in to_row(row, positives, layout)
    else:
        with pytest.raises(InputError, match="missing"):
            to_row(row, positives, layout)


@pytest.mark.parametrize("field", ["query", "documents", "permutation"])
def test_a_field_of_a_training_row_that_is_null_is_missing(field):
    row = {"query": "q", "documents": ["a", "b"], "permutation": [1, 0]}
    assert to_row({**row, "labels": None, "teacher_scores": None, "query_id": None}) == to_row(row)
    with pytest.raises(InputError, match=f"{field}.*: missing"):
        to_row({**row, field: None})


def test_the_names_of_fields_are_written_down_once():
    """A tuple or list of two or more names of one field anywhere else would be a second table."""
    tables = [set(names) for names in FIELDS.values() if len(names) > 1]
    own = {ROOT / "modeling_tsarank" / "files" / "fields.py", ROOT / "modeling_tsarank" / "ranking_text.py"}
    for folder in ("modeling_tsarank", "eval", "trainers", "hub_cards"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if path not in own and isinstance(node, ast.Tuple | ast.List) and len(node.elts) > 1:
                    names = {part.value for part in node.elts if isinstance(part, ast.Constant)}
                    second = len(names) == len(node.elts) and any(names <= table for table in tables)
                    assert not second, f"{path}, line {node.lineno}: {sorted(names)}"


# Where the records of files are read, and where null and the names of fields are tried out there. What is not tried
# in this file goes through `to_row`, whose tests are here, or has tests beside its own.
READ_BY = {
    "eval/beir.py": "here",
    "eval/run_files.py": "tests/eval/test_run_files.py: candidates without scores, ids or queries",
    "hub_cards/dataset_publishing.py": "rows are counted",
    "modeling_tsarank/cache/state_files.py": "here",
    "modeling_tsarank/jobs/bulk_pairs.py": "tests/modeling_tsarank/jobs/test_bulk_pairs.py: bad pairs",
    "trainers/data/list_building.py": "here",
    "trainers/data/readers.py": "tests/trainers/data/test_readers.py: fields of a declaration's own names",
    "trainers/recipes/judged.py": "tests/trainers/recipes/test_development.py: a raw row",
    "trainers/recipes/release_data.py": "what was written on the lines before",
    "trainers/training_data.py": "to_row",
    "trainers/training_sources.py": "to_row",
}


def test_every_place_that_reads_records_is_known() -> None:
    """Whoever reads rows anew is asked here what null does to them."""
    readers = re.compile(
        r"\b(read_records|read_json_rows|read_jsonl|read_parquet|read_csv)\(|= parse_json_object\(line"
    )
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("modeling_tsarank", "eval", "trainers", "hub_cards", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if "files" not in path.parts and readers.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(READ_BY)
    for where in READ_BY.values():
        file, is_file, _ = where.partition(": ")
        assert not is_file or (ROOT / file).is_file()

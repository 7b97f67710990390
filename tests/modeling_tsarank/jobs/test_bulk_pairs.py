"""Files of pairs: read in blocks, under every name of their columns; what is wrong is named with its place."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pair_files import in_input_order, make_pairs, output_bytes, read_output, write_jsonl, write_parquet

from modeling_tsarank.files.fields import FIELDS
from modeling_tsarank.jobs.bulk_pairs import PairFiles, count_pairs, find_files, read_blocks
from modeling_tsarank.jobs.bulk_scoring import BulkJob, score_pairs
from modeling_tsarank.ranking_errors import InputError


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3).filter(any),
    shard=st.integers(1, 25),
    row_group=st.integers(1, 30),
    kind=st.sampled_from(["parquet", "jsonl", "mixed"]),
    every=st.integers(1, 4),
)
def test_shards_cover_every_pair_once_in_order(tmp_path_factory, sizes, shard, row_group, kind, every) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    pairs = make_pairs(sum(sizes))
    paths, start = [], 0
    for number, size in enumerate(sizes):
        part = pairs[start : start + size]
        parquet = kind == "parquet" or (kind == "mixed" and number % 2 == 0)
        if parquet:
            paths.append(write_parquet(folder / f"{number}.parquet", part, row_group, start))
        else:
            paths.append(write_jsonl(folder / f"{number}.jsonl", part, start))
        start += size
    files = PairFiles(tuple(paths), keep=("id",))
    assert count_pairs(files) == sizes
    blocks = list(read_blocks(files, shard, lambda index: index % every == 0))
    assert [block.index for block in blocks] == list(range(len(blocks)))
    expected = [min(shard, size - first) for size in sizes for first in range(0, size, shard)]
    assert [block.rows for block in blocks] == expected
    starts = [sum(expected[:index]) for index in range(len(blocks))]
    for block, first in zip(blocks, starts, strict=True):
        if block.index % every:
            assert not block.queries
            continue
        assert block.start == first
        assert block.queries == [query for query, _ in pairs[first : first + block.rows]]
        texts = [d if isinstance(d, str) else f"{d['title']} {d['text']}".strip() for d in block.documents]
        assert texts == [document for _, document in pairs[first : first + block.rows]]
        assert block.kept["id"].to_pylist() == [f"p{n}" for n in range(first, first + block.rows)]


def test_bad_pairs_are_named_or_skipped(model, tmp_path) -> None:
    pairs = make_pairs(100)
    rows = [{"query": query, "document": document} for query, document in pairs]
    rows[57]["query"] = "  "
    rows[58]["document"] = 7
    rows[59]["query"] = None
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = BulkJob((str(path),), str(tmp_path / "out"), shard_pairs=25)
    with pytest.raises(InputError, match=r"a\.jsonl, pair 5[789] \(counted from 0\): '(query|document)'"):
        score_pairs(job, model)
    job = replace(job, output=str(tmp_path / "skipped"), skip_bad_pairs=True)
    assert score_pairs(job, model)["unscored"] == 3
    table = read_output(tmp_path / "skipped").sort_by("row")
    scores = table.column("score").to_pylist()
    assert [i for i, score in enumerate(scores) if score is None] == [57, 58, 59]
    good = [i for i in range(100) if i not in (57, 58, 59)]
    np.testing.assert_allclose([scores[i] for i in good], model.predict([pairs[i] for i in good]), atol=1e-5)


def test_tables_of_pairs_are_scored_as_json_lines_are(model, tmp_path) -> None:
    pairs = [(query, f'{document}, "quoted"\nand two lines') for query, document in make_pairs(12)]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([("query", "document"), *pairs])
        job = BulkJob((str(tmp_path / name),), str(tmp_path / f"{name}-scores"), shard_pairs=5)
        assert score_pairs(job, model)["pairs"] == 12
        np.testing.assert_allclose(in_input_order(tmp_path / f"{name}-scores"), model.predict(pairs), atol=1e-5)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_every_name_of_query_and_document_is_known_and_null_is_absent(model, tmp_path, kind) -> None:
    expected = model.predict([("bread", "yeast rises")])
    for query, document in itertools.product(FIELDS["query"], FIELDS["document"]):
        path = tmp_path / f"{query}-{document}.{kind}"
        nulls = dict.fromkeys([*FIELDS["query"], *FIELDS["document"]])
        row = {"other": "x", **nulls, query: "bread", document: "yeast rises"}
        if kind == "parquet":
            pa.parquet.write_table(pa.Table.from_pylist([row]), path)
        else:
            path.write_text(json.dumps(row) + "\n")
        score_pairs(BulkJob((str(path),), str(tmp_path / path.stem)), model)
        np.testing.assert_allclose(read_output(tmp_path / path.stem)["score"].to_pylist(), expected, atol=1e-6)


def test_a_bad_pair_of_a_later_file_is_named_by_its_place_there(model, tmp_path) -> None:
    first = write_parquet(tmp_path / "a.parquet", make_pairs(7))
    second = write_parquet(tmp_path / "b.parquet", [("bread", "yeast"), (" ", "oven")])
    job = BulkJob((first, second), str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"b\.parquet, pair 1 \(counted from 0\): 'query' is empty"):
        score_pairs(job, model)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b'{"query": "a", "document": "b"}\n{"query": ', "p.jsonl", r"p.jsonl, line 2: not JSON"),
        (b'{"query": "a", "body": "b"}\n', "p.jsonl", "no field 'document'; fields: query, body"),
        (b'{"query": "a", "text": null}\n', "p.jsonl", r"p.jsonl, pair 0 \(counted from 0\): 'text' must be a string"),
        (
            b'{"query": "a", "text": "b"}\n{"query": null, "text": "b"}\n',
            "p.jsonl",
            r"p.jsonl, pair 1 \(counted from 0\): 'query' must be a string, got NoneType",
        ),
        (b"[1]\n", "p.jsonl", "expected a JSON object, found list"),
        (b"\xff\n", "p.jsonl", "line 1: not UTF-8"),
        (b"\n \n", "p.jsonl", "no pairs in"),
        (b"PAR1 but not really", "p.parquet", "cannot be read as Parquet"),
        (b"x", "p.csv", "no pairs in"),
        (b"x", "p.xlsx", "unknown kind of file '.xlsx'"),
        (None, "p.parquet", "no file"),
    ],
)
def test_bad_files_are_one_clear_error(model, tmp_path, content, name, message) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        score_pairs(BulkJob((str(path),), str(tmp_path / "out")), model)


def test_bad_arguments(model, tmp_path) -> None:
    path = write_parquet(tmp_path / "a.parquet", make_pairs(10))
    job = BulkJob((path,), str(tmp_path / "out"))
    for changes, message in [
        ({"query": "question"}, "no column 'question'; its columns: query, document, id"),
        ({"keep": ("score",)}, "cannot keep the column 'score'"),
        ({"shard_pairs": 0}, "shard_pairs must be a whole number"),
        ({"output": path}, "is a file; --output must be a folder"),
        ({"pairs": (str(tmp_path / "empty"),)}, r"has no \.parquet, \.jsonl, \.csv or \.tsv file"),
    ]:
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            score_pairs(replace(job, **changes), model)
    assert find_files([str(tmp_path)]) == (path,)


def test_a_cut_parquet_file_is_an_error_and_the_shards_before_it_stay(model, tmp_path) -> None:
    path = Path(write_parquet(tmp_path / "a.parquet", make_pairs(3000, documents=2500), 100))
    data = bytearray(path.read_bytes())
    # The first column chunk of a late row group: what lies before it can still be read.
    late = pq.ParquetFile(path).metadata.row_group(20).column(0)
    place = late.dictionary_page_offset or late.data_page_offset
    data[place : place + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as Parquet"):
        score_pairs(BulkJob((str(path),), str(tmp_path / "out"), shard_pairs=500), model)
    assert len(output_bytes(tmp_path / "out")) == 4

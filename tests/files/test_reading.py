"""Damaged, foreign and hostile files are one line that names the file and, where there are lines, the line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socket
from pathlib import Path

import pytest

from modeling_tsarank.files.reading import (
    open_stream,
    parse_json,
    parse_yaml,
    read_json,
    read_json_object,
    read_json_rows,
    read_jsonl,
    read_lines,
    text_lines,
)
from modeling_tsarank.files.tables import read_csv, read_parquet
from modeling_tsarank.ranking_errors import InputError, TSARankError


GOOD = b'{"_id": "1", "text": "a"}\n'
PACKED = gzip.compress(GOOD * 500, mtime=0)  # the same bytes in every process that collects these tests
DEEP = b"[" * 100_000
# Content and what must be said of it, line 2 being the bad one where there are lines.
DAMAGE = {
    "deep lists": (GOOD + b'{"a": ' + DEEP + b"\n", "nested more than 100 deep"),
    "deep lists that Python can hold": (GOOD + b'{"a":' + b"[" * 150 + b"]" * 150 + b"}\n", "nested more than 100"),
    "deep objects": (GOOD + b'{"a": ' * 5000 + b"1" + b"}" * 5000 + b"\n", "nested more than 100 deep"),
    "integer of 5,000 digits": (GOOD + b'{"a": ' + b"9" * 5000 + b"}\n", "5,000 digits"),
    "integer that no float holds": (GOOD + b'{"a": 1' + b"0" * 400 + b"}\n", "401 digits"),
    "float that no float holds": (GOOD + b'{"a": 1e999}\n', "1e999 is too large a number"),
    "NaN": (GOOD + b'{"a": NaN}\n', "NaN is not a JSON number"),
    "Infinity": (GOOD + b'{"a": [-Infinity]}\n', "Infinity is not a JSON number"),
    "half an object": (GOOD + b'{"a": \n', "not JSON"),
    "invalid UTF-8": (GOOD + b'{"a": "\xff"}\n', r"not UTF-8 \(byte 0xff\)"),
    "a NUL": (GOOD + b'{"a": "\0"}\n', "NUL"),
}
READERS = {
    "json lines": ("rows.jsonl", lambda path: list(read_jsonl(path))),
    "json rows": ("rows.json", lambda path: list(read_json_rows(path))),
}


def refused(read, path: Path) -> str:
    with pytest.raises(TSARankError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(path) in message
    return message


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_damaged_rows_are_one_line_with_the_line_number(tmp_path, damage, reader, pack):
    name, read = READERS[reader]
    content, said = DAMAGE[damage]
    suffix = {bytes: "", gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}[pack]
    path = tmp_path / (name + suffix)
    path.write_bytes(pack(content))
    message = refused(read, path)
    assert f"{path}, line 2: " in message
    with pytest.raises(TSARankError, match=said):
        read(path)


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "a NUL"])
def test_a_damaged_json_file_is_one_line_with_the_line_number(tmp_path, damage):
    line, said = DAMAGE[damage][0].splitlines()[1], DAMAGE[damage][1]
    path = tmp_path / "config.json"
    path.write_bytes(b'{"x":\n' + line + b"\n}\n")
    message = refused(read_json, path)
    assert f"{path}, line " in message
    if damage != "half an object":
        assert f"{path}, line 2: " in message
        with pytest.raises(InputError, match=said):
            read_json(path)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".gz", PACKED[:-9]),
        (".gz", PACKED[: len(PACKED) // 2]),
        (".gz", PACKED[:20] + b"\0\xff" * 9 + PACKED[38:]),
        (".gz", PACKED[:-4] + b"\0\0\0\0"),
        (".gz", PACKED + b"trailing garbage"),
        (".gz", GOOD),
        (".gz", PACKED[:3]),
        (".bz2", GOOD),
        (".bz2", bz2.compress(GOOD)[:-5]),
        (".xz", GOOD),
        (".xz", lzma.compress(GOOD)[:-5]),
    ],
)
def test_damaged_packing_is_one_line(tmp_path, suffix, content):
    for name, read in {
        **READERS,
        "json": ("one.json", read_json),
        "table": ("t.csv", lambda p: list(read_csv(p))),
    }.values():
        path = tmp_path / (name + suffix)
        path.write_bytes(content)
        assert "damaged or incomplete" in refused(read, path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf_16_is_named(tmp_path, encoding):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((GOOD.decode() * 2).encode(encoding))
    assert "UTF-16" in refused(lambda path: list(read_jsonl(path)), path)
    assert "UTF-16" in refused(read_json, path)
    assert "UTF-16" in refused(lambda path: list(read_csv(path)), path)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert [row for _, row in read_jsonl(path)] == [row for _, row in read_json_rows(path)] == [read_json(path)]
    table = tmp_path / "rows.csv"
    table.write_bytes(b"\xef\xbb\xbfquery,document\na,b\n")
    assert [row for _, row in read_csv(table)] == [{"query": "a", "document": "b"}]


def test_what_is_no_file_is_refused_and_pipes_are_read(monkeypatch, tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket.jsonl")
        os.mkdir("folder.jsonl")
        for name in (
            "folder.jsonl",
            "socket.jsonl",
            "/dev/zero",
            "missing.jsonl",
            "a\0b",
            "socket.jsonl/below",
            "x" * 300,
        ):
            with pytest.raises(TSARankError) as caught:
                list(read_jsonl(name))
            assert "\n" not in str(caught.value)
    reading, writing = os.pipe()
    os.write(writing, GOOD)
    os.close(writing)
    assert [row for _, row in read_jsonl(f"/proc/self/fd/{reading}")] == [{"_id": "1", "text": "a"}]
    os.close(reading)


def test_empty_files_have_no_rows_and_are_no_json(tmp_path):
    path = tmp_path / "empty.json"
    for content in (b"", b"\xef\xbb\xbf", b"\n \r\n"):
        path.write_bytes(content)
        assert list(read_jsonl(path)) == list(read_json_rows(path)) == list(read_lines(path)) == []
        refused(read_json, path)


def test_rows_come_from_arrays_lines_and_single_objects(tmp_path):
    path = tmp_path / "rows.json"
    for content, expected in {
        '[{"a": 1},\n {"a": 2}]': [{"a": 1}, {"a": 2}],
        '{"a": 1}\n\n{"a": "}{"}\n': [{"a": 1}, {"a": "}{"}],
        '{"a":\n 1}': [{"a": 1}],
        '{"a": {}\n}': [{"a": {}}],
        '{"a": "}"}': [{"a": "}"}],
        '{"data": [{"a": 1}]}': [{"a": 1}],
        '"[1] > [2]"': None,
    }.items():
        path.write_text(content)
        if expected is None:
            refused(lambda path: list(read_json_rows(path)), path)
        else:
            assert [row for _, row in read_json_rows(path)] == expected


def test_the_right_shape_is_asked_for(tmp_path):
    path = tmp_path / "training_run.json"
    path.write_text("[1]")
    assert "expected a JSON object" in refused(read_json_object, path)
    path.write_text('{"loss": NaN, "best": Infinity}')
    assert read_json_object(path, allow_nan=True)["best"] == float("inf")


def test_parsing_says_only_the_place_it_was_given():
    with pytest.raises(InputError, match=r"^the answer: JSON nested more than 100 deep$"):
        parse_json(DEEP, "the answer")
    with pytest.raises(InputError, match=r"^the answer: not JSON \(99999999999999999999… is too large a number"):
        parse_json("9" * 5000, "the answer")


def test_lines_end_at_line_feeds_only(tmp_path):
    content = "one\x0cstill\u2028still\x85\r\ntwo".encode()
    assert [line for _, line in text_lines(io.BytesIO(content), "x")] == ["one\x0cstill\u2028still\x85\r\n", "two"]
    with open_stream(__file__) as stream:
        assert stream.readline().startswith(b'"""Damaged')


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 50 + b"PAR1", None, "cut", "middle"])
def test_broken_parquet_is_one_line(tmp_path, content):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    if not isinstance(content, bytes):
        table = pyarrow.table({"text": pyarrow.array([b"caf\xe9"] * 3).view(pyarrow.binary()).cast(pyarrow.binary())})
        if content is None:  # a string column that is not UTF-8
            raw = pyarrow.array([b"caf\xe9"] * 3, pyarrow.binary())
            buffers = raw.buffers()
            table = pyarrow.table({"text": pyarrow.StringArray.from_buffers(3, buffers[1], buffers[2])})
        import pyarrow.parquet as parquet

        parquet.write_table(table, path)
        whole = path.read_bytes()
        content = {None: whole, "cut": whole[:-30], "middle": whole[:10] + b"\xff" * 40 + whole[50:]}[content]
    path.write_bytes(content)
    assert "cannot be read as Parquet" in refused(lambda path: list(read_parquet(path)), path)


@pytest.mark.parametrize(
    "content", ["a,b\n1\n", "a,b\n1,2,3\n", 'a,b\n"never closed,2\n', 'a,b\n"x"y,2\n', "a,b\n1,\0\n"]
)
def test_wrong_tables_are_one_line_with_the_line_number(tmp_path, content):
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert f"{path}, line " in refused(lambda path: list(read_csv(path)), path)


@pytest.mark.parametrize("text", ['a: "x\\0y"', 'a: [1, {"b\\0": 2}]', 'a: &one [*one, "\\x00"]', '"\\u0000"'])
def test_a_nul_in_yaml_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"plan\.yaml: a text in it has a NUL character"):
        parse_yaml(text, "plan.yaml")
    many = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 20)}]\n" for n in range(1, 30))
    assert len(parse_yaml(many, "plan.yaml")) == 30  # 20**29 texts, if each alias was followed

"""A secret is found in files of every kind, or the file is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch

from modeling_tsarank import InputError
from modeling_tsarank.hub_cards.file_selection import PublishedFile
from modeling_tsarank.hub_cards.secret_scan import find_secrets, refuse_secrets


# Put together here so that no scanner takes this file for a leak.
TOKENS = {
    "hugging face": "hf_" + "aB3" * 12,
    "aws": "AKIA" + "ABCD" * 4,
    "anthropic": "sk-" + "ant-" + "aB3d" * 26,
    "slack": "xoxb-" + "12345-" * 9,
    "address": "https://alice:" + "hunter22@example.org/x",
    "token in an address": "https://" + "0a1b" * 10 + "@example.org/x",
}
FILLER = "".join(f"Line {n} says nothing of note, but it is a line.\n" for n in range(400))


def text(token: str) -> str:
    return f"{FILLER}and here: {token} !\n{FILLER}"


def compressed_parquet(column: Any, **schema: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"column": column})
    pa.parquet.write_table(
        table.replace_schema_metadata(schema or None), sink, compression="zstd", write_statistics=False
    )
    return sink.getvalue()


def arrow(token: str) -> bytes:
    table = pa.table({"column": pa.array([text(token)])})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def archive(kind: str, files: dict[str, bytes], **pax: str) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=f"w:{kind}", format=tarfile.PAX_FORMAT, pax_headers=pax) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


def safetensors(metadata: dict[str, str]) -> bytes:
    tensors = {
        f"layer.{n}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n in range(2000)
    }
    header = json.dumps({**tensors, "__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(0).randbytes(8000)


def saved(save: Callable[[io.BytesIO], None]) -> bytes:
    sink = io.BytesIO()
    save(sink)
    return sink.getvalue()


def notebook(token: str) -> bytes:
    cell = {"cell_type": "code", "source": ["x = 1\n"], "outputs": [{"text": f"a line\n{token}\nanother"}]}
    return json.dumps({"cells": [cell], "nbformat": 4}).encode()


def sentencepiece(token: str) -> bytes:
    """A model of three pieces: each a text behind its length, and a score."""
    pieces = [b"<unk>", token.encode(), b"bread"]
    inside = [b"\n" + bytes([len(piece)]) + piece + b"\x15" + struct.pack("<f", -1.5) for piece in pieces]
    return b"".join(b"\n" + bytes([len(piece) % 128]) + piece for piece in inside) + b"\x12\x02\xff\xfe"


ESCAPES: dict[str, Callable[[str], str]] = {
    "hexadecimal": lambda letter: f"\\x{ord(letter):02x}",
    "octal": lambda letter: f"\\{ord(letter):03o}",
    "json": lambda letter: f"\\u{ord(letter):04X}",
    "javascript": lambda letter: f"\\u{{{ord(letter):x}}}",
    "address": lambda letter: f"%{ord(letter):02X}",
    "html": lambda letter: f"&#{ord(letter)};",
    "html-hexadecimal": lambda letter: f"&#x{ord(letter):x};",
}
DICTIONARY = pa.dictionary(pa.int32(), pa.string())
Maker = Callable[[str], bytes]
KINDS: dict[str, Maker] = {
    # Text.
    "notes.txt": lambda token: text(token).encode(),
    "mark.csv": lambda token: b"\xef\xbb\xbf" + text(token).encode(),
    "umlauts.txt": lambda token: text(f"é {token} ü").encode(),
    "escaped.json": lambda token: json.dumps({"text": f"first\n{token}\nlast"}).encode(),
    "escaped-twice.jsonl": lambda token: json.dumps({"text": json.dumps({"text": f"first\n{token}\n"})}).encode(),
    "escaped-html.json": lambda token: json.dumps({"text": f"token={token}"}).replace("=", "\\u003d").encode(),
    "escaped-slashes.json": lambda token: json.dumps({"text": f"first {token}"}).replace("/", "\\/").encode(),
    "notebook.ipynb": notebook,
    **{
        f"{name}.txt": lambda token, escape=escape: text("".join(map(escape, token))).encode()
        for name, escape in ESCAPES.items()
    },
    "entities.html": lambda token: text(
        token.translate(str.maketrans({":": "&colon;", "/": "&sol;", "@": "&commat;", "_": "&lowbar;", "-": "&#45;"}))
    ).encode(),
    # Gzip.
    "rows.jsonl.gz": lambda token: gzip.compress(text(token).encode()),
    "large.jsonl.gz": lambda token: gzip.compress((FILLER * 20 + text(token)).encode()),
    "two-members.gz": lambda token: gzip.compress(FILLER.encode()) + gzip.compress(text(token).encode()),
    "misnamed.txt": lambda token: gzip.compress(text(token).encode()),
    # Tables.
    "string.parquet": lambda token: compressed_parquet(pa.array([text(token)])),
    "large-string.parquet": lambda token: compressed_parquet(pa.array([text(token)], pa.large_string())),
    "string-view.parquet": lambda token: compressed_parquet(pa.array([text(token)], pa.string_view())),
    "dictionary.parquet": lambda token: compressed_parquet(pa.array([text(token)] * 3).cast(DICTIONARY)),
    "binary.parquet": lambda token: compressed_parquet(pa.array([text(token).encode()], pa.binary())),
    "large-binary.parquet": lambda token: compressed_parquet(pa.array([text(token).encode()], pa.large_binary())),
    "binary-view.parquet": lambda token: compressed_parquet(pa.array([text(token).encode()], pa.binary_view())),
    "fixed.parquet": lambda token: compressed_parquet(pa.array([text(token).encode()], pa.binary(len(text(token))))),
    "list.parquet": lambda token: compressed_parquet(pa.array([["a"], ["b", text(token)]])),
    "struct.parquet": lambda token: compressed_parquet(pa.array([{"a": [{"b": {"c": text(token)}}]}])),
    "map.parquet": lambda token: compressed_parquet(pa.array([[(text(token), 1)]], pa.map_(pa.string(), pa.int8()))),
    "map-values.parquet": lambda token: compressed_parquet(
        pa.array([[("k", text(token))]], pa.map_(pa.string(), pa.string()))
    ),
    "dictionaries.parquet": lambda token: compressed_parquet(pa.array([["a", text(token)]], pa.list_(DICTIONARY))),
    "metadata.parquet": lambda token: compressed_parquet(pa.array(["x"]), note=f"see {token}"),
    "field.parquet": lambda token: saved(
        lambda sink: pa.parquet.write_table(
            pa.table(
                [pa.array([["x"]])],
                pa.schema([pa.field("a", pa.list_(pa.field("b", pa.string(), metadata={"n": token})))]),
            ),
            sink,
        )
    ),
    # Weights and tokenizers.
    "header.safetensors": lambda token: safetensors({"note": f"see {token}"}),
    "long.safetensors": lambda token: safetensors({"a": FILLER * 3, "zz": f"line\n{token}"}),
    "spiece.model": sentencepiece,
}


@pytest.mark.parametrize("name", KINDS)
def test_a_planted_token_is_found(name: str, tmp_path: Path) -> None:
    for what, token in TOKENS.items():
        content = KINDS[name](token)
        path = tmp_path / f"file-{name}"
        path.write_bytes(content)
        found = find_secrets(PublishedFile(f"folder/{name}", path if what == "aws" else content))
        assert [finding.place for finding in found if finding.place], (what, found)
        assert all(finding.place for finding in found), f"{what}: readable, and yet refused: {found}"
        assert not any(token in f"{finding}" for finding in found)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_file_without_a_token_passes(name: str) -> None:
    assert find_secrets(PublishedFile(name, KINDS[name]("nothing of that kind"))) == []


@pytest.mark.parametrize("kind", ["hugging face", "aws", "anthropic", "slack"])
def test_a_token_in_the_name_of_a_file_is_found(kind: str) -> None:
    for path in (f"logs/{TOKENS[kind]}.txt", f"{TOKENS[kind]}/a.txt", f"run-{TOKENS[kind]}.parquet"):
        assert any(finding.place == "its name" for finding in find_secrets(PublishedFile(path, b"nothing"))), path


def test_a_parquet_file_of_numbers_and_dates_passes() -> None:
    dates = pa.array([1, 10**14], pa.timestamp("s"))  # no date of Python's
    table = pa.table({"dates": dates, "vectors": [[0.5], [1.5]], "flags": [True, None], "text": ["a", None]})
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink)
    assert find_secrets(PublishedFile("a.parquet", sink.getvalue())) == []


def test_ordinary_texts_and_weights_have_no_secrets() -> None:
    weights = random.Random(1).randbytes(3_000_000)
    tensors = {"a": {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}}
    header = json.dumps(tensors).encode()
    content = struct.pack("<Q", len(header)) + header + weights
    assert find_secrets(PublishedFile("model.safetensors", content)) == []
    for words in ("task-oriented-retrieval-with-small-language-models-2024", "xBZh1 BZhang PK PAR1 Obj ORC PACK"):
        assert find_secrets(PublishedFile("a.txt", words.encode())) == []
    for start in ("BZhang wrote", "ORC is a format", "PACK your things", "Obj 1", "x^2 + y^2", "PK", "100%", "a & b;"):
        assert find_secrets(PublishedFile("a.txt", f"{start} and so on\n{FILLER}".encode())) == []
    for address in ("https://example.org/@a-name-of-some-length", "ssh://git@example.org/x", "see ://a@b and a@b.org"):
        assert find_secrets(PublishedFile("a.txt", address.encode())) == []


TOKEN = TOKENS["hugging face"].encode()
NOISE = random.Random(2).randbytes(70_000)
PLAIN = safetensors({"note": "none"})
REFUSED: dict[str, bytes] = {
    # No text, or no UTF-8.
    "latin-1.txt": "é und ü".encode("latin-1"),
    "utf-16.txt": text("x").encode("utf-16"),
    "utf-16-le.csv": text("x").encode("utf-16-le"),
    "utf-32.txt": text("x").encode("utf-32"),
    "one-nul.txt": b"a\0b\n" + FILLER.encode(),
    "cut.txt": "é".encode()[:1],
    "a.dat": NOISE,
    "a": NOISE,
    "a.pdf": b"%PDF-1.7\n" + NOISE,
    "protocol-4.pkl": pickle.dumps({"a": [1.5] * 50}, 4),
    "weights.pt": saved(lambda sink: torch.save({"w": torch.rand(500)}, sink)),
    "arrays.npz": saved(lambda sink: np.savez(sink, b=np.zeros(9))),
    "model.gguf": b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + NOISE,
    "a.png": b"\x89PNG\r\n\x1a\n" + NOISE,
    "a.jpg": b"\xff\xd8\xff\xe0" + NOISE,
    "rows.db": b"SQLite format 3\0" + bytes(99),
    "table.feather": arrow("x"),
    # Packed otherwise, or more than once.
    "files.zip": zipped({"a.txt": TOKEN}),
    "files.tar": archive("", {"a.txt": TOKEN}),
    "files.tar.gz": archive("gz", {"a.txt": TOKEN}),
    "twice.gz": gzip.compress(gzip.compress(TOKEN)),
    "rows.jsonl.bz2": bz2.compress(TOKEN),
    "rows.jsonl.xz": lzma.compress(TOKEN),
    "rows.joblib": zlib.compress(TOKEN),
    # Something behind or inside of what could be read.
    "with-archive.txt": FILLER.encode() + zipped({"a.txt": TOKEN}),
    "with-gzip.jsonl": FILLER.encode() + gzip.compress(TOKEN),
    "with-archive.png": b"\x89PNG\r\n\x1a\n" + zipped({"a.txt": TOKEN}),
    "longer.safetensors": PLAIN + zipped({"a.txt": TOKEN}),
    "trailing.jsonl.gz": gzip.compress(b"x") + NOISE,
    "packed.parquet": compressed_parquet(pa.array([gzip.compress(TOKEN)])),
    "images.parquet": compressed_parquet(pa.array([{"bytes": b"\x89PNG\r\n\x1a\n", "path": "a.png"}])),
    "nul.parquet": compressed_parquet(pa.array([b"a\0b"])),
    # Damaged, cut or encrypted.
    "cut.safetensors": PLAIN[:-50],
    "no.safetensors": b"x",
    "a.parquet": b"PAR1" + NOISE + b"PAR1",
    "cut.parquet": compressed_parquet([FILLER])[:-50],
    "encrypted.parquet": b"PARE" + NOISE,
    "cut.jsonl.gz": gzip.compress(FILLER.encode())[:-500],
    "damaged.jsonl.gz": b"\x1f\x8b\x08\0" + NOISE,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_searched_is_refused_unless_allowed(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(REFUSED[name])
    for source in (REFUSED[name], tmp_path / "file"):
        file = PublishedFile(f"data/{name}", source)
        with pytest.raises(InputError, match="cannot be scanned for secrets") as caught:
            refuse_secrets([file])
        assert f"--not-secret data/{name}" in str(caught.value)
        assert "\n" not in str(caught.value)
        refuse_secrets([file], [f"data/{name}"])


def test_a_token_where_two_pieces_meet_is_found_once_and_words_are_no_tokens_there() -> None:
    token = TOKENS["aws"]
    for shift in range(0, 30, 3):
        filler = "word " * (1 << 18)
        before = filler[: (1 << 20) - shift]
        (found,) = find_secrets(PublishedFile("a.txt", f"{before} {token} {filler}".encode()))
        assert found.what == "an AWS access key"
        assert find_secrets(PublishedFile("a.txt", f"{before} {token}{'A' * 5000} {filler}".encode())) == []


def test_what_cannot_be_opened_or_needs_a_missing_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = find_secrets(PublishedFile("gone.txt", tmp_path / "gone.txt"))
    assert (found.place, found.what) == ("", "it cannot be read: No such file or directory")
    content = compressed_parquet(["x"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (found,) = find_secrets(PublishedFile("rows.parquet", content))
    assert found.place == ""
    assert "needs a missing package" in found.what

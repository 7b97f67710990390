"""A secret is found in files of every kind, or the file is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import sqlite3
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
from modeling_tsarank.hub_cards import secret_unpacking
from modeling_tsarank.hub_cards.file_selection import PublishedFile
from modeling_tsarank.hub_cards.secret_scan import find_secrets, refuse_secrets


# Put together here so that no scanner takes this file for a leak.
TOKENS = {
    "hugging face": "hf_" + "aB3" * 12,
    "aws": "AKIA" + "ABCD" * 4,
    "anthropic": "sk-" + "ant-" + "aB3d" * 26,
    "slack": "xoxb-" + "12345-" * 9,
    "address": "https://alice:" + "hunter22@example.org/x",
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


def codec(name: str, content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, name) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def safetensors(metadata: dict[str, str]) -> bytes:
    tensors = {
        f"layer.{n}.weight": {"dtype": "F32", "shape": [1], "data_offsets": [4 * n, 4 * n + 4]} for n in range(2000)
    }
    header = json.dumps({**tensors, "__metadata__": metadata}).encode()
    return struct.pack("<Q", len(header)) + header + random.Random(0).randbytes(8000)


def gguf(token: str) -> bytes:
    strings = {"general.name": "a model", "tokenizer.chat_template": f"see {token}"}
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, len(strings))
    for key, value in strings.items():
        content += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IQ", 8, len(value)) + value.encode()
    return content + random.Random(0).randbytes(5000)


def sqlite(token: str, tmp: Path) -> bytes:
    path = tmp / "rows.db"
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute('CREATE TABLE "odd ""name" (id INTEGER, content TEXT, packed BLOB)')
    # So long that it goes over many pages of the file.
    connection.execute('INSERT INTO "odd ""name" VALUES (1, ?, ?)', (f"{'x' * 4050} {token} " * 3, b""))
    connection.commit()
    connection.close()
    return path.read_bytes()


def blob(token: str, tmp: Path) -> bytes:
    path = tmp / "blobs.db"
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (packed BLOB)")
    connection.execute("INSERT INTO t VALUES (?)", (gzip.compress(text(token).encode()),))
    connection.commit()
    connection.close()
    return path.read_bytes()


def png(kind: bytes, content: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0\0")
    parts = [chunk(b"IHDR", header), chunk(kind, content), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(save: Callable[[io.BytesIO], None]) -> bytes:
    sink = io.BytesIO()
    save(sink)
    return sink.getvalue()


def notebook(token: str) -> bytes:
    cell = {"cell_type": "code", "source": ["x = 1\n"], "outputs": [{"text": f"a line\n{token}\nanother"}]}
    return json.dumps({"cells": [cell], "nbformat": 4}).encode()


Maker = Callable[[str], bytes]
DICTIONARY = pa.dictionary(pa.int32(), pa.string())
KINDS: dict[str, Maker] = {
    # Text.
    "notes.txt": lambda token: text(token).encode(),
    "one-nul.txt": lambda token: b"a\0b\n" + text(token).encode(),
    "nul-inside.txt": lambda token: text(f"{token[:9]}\0{token[9:]}").encode(),
    "utf-16.txt": lambda token: text(token).encode("utf-16"),
    "utf-16-le.csv": lambda token: text(token).encode("utf-16-le"),
    "utf-16-be.csv": lambda token: text(token).encode("utf-16-be"),
    "utf-32.txt": lambda token: text(token).encode("utf-32"),
    "latin-1.txt": lambda token: text(f"é {token} ü").encode("latin-1"),
    "escaped.json": lambda token: json.dumps({"text": f"first\n{token}\nlast"}).encode(),
    "escaped-twice.jsonl": lambda token: json.dumps({"text": json.dumps({"text": f"first\n{token}\n"})}).encode(),
    "escaped-html.json": lambda token: json.dumps({"text": f"token={token}"}).replace("=", "\\u003d").encode(),
    "escaped-slashes.json": lambda token: json.dumps({"text": f"first {token}"}).replace("/", "\\/").encode(),
    "notebook.ipynb": notebook,
    # Compressed.
    "lzma.joblib": lambda token: lzma.compress(text(token).encode(), lzma.FORMAT_ALONE),
    "two.jsonl.bz2": lambda token: bz2.compress(FILLER.encode()) + bz2.compress(text(token).encode()),
    "rows.jsonl.gz": lambda token: gzip.compress(text(token).encode()),
    "large.jsonl.gz": lambda token: gzip.compress((FILLER * 20 + text(token)).encode()),
    "two-members.gz": lambda token: gzip.compress(FILLER.encode()) + gzip.compress(text(token).encode()),
    "misnamed.txt": lambda token: gzip.compress(text(token).encode()),
    "rows.jsonl.bz2": lambda token: bz2.compress(text(token).encode()),
    "rows.jsonl.xz": lambda token: lzma.compress(text(token).encode()),
    "rows.lzma": lambda token: lzma.compress(text(token).encode(), lzma.FORMAT_ALONE),
    "rows.jsonl.zst": lambda token: codec("zstd", text(token).encode()),
    "rows.jsonl.lz4": lambda token: codec("lz4", text(token).encode()),
    "rows.jsonl.br": lambda token: codec("brotli", text(token).encode()),
    "rows.joblib": lambda token: zlib.compress(pickle.dumps([text(token)])),
    "utf-16.gz": lambda token: gzip.compress(text(token).encode("utf-16")),
    # Archives.
    "files.zip": lambda token: zipped({"a/b.txt": text(token).encode()}),
    "zip-in-zip.zip": lambda token: zipped({"inner.zip": zipped({"b.txt": text(token).encode()})}),
    "name-in.zip": lambda token: zipped({f"{token.replace('/', '_') if '://' not in token else token}": b"x"}),
    "files.tar": lambda token: archive("", {"a": b"x", "b.txt.gz": gzip.compress(text(token).encode())}),
    "files.tar.gz": lambda token: archive("gz", {"a": b"x", "b.txt": text(token).encode()}),
    "header.tar.xz": lambda token: archive("xz", {"a": b"x"}, comment=f"see {token}"),
    "files.tar.zst": lambda token: codec("zstd", archive("", {"b.txt": text(token).encode()})),
    "parquet-in.tar.gz": lambda token: archive("gz", {"b.parquet": compressed_parquet([text(token)])}),
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
    "bytes.parquet": lambda token: compressed_parquet(pa.array([list(text(token).encode())], pa.list_(pa.uint8()))),
    "packed.parquet": lambda token: compressed_parquet(pa.array([gzip.compress(text(token).encode())])),
    "images.parquet": lambda token: compressed_parquet(
        pa.array([{"bytes": png(b"zTXt", b"k\0\0" + zlib.compress(text(token).encode())), "path": "a.png"}])
    ),
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
    "table.feather": arrow,
    "rows.db": lambda token: b"",  # below: needs a folder
    "blobs.db": lambda token: b"",
    # Weights and other binary files.
    "header.safetensors": lambda token: safetensors({"note": f"see {token}"}),
    "long.safetensors": lambda token: safetensors({"a": FILLER * 3, "zz": f"line\n{token}"}),
    "model.gguf": gguf,
    **{f"protocol-{n}.pkl": lambda token, n=n: pickle.dumps({"a": [1.5] * 50, "b": token}, n) for n in range(6)},
    "weights.pt": lambda token: saved(lambda sink: torch.save({"w": torch.rand(500), "note": token}, sink)),
    "legacy.bin": lambda token: saved(
        lambda sink: torch.save({"w": torch.rand(500), "note": token}, sink, _use_new_zipfile_serialization=False)
    ),
    "array.npy": lambda token: saved(lambda sink: np.save(sink, np.array(["x", token]))),
    "arrays.npz": lambda token: saved(lambda sink: np.savez_compressed(sink, a=np.array(["x", token]), b=np.zeros(9))),
    "record.msgpack": lambda token: (
        b"\x82\xa1a\x01\xa1b\xd9" + bytes([len(token)]) + token.encode() + bytes(range(250))
    ),
    # Images.
    "text.png": lambda token: png(b"tEXt", b"Comment\0" + token.encode()),
    "ztxt.png": lambda token: png(b"zTXt", b"Comment\0\0" + zlib.compress(token.encode())),
    "itxt.png": lambda token: png(b"iTXt", b"Comment\0\1\0en\0c\0" + zlib.compress(token.encode())),
    "comment.jpg": lambda token: (
        b"\xff\xd8\xff\xfe" + struct.pack(">H", len(token) + 2) + token.encode() + bytes(range(256))
    ),
    "exif.webp": lambda token: (
        b"RIFF\x99\0\0\0WEBPEXIF" + bytes(range(40)) + token.encode("utf-16-le") + bytes(range(250))
    ),
}


def content_of(name: str, token: str, tmp: Path) -> bytes:
    special = {"rows.db": sqlite, "blobs.db": blob}
    return special[name](token, tmp) if name in special else KINDS[name](token)


@pytest.mark.parametrize("name", KINDS)
def test_a_planted_token_is_found(name: str, tmp_path: Path) -> None:
    for what, token in TOKENS.items():
        content = content_of(name, token, tmp_path)
        path = tmp_path / f"file-{name}"
        path.write_bytes(content)
        found = find_secrets(PublishedFile(f"folder/{name}", path if what == "aws" else content))
        assert [finding.place for finding in found if finding.place], (what, found)
        assert all(finding.place for finding in found), f"{what}: readable, and yet refused: {found}"
        assert not any(token in f"{finding}" for finding in found)


@pytest.mark.parametrize("name", KINDS)
def test_the_same_file_without_a_token_passes(name: str, tmp_path: Path) -> None:
    assert find_secrets(PublishedFile(name, content_of(name, "nothing of that kind", tmp_path))) == []


def test_random_weights_of_any_name_have_no_secrets() -> None:
    content = random.Random(1).randbytes(3_000_000)
    for name in ("model.bin", "model.onnx", "model.gguf", "tokenizer.model", "a.pkl", "a.jpg"):
        assert find_secrets(PublishedFile(name, content)) == []
    weights = struct.pack("<Q", 2) + b"{}" + content
    assert find_secrets(PublishedFile("model.safetensors", weights)) == []
    for words in ("task-oriented-retrieval-with-small-language-models-2024", "xBZh1 BZhang PK PAR1 Obj ORC PACK"):
        assert find_secrets(PublishedFile("a.txt", words.encode())) == []
    for start in ("BZhang wrote", "ORC is a format", "PACK your things", "Obj 1", "x^2 + y^2", "PK"):
        assert find_secrets(PublishedFile("a.txt", f"{start} and so on\n{FILLER}".encode())) == []


def encrypted_zip() -> bytes:
    content = bytearray(zipped({"a.txt": b"x" * 99}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def packed_often(times: int) -> bytes:
    content = b"x"
    for _ in range(times):
        content = gzip.compress(content)
    return content


NOISE = random.Random(2).randbytes(70_000)
UNREADABLE: dict[str, bytes] = {
    "a.7z": b"7z\xbc\xaf\x27\x1c" + NOISE,
    "a.rar": b"Rar!\x1a\x07\x01\0" + NOISE,
    "a.h5": b"\x89HDF\r\n\x1a\n" + NOISE,
    "a.pdf": b"%PDF-1.7\n" + NOISE,
    "a.avro": b"Obj\x01" + NOISE,
    "a.orc": b"ORC" + NOISE,
    "a.woff2": b"wOF2" + NOISE,
    "a.bin": b"Salted__" + NOISE,
    "a.dat": NOISE,
    "a": NOISE,
    "a.parquet": b"PAR1" + NOISE + b"PAR1",
    "encrypted.parquet": b"PARE" + NOISE,
    "not.parquet": NOISE,
    "encrypted.zip": encrypted_zip(),
    "cut.zip": zipped({"a.txt": FILLER.encode()})[:-30],
    "cut.jsonl.gz": gzip.compress(FILLER.encode())[:-500],
    "damaged.jsonl.gz": b"\x1f\x8b\x08\0" + NOISE,
    "trailing.jsonl.gz": gzip.compress(b"x") + NOISE,
    "trailing.jsonl.bz2": bz2.compress(b"x") + gzip.compress(b"y"),
    "trailing.zz": zlib.compress(b"x") + zlib.compress(b"y"),
    "cut.jsonl.xz": lzma.compress(FILLER.encode())[:-50],
    "cut.jsonl.bz2": bz2.compress(FILLER.encode())[:-50],
    "cut.jsonl.zst": codec("zstd", FILLER.encode())[:-50],
    "cut.feather": arrow("x")[:-50],
    "damaged.db": b"SQLite format 3\0" + NOISE,
    "7z-in.zip": zipped({"a.7z": b"7z\xbc\xaf\x27\x1c" + NOISE}),
    "7z-in.parquet": compressed_parquet(pa.array([b"7z\xbc\xaf\x27\x1c" + NOISE])),
    "often.gz": packed_often(9),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_searched_is_refused_unless_allowed(name: str) -> None:
    file = PublishedFile(f"data/{name}", UNREADABLE[name])
    with pytest.raises(InputError, match="cannot be searched for secrets") as caught:
        refuse_secrets([file])
    assert f"--not-secret data/{name}" in str(caught.value)
    assert "\n" not in str(caught.value)
    refuse_secrets([file], [f"data/{name}"])


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zlib.compress, lambda content: zipped({"a": content})])
def test_what_unpacks_without_end_is_refused(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_unpacking, "_ROOM", 1_000_000)
    bomb = pack(bytes(30_000_000))
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        refuse_secrets([PublishedFile("bomb.gz", bomb)])
    assert find_secrets(PublishedFile("rows.gz", gzip.compress(FILLER.encode() * 50))) == []


def test_a_message_never_shows_a_secret_that_is_a_name() -> None:
    token = TOKENS["hugging face"]
    for content in (f"and {TOKENS['aws']}".encode(), b"7z\xbc\xaf\x27\x1c" + NOISE):
        for packed in (zipped({f"a\n{token}.txt": content}), archive("gz", {f"a\n{token}.txt": content})):
            with pytest.raises(InputError) as caught:
                refuse_secrets([PublishedFile("files.zip", packed)])
            assert token not in str(caught.value)
            assert "\n" not in str(caught.value)


def test_what_cannot_be_opened_or_needs_a_missing_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = find_secrets(PublishedFile("gone.txt", tmp_path / "gone.txt"))
    assert (found.place, found.what) == ("", "it cannot be read: No such file or directory")
    content = codec("zstd", b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (found,) = find_secrets(PublishedFile("rows.zst", content))
    assert found.place == ""
    assert "needs a missing package" in found.what


@pytest.mark.parametrize("key", ["sk-" + "0a1b2c3d" * 4, "sk-" + "or-v1-" + "0a1b2c3d" * 8])
def test_a_key_of_hexadecimal_digits_is_found_in_a_pickle(key: str) -> None:
    assert find_secrets(PublishedFile("state.pkl", pickle.dumps({"key": key})))
    assert not find_secrets(
        PublishedFile("state.pkl", pickle.dumps({"name": "task-of-some-model-trained-on-2024-data"}))
    )

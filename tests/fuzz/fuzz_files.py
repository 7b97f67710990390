"""Files for the fuzz: one valid set for every command, and ways to make one odd."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml


ODD_VALUES: tuple[Any, ...] = (
    None,
    [],
    {},
    [None],
    {"a": []},
    0,
    -1,
    1.5,
    10**30,
    2**63,
    float("nan"),
    float("inf"),
    -0.0,
    True,
    "",
    " ",
    "x",
    "\ud800",
    "a\0b",
    "a\tb",
    "a\nb",
    "\u202e",
    "x" * 5000,
    "1e999",
    "../..",
    "/",
    [[[[]]]],
    {"": None},
)


def valid_files(
    folder: Path, tiny_model: Path, write_collection: Callable[..., Any], main: Callable[[list[str]], int]
) -> Path:
    """Writes a small valid input of every kind into `folder`; what commands make is made by `main`."""
    shutil.copytree(tiny_model, folder / "model")
    write_collection(folder / "beir", documents=14, queries=6, seed=1)
    records = [json.loads(line) for line in (folder / "beir" / "corpus.jsonl").read_text().splitlines()]
    texts = [record["text"] for record in records]

    def lines(name: str, rows: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    two = [{**one, "text": f"The {one['text']}. A {one['text'][::-1]} follows."} for one in records]
    lines("passages.jsonl", two)
    lines("documents.jsonl", records[:5])
    lines("documents.jsonl.gz", records[:5])
    (folder / "documents.txt").write_text("\n".join(texts[:4]) + "\n")
    lines("pairs.jsonl", [{"query": "bread oven", "document": text, "id": str(i)} for i, text in enumerate(texts[:6])])
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"query": "ship", "document": {"text": t, "title": "a"}} for t in texts[:6]])
    pyarrow.parquet.write_table(table, folder / "pairs.parquet")
    generator = random.Random(2)
    for name in ("a.trec", "b.trec"):
        rows = []
        for query in range(6):
            for rank, record in enumerate(generator.sample(records[query : query + 8], 8), 1):
                rows.append(f"q{query} Q0 {record['_id']} {rank} {9 - rank}.5 {name}\n")
        (folder / name).write_text("".join(rows))
    documents = [{"docid": str(i), "title": None, "text": text} for i, text in enumerate(texts)]
    lines("cpt.jsonl", [{"query": "bread oven", "document": text} for text in texts])
    lines(
        "sft.jsonl",
        [
            {
                "query_id": str(i),
                "query": "bread oven",
                "positives": [documents[i]],
                "negatives": documents[i + 1 : i + 4],
            }
            for i in range(4)
        ],
    )
    lines(
        "distill.jsonl",
        [
            {
                "query_id": str(i),
                "query": "ship",
                "documents": documents[i : i + 3],
                "permutation": [2, 0, 1],
                "kind": "a",
            }
            for i in range(4)
        ],
    )
    pairs = [{"query": f"{t.split()[0]} {i}", "document": t, "source": "log"} for i, t in enumerate(texts)]
    lines("table.jsonl", pairs)
    weak = {
        "title": "Pairs",
        "sources": [{"type": "title_body", "path": str(folder / "table.jsonl")}],
        "filters": ["clean", {"length": {"document_words": [2, 400]}}, "repeats"],
        "licences": {"log*": "mit"},
        "sampling": {"rows": 8, "temperature": 3, "validation": 2, "seed": 0},
    }
    (folder / "weak.yaml").write_text(yaml.safe_dump(weak))
    data = folder / "raw"
    for name in ("weak_pairs", "supervised", "beir/exam"):
        (data / name).mkdir(parents=True)
    shutil.copy(folder / "table.jsonl", data / "weak_pairs" / "title_body.jsonl")
    rows = [{"query": row["query"], "positives": [row["document"]], "negatives": [texts[0]]} for row in pairs[1:]]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (data / "supervised" / "texts.jsonl.gz").write_bytes(packed)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (data / "beir" / "exam" / name).write_text(json.dumps({"_id": "1", "text": f"entirely other {name}"}) + "\n")
    weak_source = {"type": "title_body", "path": "$TSARANK_DATA/weak_pairs/title_body.jsonl"}
    (data / "weak.yaml").write_text(yaml.safe_dump({"sources": [weak_source], "filters": ["clean"]}))
    mining = {"depth": 6, "count": 2, "sampling": "top"}
    plan = {
        "weak_recipe": "weak.yaml",
        "leakage": ["$TSARANK_DATA/beir"],
        "cpt": {"rows": 10, "temperature": 1, "validation": 2},
        "dev_depth": 3,
        "sft_rows": 10,
        "sources": [{"name": "texts", "files": ["texts"], "dev": 2, "mining": mining}],
        "mixes": {"all": {"texts": 1}},
        "pools": ["texts"],
        "distill_queries": 2,
        "distill_documents": 5,
    }
    (data / "plan.yaml").write_text(yaml.safe_dump(plan))
    passages = [{"text": text, "grade": n % 3, "score": None} for n, text in enumerate(texts[:4])]
    (data / "marco").mkdir()
    kinds = {
        "graded": [{"query": row["query"], "passages": passages} for row in pairs[:5]],
        "listed": [{"query": row["query"], "candidates": texts[:3]} for row in pairs[5:8]],
        "passages": [{"text": text} for text in texts[:5]],
    }
    for name, rows in kinds.items():
        lines(f"raw/marco/{name}.jsonl.gz", rows)
    (data / "marco" / "more.tsv.gz").write_bytes(gzip.compress(b"1\tof what is bread made\n2\tship\n", mtime=0))
    development = {
        "leakage": ["$TSARANK_DATA/beir"],
        "collections": [{"name": "graded", "files": ["marco/graded"], "candidates": 3, "queries": 3, "words": 9}],
        "lists": [
            {"name": "texts", "files": ["supervised/texts"], "pool": ["marco/passages"], "mining": mining},
            {"name": "listed", "files": ["marco/listed"], "queries": 2},
        ],
        "pools": [{"name": "web", "passages": ["marco/passages"], "queries": ["marco/listed", "marco/more.tsv.gz"]}],
    }
    (data / "development.yaml").write_text(yaml.safe_dump(development))
    shutil.copytree(folder / "beir", folder / "lists")
    shutil.copy(folder / "distill.jsonl", folder / "lists" / "train.jsonl")
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    shutil.copy(folder / "model" / "model.safetensors", adapter / "adapter_model.safetensors")
    for line in (
        "tune-fusion {0}/a.trec {0}/b.trec --qrels {0}/beir/qrels/test.tsv --output {0}/fusion.json",
        "calibrate {0}/a.trec --qrels {0}/beir/qrels/test.tsv --output {0}/calibration.json",
        "index --documents {0}/documents.txt --store {0}/store --model {0}/model --device cpu",
        "data weak-pairs --config {0}/weak.yaml --output {0}/weak-set",
        "data queries cropped --corpus {0}/passages.jsonl --count 4 --min-words 1 --output {0}/cropped.jsonl",
        "evaluate --dataset {0}/beir --model {0}/model --device cpu --top-k 4 --quiet --output {0}/results",
    ):
        assert main([word.format(folder) for word in line.split()]) == 0, line
    return folder


# ---- odd files -------------------------------------------------------------------------------------


def _json_rows(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.decode().splitlines() if line.strip()]


def _change_value(value: Any, generator: random.Random) -> Any:
    """One value inside of nested lists and objects made odd, dropped or moved."""
    odd = generator.choice(ODD_VALUES)
    if isinstance(value, dict) and value and generator.random() < 0.85:
        name = generator.choice(list(value))
        how = generator.random()
        if how < 0.15:
            return {key: inner for key, inner in value.items() if key != name}
        if how < 0.2:
            return {**value, "x\ud800": odd}
        return {**value, name: _change_value(value[name], generator)}
    if isinstance(value, list) and value and generator.random() < 0.85:
        place = generator.randrange(len(value))
        if generator.random() < 0.15:
            return [*value[:place], *value[place:][:1], *value[place:]]
        return [*value[:place], _change_value(value[place], generator), *value[place + 1 :]]
    return odd


def _odd_json(data: bytes, generator: random.Random) -> bytes:
    try:
        rows = [json.loads(data)]
    except ValueError:
        rows = _json_rows(data)
    if not rows:
        return b"null"
    place = generator.randrange(len(rows))
    rows[place] = _change_value(rows[place], generator)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _raw_json(data: bytes, generator: random.Random) -> bytes:
    """JSON that only a text can hold: nested deeply, or with an endless number."""
    text = generator.choice(
        [
            "[" * 100_000,
            '{"a":' * 50_000,
            "[" * 3000 + "]" * 3000,
            "9" * 5000,
            '{"_id": ' + "9" * 5000 + ', "text": "a"}',
            '{"query": 1e999, "text": -1e999}',
            '{"text": "\\ud800", "_id": "\\udfff"}',
            "NaN",
            '{"a": 1, "a": 2}',
            "null",
            '"text"',
            "{}",
            "[]",
        ]
    ).encode()
    return text if generator.random() < 0.6 else data + text + b"\n"


def _odd_yaml(data: bytes, generator: random.Random) -> bytes:
    if generator.random() < 0.3:
        texts = [
            "a: &a [*a]",
            "? [a]\n: b",
            "- - -",
            "a: !!python/object:os.system x",
            "{",
            "1: 2",
            "\t",
            "a: 2026-99-99",
        ]
        texts += [
            "a: [" * 2000,
            "a: " + "9" * 5000,
            "&a [*a, *a]",
            'sources: "\\0"',
            "no: yes\non: off",
            "a: 0x",
            "- a",
        ]
        return generator.choice(texts).encode()
    return yaml.dump(_change_value(yaml.safe_load(data), generator), allow_unicode=True).encode(
        "utf-8", "surrogatepass"
    )


def _odd_fields(data: bytes, generator: random.Random) -> bytes:
    """One field of a line of columns made odd, dropped or doubled."""
    rows = data.split(b"\n")
    place = generator.randrange(len(rows))
    fields = rows[place].split(b"\t") if b"\t" in rows[place] else rows[place].split(b" ")
    field = generator.randrange(len(fields))
    odd = generator.choice(
        ["", "nan", "inf", "-1", "1e999", "9" * 5000, "x" * 5000, "\0", "\u00a0", "\x0b", "0x1", "é", "1_0"]
    )
    fields[field : field + generator.choice([1, 1, 1, 2, 0])] = [odd.encode()]
    rows[place] = generator.choice([b"\t", b" ", b"  "]).join(fields)
    return b"\n".join(rows)


def _damaged(data: bytes, generator: random.Random) -> bytes:
    """Any file, damaged without knowing what it is."""
    place = generator.randrange(len(data) + 1)
    flipped = bytearray(data or b"x")
    for _ in range(generator.choice([1, 1, 3, 30])):
        flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
    return generator.choice(
        [
            b"",
            b"\n",
            b" \n\t\n",
            b"\0" * 64,
            b"\xef\xbb\xbf" + data,
            b"\xff\xfe" + data.decode("latin-1").encode("utf-16-le"),
            b"\xfe\xff" + data.decode("latin-1").encode("utf-16-be"),
            data[:place],
            data[place:],
            data[:place] + b"\0" + data[place:],
            data[:place] + b"\xff\xfe\x80" + data[place:],
            data[:place] + b"\xed\xa0\x80" + data[place:],
            data.replace(b"\n", b"\r"),
            data.replace(b"\n", b"\r\n"),
            data + data,
            bytes(flipped),
            bytes(flipped),
            generator.randbytes(200),
            gzip.compress(data, mtime=0),
            gzip.compress(data, mtime=0)[:-9],
            b"PAR1" + data + b"PAR1",
            b"\x1f\x8b" + data,
            b"x" * 300_000,
        ]
    )


def odd_content(name: str, data: bytes, generator: random.Random) -> bytes:
    """The content of a file made odd, mostly as its kind can be."""
    if name.endswith(".gz"):
        inside = gzip.decompress(data)
        if generator.random() < 0.5:
            return gzip.compress(odd_content(name.removesuffix(".gz"), inside, generator), mtime=0)
        packed = bytearray(gzip.compress(inside, mtime=0))
        packed[generator.randrange(len(packed))] ^= 255
        return generator.choice([bytes(packed), data[: len(data) // 2], data[:-1], data + b"x", inside, data + data])
    how = generator.random()
    if how < 0.3:
        return _damaged(data, generator)
    if name.endswith((".jsonl", ".json")):
        return _odd_json(data, generator) if how < 0.8 else _raw_json(data, generator)
    if name.endswith((".yaml", ".yml")):
        return _odd_yaml(data, generator)
    if name.endswith((".trec", ".tsv", ".csv", ".txt")):
        return _odd_fields(data, generator)
    return _damaged(data, generator)


class Pipe:
    """A named pipe whose writer closes after the content, however often it is opened, until `close`."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._ends = path, data, False
        os.mkfifo(path)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ends:
            try:
                number = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads
                time.sleep(0.002)
                continue
            os.set_blocking(number, True)
            try:
                os.write(number, self._data[:30_000])
            except OSError:
                pass
            finally:
                os.close(number)
            time.sleep(0.002)

    def close(self) -> None:
        """Ends the writer."""
        self._ends = True
        self._thread.join(5)


def odd_copy(source: Path, folder: Path, generator: random.Random) -> tuple[Path, Pipe | None]:
    """An odd copy of a file or folder, under its own name; of a folder, one file in it is odd or missing."""
    target = folder / f"odd{generator.randrange(10**6)}" / source.name
    target.parent.mkdir(parents=True)
    if source.is_dir():
        shutil.copytree(source, target)
        inside = sorted(path for path in target.rglob("*") if path.is_file())
        if generator.random() < 0.1:
            shutil.rmtree(target)
            target.mkdir()
            return target, None
        chosen = generator.choice(inside)
        data = chosen.read_bytes()
        if generator.random() < 0.15:
            chosen.unlink()
            if generator.random() < 0.5:
                chosen.mkdir()
            return target, None
        chosen.write_bytes(odd_content(chosen.name, data, generator))
        return target, None
    data = source.read_bytes()
    how = generator.random()
    if how < 0.04:
        target.mkdir()
    elif how < 0.07:
        target.symlink_to(target)
    elif how < 0.10 and os.geteuid() == 0:
        os.mknod(target, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # a null device of our own: it may be replaced
    elif how < 0.14:
        return target, Pipe(target, odd_content(source.name, data, generator) if how < 0.12 else data)
    elif how < 0.18:
        other = generator.choice([".jsonl", ".json", ".parquet", ".txt", ".gz", ".trec", ".tsv", ".zst", ".yaml", ""])
        target = target.with_suffix(other)
        target.write_bytes(data)
    else:
        target.write_bytes(odd_content(source.name, data, generator))
    return target, None

"""Files of pairs to score, and the scores that were written for them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


WORDS = ["bread", "dough", "yeast", "harbour", "pilot", "ship", "channel", "bees", "dance", "glacier", "violin", "bow"]


def make_pairs(count: int, documents: int = 20, seed: int = 0) -> list[tuple[str, str]]:
    """Random pairs in which every document occurs with several queries, far apart."""
    source = random.Random(seed)
    texts = [" ".join(source.choices(WORDS, k=source.randint(1, 30))) for _ in range(documents)]
    return [(" ".join(source.choices(WORDS, k=source.randint(1, 5))), source.choice(texts)) for _ in range(count)]


def write_parquet(path: Path, pairs: list[tuple[str, str]], row_group: int = 1000, first: int = 0) -> str:
    table = pa.table(
        {
            "query": [query for query, _ in pairs],
            "document": [document for _, document in pairs],
            "id": [f"p{first + i}" for i in range(len(pairs))],
        }
    )
    pq.write_table(table, path, row_group_size=row_group)
    return str(path)


def write_jsonl(path: Path, pairs: list[tuple[str, str]], first: int = 0) -> str:
    lines = []
    for i, (query, document) in enumerate(pairs):
        title, _, text = document.partition(" ")
        whole = {"title": title, "text": text} if i % 2 else document
        lines.append(json.dumps({"query": query, "document": whole, "id": f"p{first + i}", "n": i}) + "\n")
        if i % 5 == 0:
            lines.append(" \n")
    path.write_text("".join(lines))
    return str(path)


def read_output(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("scores-*.parquet"))])


def in_input_order(folder: Path) -> np.ndarray:
    table = read_output(folder).sort_by("row")
    assert table.column("row").to_pylist() == list(range(table.num_rows))
    return table.column("score").to_numpy()


def output_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("scores-*.parquet"))}

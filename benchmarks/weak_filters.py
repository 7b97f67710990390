"""How fast, and in how much memory, pairs stream through the filters: made-up pairs with known duplicates and leaks.

    python benchmarks/weak_filters.py [--pairs 1000000] [--state-only] [--output FILE.json]

A pair is a query of 4 to 12 words and a document of 30 to 120, drawn by Zipf's law from 50,000 made-up words. One in
20 repeats an earlier pair, one in 20 an earlier document with one word of 20 changed, one in 1,000 holds a passage of
a made-up test collection of 5,000 documents. Everything is written to parquet in the end, as `tsarank data weak-pairs`
does. Peak RSS is the process's, Python and libraries included. `--state-only` skips the texts and puts random
signatures of that many pairs into what `near_duplicates` and `repeats` remember: all that grows with their number.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.trainers.data.filters import BATCH, Pipeline, declare_steps
from modeling_tsarank.trainers.data.filters_duplicates import QUERY_PERMUTATIONS
from modeling_tsarank.trainers.data.filters_index import KeyTable, SignatureIndex
from modeling_tsarank.trainers.data.weak_output import Spool, write_shards
from modeling_tsarank.trainers.data.weak_sampling import Sampling, choose
from modeling_tsarank.trainers.data.weak_text import PERMUTATIONS
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES, Pair


class Maker:
    """Draws texts and remembers a few thousand earlier documents."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        syllables = [a + b for a in "bcdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
        picks = self.generator.integers(0, len(syllables), size=(50_000, 3))
        self.words = np.array(["".join(syllables[n] for n in row) for row in picks])
        weights = 1 / np.arange(1, len(self.words) + 1)
        self.shares = np.cumsum(weights / weights.sum())
        self.planted = {"repeats": 0, "near_duplicates": 0, "leakage": 0}

    def text(self, fewest: int, most: int) -> list[str]:
        """A text as words."""
        places = np.searchsorted(self.shares, self.generator.random(self.generator.integers(fewest, most + 1)))
        return self.words[np.minimum(places, len(self.words) - 1)].tolist()

    def pairs(self, count: int, passages: list[str]) -> Iterator[Pair]:
        """Pairs with planted copies."""
        earlier: deque[Pair] = deque(maxlen=5_000)
        types = list(PAIR_TYPES)
        for number in range(count):
            kind = self.generator.random()
            if kind < 0.05 and earlier:
                self.planted["repeats"] += 1
                yield self.draw(earlier)
                continue
            query, document = self.text(4, 12), self.text(30, 120)
            if kind < 0.1 and earlier:
                self.planted["near_duplicates"] += 1
                document = self.draw(earlier).document.split()
                document[::20] = self.text(len(document[::20]), len(document[::20]))
            elif kind < 0.101:
                self.planted["leakage"] += 1
                document = [*document[:20], *passages[self.generator.integers(len(passages))].split()[:40]]
            pair = Pair(" ".join(query), " ".join(document), types[number % len(types)], "made")
            if kind >= 0.101:
                earlier.append(Pair(pair.query, pair.document, pair.type, pair.source))
            yield pair

    def draw(self, earlier: deque[Pair]) -> Pair:
        """One of the earlier pairs, without what was computed of it."""
        pair = earlier[int(self.generator.integers(len(earlier)))]
        return Pair(pair.query, pair.document, pair.type, pair.source)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_collection(folder: Path, maker: Maker) -> list[str]:
    """A test collection in BEIR's layout; returns its passages."""
    passages = [" ".join(maker.text(40, 80)) for _ in range(5_000)]
    folder.mkdir()
    lines = [json.dumps({"_id": str(n), "title": "", "text": text}) for n, text in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "who pilots the ship"}\n', encoding="utf-8")
    return passages


def measure(count: int, folder: Path) -> dict[str, Any]:
    """Streams `count` pairs through the filters into shards."""
    maker = Maker()
    passages = write_collection(folder / "made", maker)
    declared = [
        "clean",
        "length",
        {"boilerplate": {"min_distinct_share": 0.0}},
        {"language": {"min_probability": 0.0}},
        {"lexical": {"min_words": 0}},
        {"repeats": {"per_query": 1000}},
        "near_duplicates",
        {"leakage": {"collections": [str(folder / "made")]}},
    ]
    pipeline = Pipeline(declare_steps(declared))
    at_start, marks = peak_mib(), []
    spool = Spool(folder / "spool")
    started, cpu = time.perf_counter(), time.process_time()
    kept = 0
    for kept, pair in enumerate(pipeline.run(maker.pairs(count, passages)), start=1):
        spool.add(pair)
        if kept % (count // 5) == 0:
            marks.append({"kept": kept, "peak_mib": round(peak_mib())})
    filtered = time.perf_counter() - started
    wanted = Sampling().allocate(spool.counts)
    write_shards(spool, choose(spool.counts, wanted, 0), folder, 0)
    whole = time.perf_counter() - started
    pipeline.close()
    return {
        "pairs": count,
        "kept": kept,
        "pairs_per_second": round(count / whole),
        "pairs_per_second_of_cpu": round(count / (time.process_time() - cpu)),
        "seconds": {
            "filters": round(sum(one.seconds for one in pipeline.counts), 1),
            "making the pairs and the spool": round(filtered - sum(one.seconds for one in pipeline.counts), 1),
            "writing": round(whole - filtered, 1),
            **{one.name: round(one.seconds, 1) for one in pipeline.counts},
        },
        "peak_mib_at_start": round(at_start),
        "peak_mib_on_the_way": marks,
        "peak_mib": round(peak_mib()),
        "planted": maker.planted,
        "dropped": {one.name: dict(one.dropped) for one in pipeline.counts if one.dropped},
    }


def measure_state(count: int) -> dict[str, Any]:
    """Memory of what the filters remember of `count` kept pairs, without the work on their texts."""
    generator = np.random.default_rng(0)
    index = SignatureIndex(extra=QUERY_PERMUTATIONS + 2)
    tables = [KeyTable() for _ in range(3)]
    at_start, marks = peak_mib(), []
    started = time.process_time()
    for done in range(0, count, BATCH):
        rows = min(BATCH, count - done)
        values = generator.integers(0, 2**32, size=(rows, PERMUTATIONS + QUERY_PERMUTATIONS + 2), dtype=np.uint32)
        index.candidates(values[:, :PERMUTATIONS])
        index.add(values[:, :PERMUTATIONS], values[:, PERMUTATIONS:])
        for table in tables:
            table.add(generator.integers(0, 2**63, size=rows).astype(np.uint64), np.zeros(rows))
        if done // (count // 5) != (done + rows) // (count // 5):
            marks.append({"pairs": done + rows, "peak_mib": round(peak_mib())})
    cpu = time.process_time() - started
    index.close()
    return {
        "pairs": count,
        "cpu_seconds": round(cpu, 1),
        "peak_mib_at_start": round(at_start),
        "peak_mib_on_the_way": marks,
        "peak_mib": round(peak_mib()),
        "expected_mib_of_tables": round(count * (20 + 3) * 12 / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--state-only", action="store_true", help="only what the filters remember")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure_state(args.pairs) if args.state_only else measure(args.pairs, Path(folder))
    text = json.dumps(measured, indent=2)
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()

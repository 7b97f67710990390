"""`tsarank score` over a million pairs: memory from start to end, killed and run again, on this process and on Ray.

    python benchmarks/bulk_scoring.py FOLDER [--pairs 1000000] [--kills 3] [--no-ray] [--output FILE.json]

FOLDER, new or empty, takes the pairs (20 queries a document, in random order), a model of one small layer with random
weights, and the results. The command runs three times with --by-document: uninterrupted, with its resident memory
looked at every half second; killed with SIGKILL while sorting and at later points, each time run again, its files
compared byte by byte with the first; and with --engine ray on two actors, its scores compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow
import pyarrow.parquet
import torch
from rank_speed import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_tsarank import TSARankModel
from modeling_tsarank.jobs.bulk_scoring import SHARD_PAIRS


QUERIES_PER_DOCUMENT = 20
EVERY = 0.5  # seconds between looks


def make_model(folder: Path) -> None:
    """A language model of the benchmark's words, one layer of 16 channels."""
    words = ["<unk>", "<eos>", "Document", "Query", ":", *dict.fromkeys(WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    plain = folder.with_name(f"{folder.name}-plain")
    LlamaForCausalLM(config).save_pretrained(plain)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(plain)
    TSARankModel.from_backbone(str(plain), dtype="float32").save_pretrained(folder)


def make_pairs(path: Path, count: int) -> None:
    """`count` pairs in random order, a Parquet file written in pieces."""
    order = np.random.default_rng(0).permutation(count)
    schema = pyarrow.schema([("query", pyarrow.string()), ("document", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for part in np.array_split(order, max(count // 20_000, 1)):
            rows = [(_words(f"q{number}", 5), _words(f"d{number // QUERIES_PER_DOCUMENT}", 25)) for number in part]
            columns = zip(*rows, strict=True)
            writer.write_table(pyarrow.table(dict(zip(schema.names, map(list, columns), strict=True)), schema=schema))


def _words(seed: str, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def resident(process: psutil.Process) -> int:
    """Bytes of a process and its children."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def run(command: list[str], output: Path, kill_when: Callable[[int], bool]) -> Iterator[tuple[float, int, int]]:
    """Runs the command, or kills it; yields (seconds, finished files, resident bytes) as it goes."""
    log = output.with_name(f"{output.name}.log")
    with log.open("ab") as file:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=file, stderr=file)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            files = len(list(output.glob("scores-*.parquet")))
            yield time.monotonic() - started, files, resident(watched)
            if kill_when(files):
                process.send_signal(signal.SIGKILL)
                process.wait()
                return
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}; see {log}")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of scores."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("scores-*.parquet")}


def scores(folder: Path) -> np.ndarray:
    """The scores in the order of the input."""
    table = pyarrow.concat_tables(
        [pyarrow.parquet.read_table(path) for path in sorted(folder.glob("scores-*.parquet"))]
    )
    rows, values = (table.column(name).to_numpy() for name in ("row", "score"))
    if not np.array_equal(np.sort(rows), np.arange(len(rows))):
        raise SystemExit(f"{folder} does not hold every pair once")
    return values[np.argsort(rows)]


def uninterrupted(command: list[str], output: Path, shards: int) -> dict[str, Any]:
    """Seconds, and the memory at every tenth of the files."""
    looks = []
    with tqdm(total=shards, desc=output.name, unit="file") as bar:
        for look in run(command, output, lambda _: False):
            looks.append(look)
            bar.update(look[1] - bar.n)
    tenths = [[memory for _, files, memory in looks if files * 10 // shards == tenth] for tenth in range(10)]
    return {
        "seconds": round(looks[-1][0], 1),
        "seconds_before_the_first_file": round(next(seconds for seconds, files, _ in looks if files), 1),
        "peak_mib": max(memory for *_, memory in looks) >> 20,
        "largest_mib_in_each_tenth": [max(one) >> 20 if one else None for one in tenths],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    folder: Path = args.folder
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model")
    make_pairs(folder / "pairs.parquet", args.pairs)
    shards = -(-args.pairs // SHARD_PAIRS)

    def command(output: Path) -> list[str]:
        words = [sys.executable, "-m", "modeling_tsarank.cli", "score", "--pairs", str(folder / "pairs.parquet")]
        return [*words, "--output", str(output), "--by-document", "--model", str(folder / "model"), "--device", "cpu"]

    once, killed, on_ray = (folder / name for name in ("once", "killed", "ray"))
    report: dict[str, Any] = {"pairs": args.pairs, "megabytes": (folder / "pairs.parquet").stat().st_size // 10**6}
    report["uninterrupted"] = uninterrupted(command(once), once, shards)
    # The first kill falls into the sorting: before the first file, at half of the time that took.
    half = report["uninterrupted"]["seconds_before_the_first_file"] / 2
    started = time.monotonic()
    kills = []
    for number in range(args.kills):
        place = shards * number // args.kills
        for _, files, _ in run(
            command(killed),
            killed,
            (lambda files, place=place: files > place) if number else (lambda _: time.monotonic() - started > half),
        ):
            last = files
        kills.append(last)
    for _ in run(command(killed), killed, lambda _: False):
        pass
    report["killed"] = {"finished_files_at_each_kill": kills, "same_bytes": digests(killed) == digests(once)}
    if not args.no_ray:
        report["ray"] = uninterrupted([*command(on_ray), "--engine", "ray", "--actors", "2"], on_ray, shards)
        report["ray"]["largest_difference"] = float(np.abs(scores(on_ray) - scores(once)).max())
        report["deviation_of_scores"] = round(float(scores(once).std()), 4)
    text = json.dumps(report, indent=2)
    sys.stdout.write(text + "\n")
    if args.output is not None:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

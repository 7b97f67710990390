"""What reading each document once saves over a whole evaluation: its own time against cold scoring of sampled pairs.

    python benchmarks/shared_documents.py EVALUATION/DATASET --dataset FOLDER [--sample 300] [--processes 2]

`tsarank evaluate` scores a document once for all the queries whose candidates hold it. This takes its time out of
`metrics.json` and compares it with the same pairs scored one by one, none sharing a document: a random sample of them
is timed, in as many processes of one thread each as the evaluation had, and extrapolated by the number of tokens.
Scores of the sample must agree with the evaluation's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from modeling_tsarank import load_ranker
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.run_files import read_run


def all_pairs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Ids of every pair that the evaluation scored."""
    return [(query, document) for query, row in read_run(args.results / "run.trec").items() for document in row]


def score_part(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, tokens and scores of this process's part of the sample, each pair cold."""
    import torch

    torch.set_num_threads(1)
    collection = load_collection(str(args.dataset))
    pairs = random.Random(args.seed).sample(all_pairs(args), args.sample)[args.part :: args.processes]
    texts = [(collection.queries[query], collection.documents[document].full_text) for query, document in pairs]
    model = load_ranker("zero-shot", device="cpu", dtype="float32")
    model.predict(texts[:2])
    started = time.perf_counter()
    scores, tokens = [], 0
    # Eight at a time: batches as in ranking, but hardly ever two queries of one document in them.
    for first in range(0, len(texts), 8):
        scores += model.predict(texts[first : first + 8], show_progress=False).tolist()
        tokens += model.last_stats["tokens"]
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": tokens, "scores": dict(zip(map(" ".join, pairs), scores, strict=True))}


def cold_tokens(args: argparse.Namespace) -> int:
    """Tokens of all pairs, each read by itself."""
    collection = load_collection(str(args.dataset))
    encoder = load_ranker("zero-shot", device="cpu", dtype="float32").encoder
    ids = all_pairs(args)
    total = 0
    for first in range(0, len(ids), 2000):
        texts = [(collection.queries[q], collection.documents[d].full_text) for q, d in ids[first : first + 2000]]
        total += sum(len(pair.prompt) + len(pair.query) for pair in encoder.pairs(texts))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of one dataset that `tsarank evaluate` filled")
    parser.add_argument("--dataset", type=Path, required=True, help="the collection in BEIR's layout")
    parser.add_argument("--sample", type=int, default=300, help="pairs to time")
    parser.add_argument("--processes", type=int, default=2, help="as many as the evaluation had, one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is not None:
        sys.stdout.write(json.dumps(score_part(args)) + "\n")
        return
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, *sys.argv[1:], "--part", str(part)] for part in range(args.processes)]
    running = [subprocess.Popen(one, stdout=subprocess.PIPE, text=True, env=environment) for one in commands]
    parts = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    metrics = json.loads((args.results / "metrics.json").read_text())
    run = read_run(args.results / "run.trec")
    differences = [
        abs(score - run[key.split()[0]][key.split()[1]]) for part in parts for key, score in part["scores"].items()
    ]
    rate = sum(part["tokens"] / part["seconds"] for part in parts)
    total = cold_tokens(args)
    # Seconds are summed over processes, which worked side by side.
    shared = metrics["scoring_seconds"] / args.processes
    report = {
        "pairs": len(all_pairs(args)),
        "shared_tokens": metrics["tokens"],
        "shared_seconds": round(shared, 1),
        "cold_sampled_pairs": args.sample,
        "cold_tokens_per_second": round(rate, 1),
        "cold_tokens": total,
        "cold_seconds_extrapolated": round(total / rate, 1),
        "share_of_cold_time": round(shared / (total / rate), 3),
        "largest_score_difference": max(differences),
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How fast `predict` reads documents, against the plain loop that anybody writes first. One run, one machine, ratios.

    python benchmarks/rank_speed.py [--documents 100] [--words 150] [--repeats 3] [--dtypes auto int8] [--profile]
        [--output FILE]

The plain loop scores one (query, document) pair at a time through AutoModelForCausalLM in float32, with the logits of
every position, as a reader of the paper's Eq. 1 would. `predict` reads the same texts in each of `--dtypes`, and its
scores are compared with the loop's. The share of the machine's peak is that of the first of them, against the matrix
multiplication of that dtype in the same run. With --profile, the share of the time that each operator of `predict`
takes, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from modeling_tsarank import load_ranker
from modeling_tsarank.files.writing import write_text
from modeling_tsarank.models.loading import resolve_dtype
from modeling_tsarank.ranking_scoring import default_batch_tokens, plan_batches


LOOP = "plain loop, float32"
QUERY = "how do harbour pilots guide large ships through a narrow channel at night"
_TEXT = (
    "the harbour pilot climbs aboard each large ship before it enters the narrow channel and tells the captain how to "
    "steer past banks of sand that the tide has moved since the last chart was printed while lights on the shore show "
    "the deep water at night and two tugs wait with ropes in case the engine fails or the wind turns without warning"
)
WORDS = _TEXT.split(" ")


def make_documents(count: int, words: int, seed: int = 0) -> list[str]:
    """Texts of about `words` words, every one another, the lengths spread by a third as in real collections."""
    generator = random.Random(seed)
    return [
        " ".join(generator.choices(WORDS, k=generator.randint(words * 2 // 3, words * 4 // 3))) for _ in range(count)
    ]


def plain_loop(model: Any, tokenizer: Any, query: str, documents: list[str]) -> list[float]:
    """Eq. 1, mean over the query's tokens, one pair at a time with the logits of all positions."""
    answer = tokenizer(f" {query}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    scores = []
    with torch.inference_mode():
        for document in documents:
            prompt = tokenizer(f"Document: {document} Query:", return_tensors="pt")["input_ids"]
            logits = model(input_ids=torch.cat([prompt, answer], dim=1)).logits[0]
            log_probs = logits.log_softmax(-1)[prompt.shape[1] - 1 : -1]
            scores.append(log_probs.gather(-1, answer[0][:, None]).mean().item())
    return scores


def matmul_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Best observed rate of square matrix multiplication, in FLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = min(_timed(lambda: a @ b)[0] for _ in range(repeats))
    return 2 * size**3 / best


def operator_shares(function: Any, count: int = 8) -> dict[str, float]:
    """Shares of the time by operator, itself and not what it calls, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=lambda key: -times[key])[:count]
    return {key.removeprefix("aten::"): round(times[key] / total, 3) for key in largest}


def _timed(function: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--words", type=int, default=150, help="about 200 tokens of the default model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--profile", action="store_true", help="time by operator, in one more call")
    parser.add_argument("--dtypes", nargs="+", default=["auto", "int8"], help="of `predict` (default: auto int8)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    documents = make_documents(args.documents, args.words)
    dtype = resolve_dtype(args.dtypes[0], torch.device("cpu"))
    names = dict.fromkeys([str(dtype)[6:], *args.dtypes[1:]])
    rankers = {name: load_ranker(device="cpu", dtype=name) for name in names}
    ranker = rankers[str(dtype)[6:]]
    plain = load_ranker(device="cpu", dtype=torch.float32).backbone
    pairs = [(QUERY, document) for document in documents]
    encoded = ranker.encoder.pairs(pairs)
    tokens = sum(len(pair.prompt) + len(pair.query) for pair in encoded)
    for each in rankers.values():
        each.predict(pairs[:4])
    plain_loop(plain, ranker.tokenizer, QUERY, documents[:2])
    seconds: dict[str, list[float]] = {LOOP: [], **{f"predict, {name}": [] for name in rankers}}
    scores: dict[str, Any] = {}
    for _ in range(args.repeats):  # in turns, so that a slow minute of the machine meets all
        elapsed, expected = _timed(lambda: plain_loop(plain, ranker.tokenizer, QUERY, documents))
        seconds[LOOP].append(elapsed)
        for name, each in rankers.items():
            elapsed, scores[name] = _timed(partial(each.predict, pairs))
            seconds[f"predict, {name}"].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    slow = medians.pop(LOOP)
    fast = next(iter(medians.values()))
    peak = matmul_peak(dtype)
    embeddings = ranker.backbone.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in ranker.backbone.parameters()) - embeddings
    operations = 2 * body * tokens + 2 * embeddings * sum(len(pair.query) for pair in encoded)
    lengths = [len(pair.prompt) + len(pair.query) - 1 for pair in encoded]
    batches = plan_batches(lengths, default_batch_tokens(torch.device("cpu")))
    read = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    result = {
        "documents": len(documents),
        "tokens": tokens,
        "tokens_per_document": round(tokens / len(documents), 1),
        "share_of_padded_tokens": round(1 - sum(lengths) / read, 4),
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "tokens_per_second": {name: round(tokens / value, 1) for name, value in {LOOP: slow, **medians}.items()},
        "ratio": {name: round(slow / value, 2) for name, value in medians.items()},
        "share_of_matmul_peak": round(operations / fast / peak, 3),
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "largest_difference": {name: float(np.abs(expected - found).max()) for name, found in scores.items()},
        "deviation_of_scores": float(np.std(expected)),
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": args.threads},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if args.profile:
        result["operators"] = {name: operator_shares(partial(each.predict, pairs)) for name, each in rankers.items()}
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if args.output is not None:
        write_text(args.output, text + "\n")


if __name__ == "__main__":
    main()

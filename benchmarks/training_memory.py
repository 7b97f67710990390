"""Peak memory of one fine-tuning step of the 135M model on a group of 49 documents, whole and in chunks.

    python benchmarks/training_memory.py [--negatives 48] [--words 150] [--chunk-tokens 1024] [--output FILE.json]

Each step runs in a process of its own; what counts is the peak of its resident memory above what it held, model and
optimizer included, before the step. Where the whole group does not fit into the machine, `--whole-negatives 11 23`
measures it on smaller groups and reads the whole off the straight line through them (activations grow with the number
of tokens); the gradients are then compared on the largest of these groups.
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

import numpy as np
import torch
from rank_speed import QUERY, make_documents


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def step(args: argparse.Namespace) -> dict[str, Any]:
    """One training step in this process, with its memory, time and gradients."""
    from modeling_tsarank import TSARankModel
    from modeling_tsarank.models.default_model import default_model_folder
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
        "negatives": args.negatives,
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
    parser.add_argument("--chunk-tokens", type=int, default=1024)
    parser.add_argument("--whole-negatives", type=int, nargs="+", default=None, help="groups measured without chunks")
    parser.add_argument("--trainable", choices=("lora", "top_blocks"), default="lora")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--chunk", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--gradients", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.chunk is not None:
        sys.stdout.write(json.dumps(step(args)) + "\n")
        return
    sizes = args.whole_negatives or [args.negatives]
    with tempfile.TemporaryDirectory() as folder:
        wholes = [run_step(args, negatives, 0, f"{folder}/whole.pt") for negatives in sizes]
        chunked = run_step(args, args.negatives, args.chunk_tokens, f"{folder}/chunked.pt")
        if sizes[-1] != args.negatives:
            run_step(args, sizes[-1], args.chunk_tokens, f"{folder}/chunked.pt")
        gradients = [torch.load(f"{folder}/{name}.pt", weights_only=True) for name in ("whole", "chunked")]
    whole_gib = wholes[-1]["peak_above_start_gib"]
    if args.whole_negatives:
        tokens = [run["tokens"] for run in wholes]
        slope, offset = np.polyfit(tokens, [run["peak_above_start_gib"] for run in wholes], 1)
        whole_gib = slope * chunked["tokens"] + offset
    text = json.dumps(
        {
            "trainable": args.trainable,
            "negatives": args.negatives,
            "whole": wholes,
            "chunked": chunked,
            "whole_gib": round(float(whole_gib), 2),
            "whole_is": "extrapolated" if args.whole_negatives else "measured",
            "memory_share": round(float(chunked["peak_above_start_gib"] / whole_gib), 3),
            "relative_gradient_difference": float((gradients[1] - gradients[0]).norm() / gradients[0].norm()),
        },
        indent=2,
    )
    sys.stdout.write(text + "\n")
    if args.output is not None:
        args.output.write_text(text + "\n")


def run_step(args: argparse.Namespace, negatives: int, chunk: int, gradients: str) -> dict[str, Any]:
    """`step` in a process of its own; its gradients are saved to the file `gradients`."""
    command = [sys.executable, __file__, "--chunk", str(chunk), "--gradients", gradients, "--words", str(args.words)]
    command += ["--negatives", str(negatives), "--trainable", args.trainable]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()

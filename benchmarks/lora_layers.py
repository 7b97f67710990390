"""LoRA training on a CPU: PEFT's layers against the same layers as one operation. One run, one machine, ratios.

    python benchmarks/lora_layers.py [--pairs 16] [--tokens 112] [--queries 20] [--repeats 5] [--output FILE.json]

One forward and backward pass of the embedded 135M model with LoRA of rank 16 in all blocks, logits of the last
`--queries` tokens of each sequence, as continual pre-training has them. In float32 and, where the processor multiplies
bfloat16, under autocast. The two kinds of layers take turns; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from modeling_tsarank.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.trainers.base_models import load_base_model
from modeling_tsarank.trainers.lora_linear import fuse_lora


def make(fused: bool) -> Any:
    """The embedded model with an adapter whose matrices are not zero."""
    model, _ = load_base_model("default", dtype=torch.float32)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    if fused:
        fuse_lora(model)
    return model


def step(model: Any, ids: torch.Tensor, queries: int, bfloat16: bool) -> tuple[float, torch.Tensor]:
    """Seconds of one pass, and the gradients as one vector."""
    model.zero_grad()
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16) if bfloat16 else contextlib.nullcontext():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=queries + 1).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, -queries:].flatten()).backward()
    seconds = time.perf_counter() - started
    return seconds, torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=112)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ids = torch.randint(1000, 40000, (args.pairs, args.tokens), generator=torch.Generator().manual_seed(0))
    models = {"peft": make(False), "fused": make(True)}
    report: list[dict[str, Any]] = []
    for bfloat16 in [False, True] if cpu_has_bfloat16() else [False]:
        seconds: dict[str, list[float]] = {name: [] for name in models}
        gradients = {}
        for turn in range(args.repeats + 1):
            for name, model in models.items():
                taken, gradients[name] = step(model, ids, args.queries, bfloat16)
                if turn:
                    seconds[name].append(taken)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        difference = (gradients["fused"] - gradients["peft"]).norm() / gradients["peft"].norm()
        row = {"dtype": "bfloat16" if bfloat16 else "float32", "threads": args.threads}
        row |= {name: round(value, 3) for name, value in medians.items()}
        row["ratio"] = round(medians["peft"] / medians["fused"], 3)
        row["tokens_per_second"] = round(ids.numel() / medians["fused"])
        row["gradients_differ"] = float(f"{difference:.2g}")
        report.append(row)
        sys.stdout.write(f"{json.dumps(row)}\n")
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

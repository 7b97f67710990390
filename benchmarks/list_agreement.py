"""How far models put the passages of scored lists in the order of the scores.

    python benchmarks/list_agreement.py LISTS.jsonl MODEL... [--first 100] [--count 30] [--gap 0.5]

LISTS holds rows of distillation with `teacher_scores`; MODEL is a reranker of this package, ce:FOLDER or dense:FOLDER.
Printed is the share of pairs that a model orders like the teacher, over pairs whose scores differ by more than the
gap: of the whole list, and of the teacher's ten best.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.rankers.pointwise import load_scorer
from modeling_tsarank.rankers.protocols import predict
from modeling_tsarank.trainers.training_sources import read_records


def agreement(teacher: Sequence[float], scores: Sequence[float], best: int, gap: float) -> float | None:
    """The share of the pairs among the teacher's best; None where no pair differs by more than the gap."""
    places = np.argsort(-np.asarray(teacher))[:best]
    pairs = [(i, j) for i, j in itertools.combinations(places, 2) if teacher[i] - teacher[j] > gap]
    return statistics.fmean(scores[i] > scores[j] for i, j in pairs) if pairs else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--gap", type=float, default=0.5)
    args = parser.parse_args()
    rows = [record for _, record in itertools.islice(read_records(args.lists), args.first, args.first + args.count)]
    lines = []
    for model in args.models:
        dtype = "bfloat16" if cpu_has_bfloat16() else "float32"
        scorer = load_scorer(model, device="cpu", dtype=dtype, max_length=160)
        found: list[list[float]] = [[], []]
        for row in rows:
            scores = predict(scorer, [(row["query"], text) for text in row["documents"]]).tolist()
            for values, best in zip(found, (len(scores), 10), strict=True):
                value = agreement(row["teacher_scores"], scores, best, args.gap)
                values += [] if value is None else [value]
        lines.append(["/".join(Path(model).parts[-2:]), *(f"{statistics.fmean(values):.3f}" for values in found)])
    sys.stdout.write(markdown_table(["", "whole list", "ten best"], lines) + "\n")


if __name__ == "__main__":
    main()

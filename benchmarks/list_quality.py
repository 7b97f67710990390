"""How good the orders of distillation lists are, without labels: every query was made from a passage, its source.

    python benchmarks/list_quality.py FOLDER

FOLDER is one that `tsarank data lists` wrote. For each query type and first stage: lists, lists that hold the source,
its mean reciprocal rank in the given and in the teacher's order, and Kendall's tau of both orders.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet
from scipy.stats import kendalltau

from modeling_tsarank.eval.reports import markdown_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for path in sorted((args.folder / "data").glob("*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            ids = [document["docid"] for document in row["documents"]]
            ordered = [ids[place] for place in row["permutation"]]
            source = row["source_docid"]
            given, teacher = (1 / (1 + order.index(source)) if source in ids else 0.0 for order in (ids, ordered))
            tau = float(kendalltau(range(len(ids)), row["permutation"]).statistic)
            for stage in (row["first_stage"], "all"):
                found[row["query_type"], stage].append((given, teacher, tau))
    lines = []
    for (kind, stage), values in sorted(found.items()):
        held = [value for value in values if value[0]]
        ranks = [f"{statistics.mean(v[side] for v in held):.3f}" if held else "-" for side in (0, 1)]
        tau = f"{statistics.mean(v[2] for v in values):.2f}"
        lines.append([kind, stage, str(len(values)), str(len(held)), *ranks, tau])
    header = ["query type", "first stage", "lists", "with source", "given order", "teacher's order", "tau"]
    sys.stdout.write(markdown_table(header, lines) + "\n")


if __name__ == "__main__":
    main()

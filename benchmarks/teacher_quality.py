"""nDCG@10 of a teacher on judged collections, beside that of the candidates it puts in order.

    python benchmarks/teacher_quality.py TEACHER COLLECTION... [--split dev] [--run candidates]

TEACHER is what `tsarank data scores --teacher` takes: a reranker, ce:CrossEncoder or dense:BiEncoder. Each COLLECTION
is a folder in BEIR's layout with a run `runs/RUN.trec`, such as a release's development set.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.eval.run_files import read_run
from modeling_tsarank.eval.scoring import predict
from modeling_tsarank.trainers.data.teacher_scores import load_scorer


MEASURE = "ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--run", default="candidates")
    args = parser.parse_args()
    scorer = load_scorer(args.teacher)
    lines, means = [], []
    for folder in args.collections:
        collection = load_collection(str(folder), args.split)
        given = read_run(folder / "runs" / f"{args.run}.trec")
        ordered = {}
        for query, documents in given.items():
            pairs = [(collection.queries[query], collection.documents[one].full_text) for one in documents]
            ordered[query] = dict(zip(documents, map(float, predict(scorer, pairs)), strict=True))
        values = [compute_metrics(run, collection.qrels, [MEASURE]).aggregate[MEASURE] for run in (given, ordered)]
        means.append(values)
        lines.append([folder.name, *(f"{100 * value:.1f}" for value in values)])
    lines.append(["mean", *(f"{100 * statistics.mean(column):.1f}" for column in zip(*means, strict=True))])
    sys.stdout.write(markdown_table(["collection", args.run, "teacher"], lines) + "\n")


if __name__ == "__main__":
    main()

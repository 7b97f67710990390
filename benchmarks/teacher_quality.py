"""nDCG@10 of a teacher on judged collections, beside that of the candidates it puts in order.

    python benchmarks/teacher_quality.py TEACHER COLLECTION... [--split dev] [--run candidates]
    python benchmarks/teacher_quality.py TEACHER COLLECTION... --with OTHER --weights 0.6 0.4

TEACHER is what `tsarank data scores --teacher` takes: a reranker, ce:CrossEncoder or dense:BiEncoder; `--with` mixes
others into it. Each COLLECTION is a folder in BEIR's layout with a run `runs/RUN.trec`, such as a release's
development set.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.eval.run_files import read_run
from modeling_tsarank.trainers.data.command_options import add_lengths, given_lengths
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_mixture import teacher_scorer


MEASURE = "ndcg@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("collections", nargs="+", type=Path)
    parser.add_argument(
        "--with", nargs="+", default=[], metavar="TEACHER", dest="others", help="teachers mixed into it"
    )
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="one a teacher; default: all alike")
    add_lengths(parser, "a teacher")
    parser.add_argument("--dtype", help="number format of this project's rerankers")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--run", default="candidates")
    args = parser.parse_args()
    lines, means = [], []
    with tempfile.TemporaryDirectory() as folder, RequestCache(Path(folder) / "cache.sqlite") as cache:
        scorer = teacher_scorer(
            [args.teacher, *args.others], args.weights, cache, dtype=args.dtype, **given_lengths(args)
        )
        for place in args.collections:
            collection = load_collection(str(place), args.split)
            given = read_run(place / "runs" / f"{args.run}.trec")
            lists = [
                (collection.queries[query], [collection.documents[one].full_text for one in documents])
                for query, documents in given.items()
            ]
            scored = zip(given.items(), scorer.scores_of(lists), strict=True)
            ordered = {query: dict(zip(documents, scores, strict=True)) for (query, documents), scores in scored}
            values = [compute_metrics(run, collection.qrels, [MEASURE]).aggregate[MEASURE] for run in (given, ordered)]
            means.append(values)
            lines.append([place.name, *(f"{100 * value:.1f}" for value in values)])
    lines.append(["mean", *(f"{100 * statistics.mean(column):.1f}" for column in zip(*means, strict=True))])
    sys.stdout.write(markdown_table(["collection", args.run, "teacher"], lines) + "\n")


if __name__ == "__main__":
    main()

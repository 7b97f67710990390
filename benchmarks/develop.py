"""nDCG@10 of any model on the development collections: per collection, mean, worst, and paired intervals.

    python benchmarks/develop.py DEVELOPMENT --scores FOLDER --models NAME=MODEL... [--mix NAME=a:0.5,b:0.5 ...]
        [--against NAME] [--collections C...] [--queries N] [--depth N] [--output FILE.json]

DEVELOPMENT is the output of `tsarank recipe prepare smollm2_135m/development`. MODEL is a reranker of this package
(name or folder), `ce:FOLDER` a CrossEncoder or `dense:FOLDER` a bi-encoder of sentence-transformers. NAME is its name
in tables and mixtures; `bm25` is BM25, the order of the candidates. A mixture is the weighted mean of its members'
z-scores within each query's candidates.

Scores are cached in FOLDER/NAME/COLLECTION: an interrupted run resumes, and mixtures need no new scores. On CPUs
with bfloat16 instructions, models run in bfloat16. Intervals are paired 95 % intervals over queries; that of the mean
over collections sums the collections' variances, so that each collection has equal weight.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.engine.batch_invariance import cpu_has_bfloat16
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.harness import evaluate_collection
from modeling_tsarank.eval.options import EvaluationOptions
from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.eval.run_files import read_run
from modeling_tsarank.eval.scoring import ScorerSource
from modeling_tsarank.eval.significance import compare_values, mean_interval, query_values
from modeling_tsarank.eval.types import Run
from modeling_tsarank.files.hashes import hash_folder
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.rankers.pointwise import load_scorer, scorer_identity
from modeling_tsarank.ranking_errors import InputError, TSARankError
from modeling_tsarank.scores.fusion import normalize
from modeling_tsarank.trainers.recipes.judged import DEV_RUN, DEV_SPLIT


MEASURE = "ndcg@10"
BM25 = "bm25"
QUERY_LENGTH = 64  # maximum query length in tokens for this package's rerankers


def source_of(name: str, model: str, max_length: int) -> ScorerSource:
    """A model by name, loaded when there are pairs to score."""
    dtype = "bfloat16" if cpu_has_bfloat16() else "float32"
    kind, colon, folder = model.partition(":")
    identity = {"weights": hash_folder(Path(folder), deep=True), "kind": kind} if colon else scorer_identity(model)

    options = {"max_length": max_length} if colon else {"max_length": max_length, "max_query_length": QUERY_LENGTH}

    def load() -> Any:
        return load_scorer(model, device="cpu", dtype=dtype, **options)

    return ScorerSource(name, load, {**identity, "dtype": dtype, **options})


def mixture(runs: Mapping[str, Run], weights: Mapping[str, float]) -> Run:
    """The weighted mean of z-scores within each query.

    Raises:
        InputError: A member has no scores.
    """
    missing = next((name for name in weights if name not in runs), None)
    if missing is not None:
        raise InputError(f"the mixture contains {missing!r}; there are {', '.join(runs)}")
    mixed: Run = {}
    for query, first in runs[next(iter(weights))].items():
        names = list(first)
        parts = [weight * normalize([runs[one][query][d] for d in names], "zscore") for one, weight in weights.items()]
        mixed[query] = dict(zip(names, np.sum(parts, axis=0).tolist(), strict=True))
    return mixed


def named(values: Sequence[str], what: str) -> dict[str, str]:
    """`NAME=VALUE` arguments as a dictionary."""
    pairs = [value.partition("=") for value in values]
    if not all(name and equals and rest for name, equals, rest in pairs):
        raise InputError(f"{what} are given as NAME=…, got {' '.join(values)}")
    return {name: rest for name, _, rest in pairs}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("development", type=Path)
    parser.add_argument("--scores", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=MODEL")
    parser.add_argument("--mix", nargs="+", default=[], metavar="NAME=a:0.5,b:0.5")
    parser.add_argument("--against", default=BM25, metavar="NAME", help="the baseline of all comparisons")
    parser.add_argument("--collections", nargs="+", metavar="C")
    parser.add_argument("--queries", type=int, metavar="N", help="only the first N queries of every collection")
    parser.add_argument(
        "--depth", type=int, default=100, metavar="N", help="candidates to score; the others follow in BM25's order"
    )
    parser.add_argument("--max-length", type=int, default=256, metavar="N", help="tokens per pair")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    try:
        report = measure(args)
    except TSARankError as error:
        raise SystemExit(f"develop: {error}") from None
    sys.stdout.write(table(report) + "\n")
    if args.output is not None:
        write_json(args.output, report)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Computes missing scores, and all measures."""
    models = named(args.models, "models")
    mixes = {
        name: {one.rpartition(":")[0]: float(one.rpartition(":")[2]) for one in text.split(",")}
        for name, text in named(args.mix, "mixtures").items()
    }
    sources = [source_of(name, model, args.max_length) for name, model in models.items()]
    values: dict[str, dict[str, dict[str, float]]] = {}
    names = args.collections or sorted(one.name for one in (args.development / "dev").iterdir())
    counts = {}
    for name in names:
        collection = load_collection(str(args.development / "dev" / name), DEV_SPLIT)
        queries = collection.judged_queries()[: args.queries]
        qrels = {query: collection.qrels[query] for query in queries}
        counts[name] = len(queries)
        given = read_run(args.development / "dev" / name / "runs" / f"{DEV_RUN}.trec")
        runs: dict[str, Run] = {BM25: {query: given[query] for query in queries}}
        part = name if args.queries is None else f"{name}-{args.queries}"
        part = part if args.depth == 100 else f"{part}-top{args.depth}"
        options = EvaluationOptions(
            split=DEV_SPLIT,
            first_stage=DEV_RUN,
            top_k=args.depth,
            limit_queries=args.queries,
            measures=(MEASURE,),
            show_progress=False,
        )
        for source in sources:
            evaluate_collection(source, collection, options, args.scores / source.name / part)
            runs[source.name] = read_run(args.scores / source.name / part / "run.trec")
            logging.info("%s: %s is scored", name, source.name)
        runs |= {mix: mixture(runs, weights) for mix, weights in mixes.items()}
        for system, run in runs.items():
            values.setdefault(system, {})[name] = query_values(run, qrels, MEASURE)
    if args.against not in values:
        raise InputError(f"--against {args.against}: there are {', '.join(values)}")
    return {
        "measure": MEASURE,
        "queries": counts,
        "depth": args.depth,
        "models": {**{name: _described(model) for name, model in models.items()}, **mixes},
        "against": args.against,
        "systems": {name: _summary(one, values[args.against]) for name, one in values.items()},
    }


def _described(model: str) -> str:
    """A model's name without its folder."""
    kind, colon, rest = model.rpartition(":")
    return kind + colon + "/".join(Path(rest).parts[-2:])


def _summary(own: Mapping[str, Mapping[str, float]], base: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    means = {name: statistics.fmean(values.values()) for name, values in own.items()}
    worst = min(means, key=lambda name: means[name] - statistics.fmean(base[name].values()))
    differences = {name: [values[q] - base[name].get(q, 0.0) for q in values] for name, values in own.items()}
    summary: dict[str, Any] = {"collections": means, "mean": statistics.fmean(means.values())}
    if own is not base:
        middle, low, high = mean_interval(differences)
        compared = {
            name: compare_values(
                [base[name].get(q, 0.0) for q in values], list(values.values()), MEASURE, name, 10_000
            )
            for name, values in own.items()
        }
        summary |= {
            "difference": {"mean": middle, "low": low, "high": high},
            "by_collection": {
                n: {"mean": c.difference, "low": c.ci_low, "high": c.ci_high} for n, c in compared.items()
            },
            "worst": {"collection": worst, "difference": compared[worst].difference},
        }
    return summary


def table(report: Mapping[str, Any]) -> str:
    """The report as a table, times 100; the worst collection is the one with the smallest gain over `against`."""
    names = list(report["queries"])
    percent: Callable[[float], str] = lambda value: f"{100 * value:.1f}"  # noqa: E731
    signed: Callable[[float], str] = lambda value: f"{100 * value:+.2f}"  # noqa: E731
    rows = []
    for system, one in report["systems"].items():
        row = [system, *(percent(one["collections"][name]) for name in names), f"{100 * one['mean']:.2f}"]
        if "difference" in one:
            gap, worst = one["difference"], one["worst"]
            row += [
                f"{signed(gap['mean'])} ({signed(gap['low'])} to {signed(gap['high'])})",
                f"{worst['collection']} {signed(worst['difference'])}",
            ]
        rows.append(row + [""] * (len(names) + 4 - len(row)))
    counts = [f"{name} ({report['queries'][name]})" for name in names]
    return markdown_table(["", *counts, "mean", f"over {report['against']}", "worst"], rows)


if __name__ == "__main__":
    main()

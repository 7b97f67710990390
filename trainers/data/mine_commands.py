"""`tsarank data mine`: hard negatives for fine-tuning."""

from __future__ import annotations

import argparse
import functools
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import add_command, real, seed, whole
from modeling_tsarank.jobs.arguments import add_pool_arguments, with_pool
from modeling_tsarank.trainers.data.command_options import (
    add_cache,
    add_leakage,
    add_model_place,
    load_judged,
    open_cache,
    open_check,
)


if TYPE_CHECKING:
    from modeling_tsarank.jobs.pools import Pool

_MINE = """\
Mine hard negatives for `tsarank train sft`: for every query with relevant documents, m documents out of a window of a
first stage's ranks. Positives and their copies are never negatives. False negatives are dropped by score: a candidate
goes if it scores above the lowest (--margin-of) positive's score less a margin, by the first stage or, with --judge,
by a reranker.

First stages: bm25, splade:MODEL, dense:MODEL, rerank:MODEL (over --rerank-depth documents of bm25). Every negative
keeps its rank and score, every row its source, first stage, window and margins.

With --leakage, queries, positives and negatives that a test collection has as well, exactly or nearly, are left out.

Queries that `tsarank data queries` made need no qrels: each is labelled with the passage it was made of.
"""
_MINE_EXAMPLES = """\
  tsarank data mine --dataset beir/msmarco --split train --first-stage bm25 --count 48 --output sft.jsonl
  tsarank data mine --dataset folder --first-stage dense:sentence-transformers/all-MiniLM-L6-v2 --depth 100 \\
      --count 8 --sampling top --relative-margin 0.05 --output sft.jsonl
  tsarank data mine --corpus corpus.jsonl --queries queries.jsonl --qrels qrels.tsv --first-stage bm25 \\
      --judge default --absolute-margin 0 --depth 50 --count 8 --output sft.jsonl
  tsarank data mine --corpus folder --queries generated.jsonl --depth 60 --count 20 --output sft.jsonl
"""


def register_mine(subparsers: Any) -> None:
    """Adds `mine`."""
    parser = add_command(subparsers, "mine", "hard negatives for fine-tuning", _MINE, _MINE_EXAMPLES, run_mine)
    parser.add_argument("--dataset", metavar="D", help="folder in BEIR's layout, Hub id, ir_datasets:NAME")
    parser.add_argument("--split", default="train", help="judged split of --dataset (default: train)")
    parser.add_argument("--corpus", metavar="FILE", help="instead of --dataset, with --queries: file or folder")
    parser.add_argument("--queries", metavar="FILE", help=".jsonl or .tsv")
    parser.add_argument("--qrels", metavar="FILE", help="TREC's four columns or BEIR's three; see above")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".jsonl file to write")
    parser.add_argument("--first-stage", default="bm25", metavar="S", help="see above (default: bm25)")
    parser.add_argument("--rerank-depth", type=whole(), default=100, metavar="N", help="with rerank: (default: 100)")
    parser.add_argument("--depth", type=whole(), default=1000, metavar="N", help="documents looked at (default: 1000)")
    parser.add_argument("--count", type=whole(), default=48, metavar="M", help="negatives of a query (default: 48)")
    parser.add_argument("--minimum", type=whole(), default=1, metavar="N", help="negatives a row needs (default: 1)")
    parser.add_argument(
        "--rank-min", type=whole(least=0), default=0, metavar="N", help="ranks to skip at the top (default: 0)"
    )
    parser.add_argument("--rank-max", type=whole(), default=None, metavar="N", help="last rank (default: --depth)")
    parser.add_argument("--absolute-margin", type=real(least=0), default=None, metavar="X", help="default: none")
    parser.add_argument("--relative-margin", type=real(least=0), default=None, metavar="X", help="default: none")
    parser.add_argument("--margin-of", choices=("lowest", "highest"), default="lowest", help="of several positives")
    parser.add_argument("--judge", default=None, metavar="M", help="reranker, ce:M or dense:M, for the margins")
    parser.add_argument("--sampling", choices=("random", "top"), default="random", help="default: random")
    parser.add_argument("--seed", type=seed(), default=0, help="of the sampling (default: 0)")
    add_leakage(parser)
    parser.add_argument("--index-cache", type=Path, default=None, metavar="DIR", help="where indexes are kept")
    parser.add_argument("--batch-tokens", type=whole(), default=None, metavar="N", help="tokens in a reranker's batch")
    add_cache(parser, "a reranker's scores")
    add_model_place(parser)
    add_pool_arguments(parser)


def run_mine(args: argparse.Namespace) -> int:
    """Runs `tsarank data mine`."""
    from modeling_tsarank.trainers.data.teacher_scores import ScorerWorker

    return with_pool(args, partial(_mine, args), ScorerWorker())


def _mine(args: argparse.Namespace, pool: Pool) -> int:
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.hard_negatives import MiningOptions, mine_negatives
    from modeling_tsarank.trainers.data.list_building import Retriever, parse_stage
    from modeling_tsarank.trainers.data.teacher_scores import CachedScorer

    names = (
        "depth",
        "count",
        "minimum",
        "rank_min",
        "rank_max",
        "absolute_margin",
        "relative_margin",
        "margin_of",
        "sampling",
    )
    options = MiningOptions(**{name: getattr(args, name) for name in names}, seed=args.seed)
    if args.judge is not None and not options.has_margin:
        raise InputError("--judge scores for the margins: give --absolute-margin or --relative-margin with it")
    collection = load_judged(args)
    cache = functools.cache(lambda: open_cache(args))  # made only where something is scored

    def make_scorer(name: str) -> CachedScorer:
        return CachedScorer(name, cache(), None, args.batch_tokens, args.device, args.dtype, pool)

    devices = {} if args.device is None else {kind: {"device": args.device} for kind in ("dense", "splade")}
    retriever = Retriever(collection.documents, args.index_cache, make_scorer, devices)
    stage = parse_stage(args.first_stage, rerank_depth=args.rerank_depth)
    scorer = None if args.judge is None else make_scorer(args.judge)
    rows, counts = mine_negatives(collection, stage, retriever, options, scorer)
    return _finish_mining(args, rows, counts)


def _finish_mining(args: argparse.Namespace, rows: list[dict[str, Any]], counts: Any) -> int:
    from modeling_tsarank.eval.reports import text_table
    from modeling_tsarank.files.writing import write_jsonl
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.provenance import write_report

    leakage = None
    with ExitStack() as stack:
        check = open_check(args, stack)
        if check is not None:
            before = {"rows": counts.rows, "negatives": counts.negatives}
            rows = list(check.clean_rows(rows, args.minimum))
            counts.recount(rows, args.count)
            leakage = {**check.record(), **{f"{name}_before": number for name, number in before.items()}}
    report = {**counts.as_dict(), "teachers": [], "leakage": leakage}
    if not rows:
        why = ", ".join(f"{reason}: {count}" for reason, count in counts.lost.items())
        raise InputError(
            f"none of {counts.queries} queries got its negatives ({why}); widen the window or the margins"
        )
    write_jsonl(args.output, rows)
    settings = {name: value for name, value in vars(args).items() if isinstance(value, str | int | float | None)}
    write_report(args.output, {**report, "settings": settings})
    table = [["queries", counts.queries], ["rows", counts.rows]]
    table += [[f"  no row: {reason}", count] for reason, count in counts.lost.items()]
    table += [["negatives", counts.negatives], ["rows with fewer than asked", counts.short]]
    table += [[f"candidates dropped: {reason}", count] for reason, count in counts.candidates.items()]
    sys.stdout.write(text_table(["Mining", "Number"], [[str(name), str(value)] for name, value in table]))
    return 0

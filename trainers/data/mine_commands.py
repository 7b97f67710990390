"""Mine hard negatives for `tsarank train sft`: for every query with relevant documents, m documents out of a window
of a first stage's ranks. Positives and their copies are never negatives. False negatives are dropped by score: a
candidate goes if it scores above the lowest positive's score less a margin, by the first stage or, with
--judge, by a reranker.

First stages: bm25, splade:MODEL, dense:MODEL, rerank:MODEL (over --rerank-depth documents of bm25). Every negative
keeps its rank and score, every row its source, first stage, window and margins.

With --leakage, queries, positives and negatives that a test collection has as well, exactly or nearly, are left out.

Queries that `tsarank data queries` made need no qrels: each is labelled with the passage it was made of.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import add_command
from modeling_tsarank.jobs.arguments import add_pool_arguments, with_pool
from modeling_tsarank.trainers.data.command_options import (
    add_shared,
    load_judged,
    make_retriever,
    make_scorer,
    open_check,
    print_counts,
)


if TYPE_CHECKING:
    from modeling_tsarank.jobs.pools import Pool

_EXAMPLES = """\
  tsarank data mine --dataset beir/msmarco --split train --first-stage bm25 --count 48 --output sft.jsonl
  tsarank data mine --dataset folder --first-stage dense:sentence-transformers/all-MiniLM-L6-v2 --depth 100 \\
      --count 8 --sampling top --relative-margin 0.05 --output sft.jsonl
  tsarank data mine --corpus corpus.jsonl --queries queries.jsonl --qrels qrels.tsv --first-stage bm25 \\
      --judge default --absolute-margin 0 --depth 50 --count 8 --output sft.jsonl
  tsarank data mine --corpus folder --queries generated.jsonl --depth 60 --count 20 --output sft.jsonl
"""


def register_mine(subparsers: Any) -> None:
    """Adds `mine`."""
    from modeling_tsarank.trainers.data.data_options import MiningOptions
    from modeling_tsarank.trainers.options import add_options

    parser = add_command(
        subparsers,
        "mine",
        "hard negatives for fine-tuning",
        str(__doc__),
        _EXAMPLES,
        run_mine,
        common="dataset split corpus queries qrels first-stage depth count relative-margin judge sampling leakage",
    )
    parser.add_argument("--dataset", metavar="D", help="folder in BEIR's layout, Hub id, ir_datasets:NAME")
    parser.add_argument("--split", default="train", help="judged split of --dataset (default: train)")
    add_shared(parser, "corpus", required=False)
    parser.add_argument("--queries", metavar="FILE", help="with --corpus: .jsonl or .tsv")
    parser.add_argument("--qrels", metavar="FILE", help="TREC's four columns or BEIR's three; see above")
    add_shared(parser, "output")
    parser.add_argument("--first-stage", default="bm25", metavar="S", help="see above (default: bm25)")
    parser.add_argument("--judge", default=None, metavar="M", help="reranker, ce:M or dense:M, for the margins")
    add_options(parser, MiningOptions)
    add_shared(parser, "leakage", "rerank-depth", "index-cache", "batch-tokens", "cache", "device", "dtype")
    add_pool_arguments(parser)


def run_mine(args: argparse.Namespace) -> int:
    """Runs `tsarank data mine`."""
    from modeling_tsarank.trainers.data.teacher_scores import TeacherWorker

    return with_pool(args, partial(_mine, args), TeacherWorker())


def _mine(args: argparse.Namespace, pool: Pool) -> int:
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.data_options import MiningOptions
    from modeling_tsarank.trainers.data.hard_negatives import mine_negatives
    from modeling_tsarank.trainers.data.list_building import parse_stage
    from modeling_tsarank.trainers.options import given_options

    options = given_options(MiningOptions, args)
    if args.judge is not None and not options.has_margin:
        raise InputError("--judge scores for the margins: give --absolute-margin or --relative-margin with it")
    collection = load_judged(args)
    retriever = make_retriever(args, pool, collection.documents)
    stage = parse_stage(args.first_stage, rerank_depth=args.rerank_depth)
    scorer = None if args.judge is None else make_scorer(args, pool, args.judge)
    rows, counts = mine_negatives(collection, stage, retriever, options, scorer)
    return _finish_mining(args, rows, counts)


def _finish_mining(args: argparse.Namespace, rows: list[dict[str, Any]], counts: Any) -> int:
    from modeling_tsarank.files.writing import write_jsonl
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.provenance import write_report

    leakage = None
    with ExitStack() as stack:
        check = open_check(args, stack)
        if check is not None:
            before = {"rows_before": counts.rows, "negatives_before": counts.negatives}
            rows = list(check.clean_rows(rows))
            counts.recount(rows, args.count)
            leakage = {**check.record(), **before}
    if not rows:
        why = ", ".join(f"{reason}: {count}" for reason, count in counts.lost.items())
        raise InputError(
            f"none of {counts.queries} queries got its negatives ({why}); widen the window or the margins"
        )
    write_jsonl(args.output, rows)
    settings = {name: value for name, value in vars(args).items() if isinstance(value, str | int | float | None)}
    write_report(args.output, {**counts.as_dict(), "teachers": [], "leakage": leakage, "settings": settings})
    lost = [(f"  no row: {reason}", count) for reason, count in counts.lost.items()]
    dropped = [(f"candidates dropped: {reason}", count) for reason, count in counts.candidates.items()]
    negatives = [("negatives", counts.negatives), ("rows with fewer than asked", counts.short)]
    print_counts("Mining", [("queries", counts.queries), ("rows", counts.rows), *lost, *negatives, *dropped])
    return 0

"""`tsarank score`: scores for files of pairs of any size, resumable, on this machine or on a Ray cluster."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..jobs.arguments import add_pool_arguments, with_pool
from ..models.arguments import add_model_arguments, add_store_argument, quiet_transformers, ranking_arguments
from .command_line import add_command, given, whole


_DETAILS = """\
order:
  Pairs are scored in the given order, and a document is encoded once for all its queries in one output file: sort
  large inputs by document first, for example with DuckDB's ORDER BY.
"""
_EXAMPLES = """\
  tsarank score --pairs pairs.parquet --output scores
  tsarank score --pairs pairs.parquet --output scores --store states
  tsarank score --pairs mined/ --output scores --keep query_id --keep document_id --model ./my-ranker
  accelerate launch --num-processes 4 -m modeling_tsarank.cli score --pairs pairs.parquet --output scores
  tsarank score --pairs pairs --output scores --ray auto --actors 8 --actor-gpus 1
"""


def register(subparsers: Any) -> None:
    """Adds `score` to the command line."""
    parser = add_command(
        subparsers,
        "score",
        "score files of (query, document) pairs, of any size",
        _EXAMPLES,
        run,
        common="keep skip-bad-pairs store model dtype device max-length batch-tokens ray",
        details=_DETAILS,
    )
    parser.add_argument(
        "--pairs", required=True, nargs="+", metavar="PAIRS", help=".parquet, .jsonl, .csv or .tsv, or folders"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="output folder")
    for text in ("query", "document"):
        parser.add_argument(
            f"--{text}-column", dest=text, default=text, metavar="C", help=f"column of the {text} (default {text})"
        )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="C", help="column to copy to the output; may be repeated"
    )
    parser.add_argument(
        "--shard-pairs", type=whole(), default=4096, metavar="N", help="pairs per output file (default 4096)"
    )
    parser.add_argument(
        "--skip-bad-pairs", action="store_true", help="no score (null) for pairs that cannot be scored, not an error"
    )
    add_store_argument(parser)
    parser.add_argument("--json", action="store_true", help="JSON instead of a line of text at the end")
    add_pool_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Score any number of (query, document) pairs.

    PAIRS are .parquet, .jsonl, .csv or .tsv files, or folders of them, with the columns "query" and "document" (a
    text, or an object of "text" and "title"), or other usual names ("question"; "passage", "text"). FOLDER
    receives scores-000000.parquet and so on, each with the columns "row" (the pair's number in the input, from 0) and
    "score".
    Run the same command again after an interruption: finished files are kept, and the result is the same.
    Memory does not grow with the number of pairs.
    """
    from ..jobs.bulk_scoring import BulkJob, PairWorker, score_pairs
    from ..jobs.pools import leads

    quiet_transformers()
    options = {name: getattr(args, name) for name in ("revision", "trust_remote_code", "dtype", "device")}
    model = {"name_or_path": args.model, **options, **ranking_arguments(args)}
    job = BulkJob(**{**given(BulkJob, args), "model": model})
    summary = with_pool(args, lambda pool: score_pairs(job, pool=pool), PairWorker(job))
    if not leads():
        return 0
    if args.json:
        sys.stdout.write(json.dumps({"output": args.output, **summary}) + "\n")
        return 0
    text = f"{summary['pairs']:,} pairs in {summary['shards']:,} files in {args.output}"
    if summary["done_before"]:
        text += f", {summary['done_before']:,} of them from before"
    if summary["unscored"]:
        text += f"; {summary['unscored']:,} could not be scored"
    for what, limit in (("documents", "max_length"), ("queries", "max_query_length")):
        if summary[f"cut_{what}"]:
            text += f"; {summary[f'cut_{what}']:,} {what} were truncated ({limit})"
    sys.stdout.write(text + "\n")
    return 0

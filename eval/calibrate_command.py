"""`tsarank calibrate`: fits probabilities of relevance to the scores of a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import add_command, whole
from modeling_tsarank.eval.commands import add_run_format


_EXAMPLES = """\
  tsarank calibrate results/scifact/run.trec --qrels beir/scifact/qrels/test.tsv --output calibration.json
  tsarank rank --query "…" --documents docs.jsonl --calibration calibration.json --threshold 0.5
"""


def register(subparsers: Any) -> None:
    """Adds `calibrate` to the command line."""
    parser = add_command(subparsers, "calibrate", "fit probabilities of relevance to scores", _EXAMPLES, run_calibrate)
    parser.add_argument("run_file", metavar="RUN", type=Path, help="run file with the ranker's scores")
    parser.add_argument("--qrels", type=Path, required=True, metavar="Q", help="relevance judgments of its queries")
    add_run_format(parser)
    parser.add_argument(
        "--method", choices=("platt", "isotonic", "best"), default="best", help="default: best, by Brier score"
    )
    parser.add_argument(
        "--normalize",
        choices=("none", "zscore"),
        default="none",
        help="zscore: standardize each query's scores; for scores that are not comparable across queries",
    )
    parser.add_argument(
        "--relevance-level", type=whole(), default=1, metavar="N", help="lowest relevant grade (default: 1)"
    )
    parser.add_argument("--top-k", type=whole(), metavar="N", help="number of reranked documents, if not all")
    parser.add_argument("--judged-only", action="store_true", help="leave out unjudged documents")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also write a reliability diagram")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file for the calibration")


def run_calibrate(args: argparse.Namespace) -> int:
    """Fit probabilities of relevance to the scores of a run, for a threshold that means the same for every query.

    RUN contains a ranker's own scores (DATASET/run.trec of `tsarank evaluate`, not fused with the first stage's). The
    printed figures are cross-validated: each query's probabilities come from a calibration fitted on other queries.
    `before` is the logistic function of the uncalibrated score.
    """
    from modeling_tsarank.eval import calibrate

    return calibrate.run_calibrate(args)

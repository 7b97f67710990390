"""`tsarank export`: a ranker in the form that other engines serve."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..models.arguments import add_model_arguments, model_from_arguments
from ..ranking_errors import InputError
from .command_line import add_command


_EXAMPLES = """\
  tsarank export --output twolar-classifier
  tsarank export --model ./my-ranker --dtype bfloat16 --output my-classifier
"""


def register(subparsers: Any) -> None:
    """Adds `export` to the command line."""
    parser = add_command(
        subparsers,
        "export",
        "save a true/false ranker as a sequence-classification model",
        run.__doc__,
        _EXAMPLES,
        run,
        common="model output dtype",
    )
    parser.add_argument(
        "--to",
        choices=("sequence-classification",),
        default="sequence-classification",
        help="form of the copy (default: sequence-classification)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to be made")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Save a true/false ranker as an ordinary sequence-classification model with one label, for vLLM, infinity and
    plain transformers. Its head is the difference of the two answers' rows, its tokenizer joins query and document to
    the ranker's prompt, and its chat template (roles query and document) holds that prompt. Scores are compared before
    anything is written.
    """
    from ..models.exporting import to_sequence_classification

    if Path(args.output).exists():
        raise InputError(f"{args.output} exists already; name a new folder")
    made = to_sequence_classification(model_from_arguments(args))
    made.save_pretrained(args.output)
    sys.stdout.write(f"{type(made.backbone).__name__} in {args.output}\n")
    return 0

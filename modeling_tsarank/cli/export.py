"""`tsarank export`: a ranker in a format for other engines."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from ..models.arguments import add_model_arguments, model_from_arguments
from ..ranking_errors import InputError
from .command_line import add_command


_EXAMPLES = """\
  tsarank export --output twolar-classifier
  tsarank export --model ./my-ranker --dtype bfloat16 --output my-classifier
  tsarank export --to openvino --output twolar-openvino
"""


def register(subparsers: Any) -> None:
    """Adds `export` to the command line."""
    parser = add_command(
        subparsers,
        "export",
        "save a ranker in a format for other engines",
        _EXAMPLES,
        run,
        common="model output dtype",
    )
    parser.add_argument(
        "--to",
        choices=("sequence-classification", "onnx", "openvino"),
        default="sequence-classification",
        help="format (default: sequence-classification); the others add a graph for their engine",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Save a true/false ranker as an ordinary sequence-classification model with one label, for vLLM, infinity and
    plain transformers. Its head is the difference of the two answers' rows, its tokenizer's pair template is the
    ranker's prompt, and its chat template (roles query and document) has that prompt, too. Scores are compared before
    anything is written.

    With --to onnx or openvino (extra `export`; on a CPU, in float32), the folder also has that model as a graph, in
    onnx/ or openvino/, with inputs input_ids and attention_mask and the output logits. Cross-encoders can be exported
    to these formats, too. The graph is run, and its scores are compared.
    """
    from ..modeling_cross_encoder import CrossEncoderModel
    from ..models.exporting import save_graph, to_sequence_classification

    if Path(args.output).exists():
        raise InputError(f"{args.output} exists already; name a new folder")
    if args.to != "sequence-classification":
        if args.dtype not in ("auto", "float32"):
            raise InputError(f"--to {args.to} needs float32 weights: leave --dtype out")
        args.device, args.dtype = "cpu", "float32"
    ranker = model_from_arguments(args)
    as_it_is = args.to != "sequence-classification" and isinstance(ranker, CrossEncoderModel)
    made = ranker if as_it_is else to_sequence_classification(ranker)
    made.save_pretrained(args.output)
    sys.stdout.write(f"{type(made.backbone).__name__} in {args.output}\n")
    if args.to != "sequence-classification":
        try:
            worst = save_graph(made, Path(args.output), args.to)
        except BaseException:
            shutil.rmtree(args.output, ignore_errors=True)
            raise
        sys.stdout.write(f"{args.to} graph: scores differ by at most {worst:.1g}\n")
    return 0

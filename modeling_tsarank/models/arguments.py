"""The command-line options that choose a model, and the model that they describe."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..cli.command_line import whole


def add_model_arguments(parser: argparse.ArgumentParser, positional: bool = False, several: bool = False) -> None:
    """Adds the model options shared by all commands that load a model; see `model_from_arguments`.

    Args:
        parser: of the command.
        positional: whether the model is a positional argument instead of `--model`.
        several: whether `--model` may be given more than once.
    """
    group = parser.add_argument_group("model")
    kind: dict[str, Any] = {"nargs": "?"} if positional else {"action": "append" if several else "store"}
    group.add_argument(
        "model" if positional else "--model",
        **kind,
        default=None,
        metavar="M",
        help="Hub id, folder or .gguf file (default: twolar-smollm2-135m-v2). tsarank-smollm2-135m and zero-shot, the "
        "base model without training, also come with the package; their base (93 MB) is downloaded on first use",
    )
    group.add_argument("--revision", default=None, help="branch, tag or commit of a Hub model")
    group.add_argument("--trust-remote-code", action="store_true", help="run the backbone's own code from the Hub")
    group.add_argument(
        "--dtype",
        default="auto",
        help="float32, bfloat16, float16; int8: quantized weights, faster than float32 on a CPU and less exact; auto "
        "(default): bfloat16 if the device supports it in hardware, else float32",
    )
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps; default: the best available")
    group.add_argument(
        "--max-length", type=whole(), default=None, metavar="N", help="tokens of prompt, document and query together"
    )
    group.add_argument(
        "--max-query-length", type=whole(), default=None, metavar="N", help="tokens of a query; the rest is truncated"
    )
    group.add_argument("--instruction", metavar="TEXT", help="the task instruction, for models whose prompt has one")
    group.add_argument(
        "--batch-tokens",
        type=whole(),
        default=None,
        metavar="N",
        help="padded tokens in a batch (default 2048 on a CPU, 32768 on an accelerator); lower it if memory runs out",
    )


def say(what: str) -> None:
    """Prints a status line, on a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"tsarank: {what} …\n")


def ranking_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The ranking options of `add_model_arguments` that were given."""
    names = ("max_length", "max_query_length", "instruction")
    return {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}


def loading_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_model_arguments` for loading a model, and the ranking options."""
    names = ("device", "dtype", "revision", "trust_remote_code")
    return {**{name: getattr(args, name) for name in names}, **ranking_arguments(args)}


def quiet_transformers() -> None:
    """No warnings: missing or unexpected weights are errors of `load_ranker`. Progress bars on a terminal only."""
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def model_from_arguments(args: argparse.Namespace) -> Any:
    """Loads the model that `add_model_arguments` describes."""
    from .loading import load_ranker

    quiet_transformers()
    say(f"loading {args.model or 'the default model'}")
    return load_ranker(args.model, **loading_arguments(args))


def add_document_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--documents` and the options for its format; see `documents_from_arguments`."""
    parser.add_argument(
        "--documents",
        required=required,
        metavar="FILE",
        help=".txt, .jsonl, .csv, .tsv, .parquet, a folder of .txt and .md files, or - for standard input",
    )
    group = parser.add_argument_group("reading FILE")
    group.add_argument(
        "--format",
        choices=("txt", "jsonl", "csv", "tsv", "parquet"),
        default=None,
        help="format of FILE, if its name does not tell",
    )
    for name, usual in (("id", "_id, id, docid"), ("text", "text, contents, passage"), ("title", "title")):
        group.add_argument(f"--{name}-column", metavar="C", help=f"column of the {name} (default: {usual})")


def documents_from_arguments(args: argparse.Namespace, scored: bool = False) -> list[Any]:
    """The documents (`NamedDocument`) that `add_document_arguments` describes, with the first stage's scores if
    `scored`."""
    from ..cache.state_files import read_documents

    columns = {name: getattr(args, f"{name}_column") for name in ("id", "text", "title")}
    return read_documents(
        args.documents, args.format, {name: column for name, column in columns.items() if column}, scored
    )


def add_passage_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for passages."""
    group = parser.add_argument_group("long documents")
    group.add_argument(
        "--passages",
        metavar="HOW",
        help="split documents into passages and score these: max (the best passage counts), mean, top-K (mean of the "
        "best K) or first; the best passage is shown. Without it, long documents are truncated",
    )
    group.add_argument("--passage-length", type=whole(), metavar="N", help="tokens of a passage (default: what fits)")
    group.add_argument(
        "--passage-stride", type=whole(), metavar="N", help="tokens between their starts (default: half of that)"
    )


def add_store_argument(parser: Any) -> None:
    """Adds `--store`, for commands that score with a model."""
    parser.add_argument(
        "--store", metavar="FOLDER", help="cached document states, as `tsarank index` writes: used and added to"
    )

"""Options that the commands of this room share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from modeling_tsarank.eval.types import Collection, Document


def add_command(
    subparsers: Any,
    name: str,
    help_text: str,
    description: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    """A subcommand whose help keeps its line breaks."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help_text,
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """Where passages come from."""
    parser.add_argument(
        "--corpus",
        required=True,
        metavar="C",
        help='JSON lines of {"_id", "title", "text"} (.gz too), or a folder with such a corpus.jsonl',
    )


def read_passages(source: str) -> Mapping[str, Document]:
    """The corpus that `add_corpus` names.

    Raises:
        InputError: no such file, or a line that is no document (with its number).
    """
    from modeling_tsarank.eval.beir import read_corpus
    from modeling_tsarank.ranking_errors import InputError

    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (path / name).is_file()]
        if not found:
            raise InputError(f"the folder {path} has no corpus.jsonl")
        path = found[0]
    return read_corpus(path)


def add_model_place(parser: argparse.ArgumentParser) -> None:
    """Where models run."""
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (default)")


def add_cache(parser: argparse.ArgumentParser, what: str) -> None:
    """Where things that were worked out or paid for are kept."""
    parser.add_argument(
        "--cache", type=Path, default=None, metavar="FILE", help=f"where {what} are kept (default: beside the output)"
    )


def load_judged(args: argparse.Namespace) -> Collection:
    """The collection of `--dataset`, or of `--corpus`, `--queries` and `--qrels`."""
    from modeling_tsarank.eval.collections import load_collection, load_collection_from_files
    from modeling_tsarank.ranking_errors import InputError

    files = (args.corpus, args.queries, args.qrels)
    if args.dataset is not None and not any(files):
        return load_collection(args.dataset, args.split)
    if args.dataset is None and all(files):
        return load_collection_from_files(*files, name=Path(args.corpus).stem)
    raise InputError("give either --dataset, or all of --corpus, --queries and --qrels")

"""Options that the commands of this room share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import real, whole


if TYPE_CHECKING:
    from modeling_tsarank.eval.types import Collection, Document
    from modeling_tsarank.trainers.data.leakage_check import LeakageCheck
    from modeling_tsarank.trainers.data.teacher_cache import RequestCache


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

    return read_corpus(corpus_file(source))


def corpus_file(source: str) -> Path:
    """The file itself, in a folder `corpus.jsonl`. Raises `InputError` for a folder without one."""
    from modeling_tsarank.ranking_errors import InputError

    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (path / name).is_file()]
        if not found:
            raise InputError(f"the folder {path} has no corpus.jsonl")
        path = found[0]
    return path


def add_model_place(parser: argparse.ArgumentParser) -> None:
    """Where models run."""
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps (default: the best there is)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (default)")


def add_teacher_weights(parser: argparse._ActionsContainer) -> None:
    """How several teachers are mixed."""
    parser.add_argument(
        "--teacher-weights",
        nargs="+",
        action="extend",
        type=real(least=0, most=1e9),
        default=None,
        metavar="W",
        help="one a teacher, where several score; they are divided by their sum (default: all alike)",
    )


def add_trained_on(parser: argparse._ActionsContainer) -> None:
    """What teachers were trained on."""
    parser.add_argument(
        "--teacher-trained-on",
        nargs="+",
        default=None,
        metavar="TEXT",
        help="what the teacher was trained on, one text a teacher, for the cards (default: what its own card says)",
    )


def add_leakage(parser: argparse._ActionsContainer) -> None:
    """What must not come into training data."""
    parser.add_argument(
        "--leakage",
        nargs="+",
        default=[],
        metavar="D",
        help="test collections whose queries and passages are left out, exact copies and near ones: folders in BEIR's "
        "layout, or a folder of them, Hub ids, ir_datasets:NAME",
    )


def open_check(args: argparse.Namespace, stack: ExitStack) -> LeakageCheck | None:
    """The check of `add_leakage`, or None where no collection was named."""
    from modeling_tsarank.trainers.data.leakage_check import LeakageCheck

    return stack.enter_context(LeakageCheck(args.leakage)) if args.leakage else None


def add_lengths(parser: argparse._ActionsContainer, who: str) -> None:
    """How much of a pair a scorer reads; `given_lengths` gives what was said."""
    parser.add_argument("--max-length", type=whole(), default=None, metavar="N", help=f"tokens {who} reads of a pair")
    parser.add_argument(
        "--max-query-length",
        type=whole(),
        default=None,
        metavar="N",
        help="tokens of the query among them, for this project's rerankers; less than --max-length (default: the "
        "model's, mostly 256)",
    )


def given_lengths(args: argparse.Namespace) -> dict[str, Any]:
    """Those of `add_lengths` that were given, as options of `load_scorer`."""
    given = {"max_length": args.max_length, "max_query_length": args.max_query_length}
    return {name: value for name, value in given.items() if value is not None}


def add_cache(parser: argparse.ArgumentParser, what: str) -> None:
    """Where things that were worked out or paid for are kept."""
    parser.add_argument(
        "--cache", type=Path, default=None, metavar="FILE", help=f"where {what} are kept (default: beside the output)"
    )


def open_cache(args: argparse.Namespace) -> RequestCache:
    """The cache that `add_cache` names."""
    from modeling_tsarank.trainers.data.teacher_cache import RequestCache

    if args.cache is not None:
        return RequestCache(args.cache)
    output: Path = args.output
    former = output.with_suffix(".cache.sqlite"), output.with_name(f"{output.name}.cache.sqlite")
    return RequestCache(output.with_name(f"{output.name}.cache.jsonl"), former)


def load_judged(args: argparse.Namespace) -> Collection:
    """The collection of `--dataset`, or of `--corpus`, `--queries` and `--qrels`.

    Without qrels, a query's relevant document is the passage that `tsarank data queries` made it of.

    Raises:
        InputError: neither is given, a file is wrong, or without qrels a query names no passage of the corpus.
    """
    from modeling_tsarank.eval.collections import load_collection, load_collection_from_files
    from modeling_tsarank.eval.types import Collection
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.list_building import read_queries

    if args.dataset is not None and not (args.corpus or args.queries or args.qrels):
        return load_collection(args.dataset, args.split)
    if args.dataset is not None or not (args.corpus and args.queries):
        raise InputError("give either --dataset, or --corpus and --queries (and --qrels)")
    corpus = corpus_file(args.corpus)
    if args.qrels:
        return load_collection_from_files(corpus, args.queries, args.qrels, name=corpus.stem)
    documents, queries = read_passages(args.corpus), read_queries([args.queries])
    strange = next((query for query in queries if query.source not in documents), None)
    if strange is not None:
        raise InputError(
            f"the query {strange.query_id} of {args.queries} names no passage of {args.corpus} (metadata.docid: "
            f"{strange.source!r:.40}); give --qrels"
        )
    qrels = {query.query_id: {str(query.source): 1} for query in queries}
    return Collection(corpus.stem, documents, {query.query_id: query.text for query in queries}, qrels)

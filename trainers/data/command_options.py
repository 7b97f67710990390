"""What the commands of `tsarank data` share: options by name, and what is made of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import real, seed, whole


if TYPE_CHECKING:
    from modeling_tsarank.eval.types import Collection, Document
    from modeling_tsarank.jobs.pools import Pool
    from modeling_tsarank.trainers.data.filters_leakage import LeakageCheck
    from modeling_tsarank.trainers.data.list_building import Retriever
    from modeling_tsarank.trainers.data.teacher_cache import RequestCache
    from modeling_tsarank.trainers.data.teacher_scores import CachedScorer

_SHARED: dict[str, dict[str, Any]] = {
    "corpus": {
        "required": True,
        "metavar": "C",
        "help": 'JSON lines of {"_id", "title", "text"} (.gz too), or a folder with such a corpus.jsonl',
    },
    "output": {"type": Path, "required": True, "metavar": "FILE", "help": ".jsonl file to write"},
    "seed": {"type": seed(), "default": 0, "help": "of every draw (default: 0)"},
    "leakage": {
        "nargs": "+",
        "default": [],
        "metavar": "D",
        "help": "test collections whose queries and passages are left out, exact copies and near ones: folders in "
        "BEIR's layout, or a folder of them, Hub ids, ir_datasets:NAME",
    },
    "cache": {
        "type": Path,
        "metavar": "FILE",
        "help": "where answers, scores and generated batches are kept (default: beside the output)",
    },
    "index-cache": {"type": Path, "metavar": "DIR", "help": "where indexes are kept"},
    "rerank-depth": {"type": whole(), "default": 100, "metavar": "N", "help": "documents that rerank: reads (100)"},
    "batch-tokens": {"type": whole(), "metavar": "N", "help": "tokens in a reranker's batch"},
    "teacher-weights": {
        "nargs": "+",
        "action": "extend",
        "type": real(least=0, most=1e9),
        "metavar": "W",
        "help": "one a teacher, where several score; they are divided by their sum (default: all alike)",
    },
    "teacher-trained-on": {
        "nargs": "+",
        "metavar": "TEXT",
        "help": "what the teacher was trained on, one text a teacher, for the cards (default: what its own card says)",
    },
    "max-length": {"type": whole(), "metavar": "N", "help": "tokens a reranker reads of a pair"},
    "max-query-length": {
        "type": whole(),
        "metavar": "N",
        "help": "tokens of the query among them, for this project's rerankers (default: the model's, mostly 256)",
    },
    "device": {"help": "cpu, cuda, cuda:1, mps (default: the best there is)"},
    "dtype": {"default": "auto", "help": "float32, bfloat16, float16 or auto (default)"},
}


def add_shared(parser: argparse._ActionsContainer, *names: str, **changes: Any) -> None:
    """Adds options of `_SHARED` by name; `changes` are other arguments of `add_argument` for each of them."""
    for name in names:
        parser.add_argument(f"--{name}", **{**_SHARED[name], **changes})


def read_passages(source: str) -> Mapping[str, Document]:
    """The corpus of `--corpus`.

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


def open_check(args: argparse.Namespace, stack: ExitStack) -> LeakageCheck | None:
    """The check of `--leakage`, or None where no collection was named."""
    from modeling_tsarank.trainers.data.filters_leakage import LeakageCheck

    return stack.enter_context(LeakageCheck(args.leakage)) if args.leakage else None


def given_lengths(args: argparse.Namespace) -> dict[str, Any]:
    """Those of `--max-length` and `--max-query-length` that were given, as options of `load_scorer`."""
    names = ("max_length", "max_query_length")
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def open_cache(args: argparse.Namespace) -> RequestCache:
    """The cache of `--cache`."""
    from modeling_tsarank.trainers.data.teacher_cache import RequestCache

    output: Path = args.output
    return RequestCache(args.cache or output.with_name(f"{output.name}.cache.jsonl"))


def make_scorer(args: argparse.Namespace, pool: Pool, name: str) -> CachedScorer:
    """A scorer on the machines of the pool, whose scores go into `--cache`, which is made when first needed."""
    from modeling_tsarank.trainers.data.teacher_scores import CachedScorer

    if getattr(args, "opened_cache", None) is None:
        args.opened_cache = open_cache(args)
    tokens = getattr(args, "batch_tokens", None)
    return CachedScorer(name, args.opened_cache, None, tokens, args.device, args.dtype, pool, **given_lengths(args))


def make_retriever(args: argparse.Namespace, pool: Pool, documents: Mapping[str, Document]) -> Retriever:
    """First stages over the documents; their rerankers score on the machines of the pool."""
    from modeling_tsarank.trainers.data.list_building import Retriever

    devices = {} if args.device is None else {kind: {"device": args.device} for kind in ("dense", "splade")}
    return Retriever(documents, args.index_cache, lambda name: make_scorer(args, pool, name), devices)


def print_counts(title: str, rows: list[tuple[str, Any]]) -> None:
    """A table of names and numbers on standard output."""
    import sys

    from modeling_tsarank.eval.reports import text_table

    sys.stdout.write(text_table([title, "Number"], [[name, str(value)] for name, value in rows]))


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

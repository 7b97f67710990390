"""`tsarank data`: the commands that make training data. Heavy imports are deferred until a command runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import add_command
from modeling_tsarank.jobs.arguments import add_pool_arguments
from modeling_tsarank.trainers.data.data_options import (
    ListOptions,
    MineOptions,
    MiningOptions,
    QueryOptions,
    SamplingOptions,
    SharedOptions,
)
from modeling_tsarank.trainers.options import add_options


_DESCRIPTION = """\
Make training data: weakly supervised pairs for continual pre-training, hard negatives for fine-tuning, queries and
teacher-ranked lists for distillation. Every dataset records the origin of its rows in provenance.json.
"""
_WEAK_EXAMPLES = """\
  tsarank data weak-pairs --config recipe.yaml --output my-pairs --dropped-examples lost.jsonl
"""
_QUERY_EXAMPLES = """\
  tsarank data queries cropped --corpus beir/msmarco --count 10000 --output cropped.jsonl
  tsarank data queries generated --corpus beir/msmarco --model ./cpt-model --count 10000 --output generated.jsonl
  tsarank data queries generated --corpus corpus.jsonl --model doc2query/msmarco-t5-base-v1 --top-k 10 \\
      --count 10000 --output generated.jsonl
"""
_LIST_EXAMPLES = """\
  export TSARANK_TEACHER_KEY=…
  tsarank data lists --corpus beir/msmarco --queries cropped.jsonl generated.jsonl --output lists \\
      --first-stages bm25 splade:S dense:D rerank:castorini/monot5-base-msmarco --concurrency 8 \\
      --teacher-url https://host/v1 --teacher-model M --teacher-options prompt_price=0.5 completion_price=1.5
  tsarank data lists --corpus corpus.jsonl --queries q.jsonl --first-stages bm25 dense:D --output lists \\
      --teacher-scores default dense:D --teacher-weights 0.6 0.4 --list-size 10
"""
_SCORE_EXAMPLES = """\
  tsarank data scores sft.jsonl --teacher ce:cross-encoder/ms-marco-MiniLM-L6-v2 --output scored.jsonl
  tsarank data scores mined.jsonl --teacher dense:sentence-transformers/all-MiniLM-L6-v2 --consistent-only \\
      --output consistent.jsonl
  tsarank train sft --train_data scored.jsonl --teacher_weight 0.5 --teacher_temperature 0.05 ...
  tsarank data scores sft.jsonl --teacher default --teacher dense:sentence-transformers/all-MiniLM-L6-v2 \\
      --teacher-weights 0.7 0.3 --output mixed.jsonl
  tsarank train sft --train_data mixed.jsonl --teacher_weight 0.5 --teacher_temperature 1 ...   # z-scores, not cosines
"""
_MINE_EXAMPLES = """\
  tsarank data mine --dataset beir/msmarco --split train --first-stage bm25 --count 48 --output sft.jsonl
  tsarank data mine --dataset folder --first-stage dense:sentence-transformers/all-MiniLM-L6-v2 --depth 100 \\
      --count 8 --sampling top --relative-margin 0.05 --output sft.jsonl
  tsarank data mine --corpus corpus.jsonl --queries queries.jsonl --qrels qrels.tsv --first-stage bm25 \\
      --judge default --absolute-margin 0 --depth 50 --count 8 --output sft.jsonl
  tsarank data mine --corpus folder --queries generated.jsonl --depth 60 --count 20 --output sft.jsonl
"""


def _later(function: str, description: str | None) -> Callable[[argparse.Namespace], int]:
    """The function `module.name` of this package, imported when it is called."""
    module, _, name = function.partition(".")

    def run(args: argparse.Namespace) -> int:
        status: int = getattr(importlib.import_module(f"{__package__}.{module}"), name)(args)
        return status

    run.__doc__ = description
    return run


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds `data` with its subcommands."""
    parser = subparsers.add_parser(
        "data",
        help="make training data",
        description=_DESCRIPTION,
        epilog="`tsarank data COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    register_commands(parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True))


def register_commands(commands: argparse._SubParsersAction) -> None:
    """Adds all subcommands."""
    functions = {
        _add_weak_pairs: "weak_pairs.run",
        _add_queries: "making.make_queries",
        _add_lists: "list_making.make_lists",
        _add_scores: "making.make_scores",
        _add_mine: "making.make_negatives",
    }
    for add, function in functions.items():
        add(commands, _later(function, add.__doc__))


def _add_weak_pairs(commands: Any, run: Any) -> None:
    """Make a training set of weakly supervised pairs (TSARankLLM, section 2.2) from raw text: a folder with parquet
    shards (query, document, type, source, licence), provenance.json and a dataset card. Load it with
    datasets.load_dataset(FOLDER), or train on it with `tsarank train cpt --train_data FOLDER`.

    A recipe is a YAML file. Sources are .jsonl, .csv, .tsv (also compressed) or .parquet files, folders of them, or
    datasets on the Hub, with the names of their fields:

      title: My pairs
      sources:
        - {type: question_answer, path: sentence-transformers/yahoo-answers, config: question-answer-pair}
        - {type: summary_content, path: news.jsonl.gz, fields: {query: summary, document: [title, text]}}
      licences: {"wiki*": cc-by-sa-4.0}
      filters:
        - clean
        - length: {query_words: [3, 64], document_words: [10, 400]}
        - near_duplicates: {threshold: 0.8, types: [title_body]}
        - leakage: {collections: [beir/scifact, "ir_datasets:beir/nfcorpus/test"]}
      sampling: {rows: 100000, temperature: 3, caps: {post_comment: 20000}, validation: 1000, seed: 0}
    """
    weak = add_command(
        commands,
        "weak-pairs",
        "weakly supervised pairs from raw text",
        _WEAK_EXAMPLES,
        run,
    )
    weak.formatter_class = _WithFilters
    weak.add_argument("--config", type=Path, required=True, metavar="FILE", help="recipe")
    add_options(weak, SharedOptions, "output", metavar="FOLDER", help="folder to create")
    weak.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    weak.add_argument("--dropped-examples", type=Path, metavar="FILE", help="JSON lines: some dropped pairs, and why")


class _WithFilters(argparse.RawDescriptionHelpFormatter):
    """Looks up the filters only when help is shown: importing their modules takes a moment."""

    def format_help(self) -> str:
        from modeling_tsarank.trainers.data.filters import option_defaults, step_classes
        from modeling_tsarank.trainers.data.weak_recipe import DEFAULT_FILTERS
        from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES

        lines = [f"types:    {', '.join(PAIR_TYPES)}", "", "filters, in the order of the recipe; each also takes"]
        lines.append("`types` and `sources` (patterns), the pairs it applies to:")
        for name, cls in step_classes().items():
            options = ", ".join(
                f"{option} {list(value) if isinstance(value, tuple) else value}"
                for option, value in option_defaults(cls)
            )
            lines += [f"  {name:<16} {(cls.__doc__ or '').partition(chr(10))[0]}", f"  {'':<16}   {options}"]
        defaults = ", ".join(one if isinstance(one, str) else next(iter(one)) for one in DEFAULT_FILTERS)
        return "\n".join([super().format_help(), *lines, f"without `filters` in a recipe: {defaults}", ""])


def _add_queries(commands: Any, run: Any) -> None:
    """Make queries from passages (TWOLAR, section 3.2).

    cropped    whole sentences of randomly sampled passages (as in DRAGON): real boundaries, informative length
    generated  generated by a model: a query-likelihood model of this project continues the prompt "Document: … Query:"
               (after continual pre-training it does that well); an encoder-decoder such as docT5query gets only the
               passage

    The file has one {"_id", "text", "metadata"} per line; NAME.report.txt next to it counts the rejected candidates by
    reason. --leakage rejects queries that are also in a test collection, exactly or nearly, and all queries of a test
    collection's passages. The same seed gives the same queries. Generated batches are cached, so that an interrupted
    run can be resumed.
    """
    title = "queries cropped from passages, or generated by a model"
    parser = add_command(commands, "queries", title, _QUERY_EXAMPLES, run)
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    cropped = add_command(kinds, "cropped", "sentences of passages", "", run)
    generated = add_command(kinds, "generated", "generated by a model", "", run)
    for one in (cropped, generated):
        add_options(one, SharedOptions, "corpus", "output", "leakage")
        add_options(one, QueryOptions, "count", "min_words", "max_words", "avoid")
    add_options(cropped, SamplingOptions, "per_passage", "seed")
    add_options(cropped, QueryOptions, "language")
    add_options(generated, QueryOptions, "model", "min_shared")
    add_options(generated, SamplingOptions)
    add_options(generated, SharedOptions, "cache", "device", "dtype")


def _add_lists(commands: Any, run: Any) -> None:
    """Make distillation lists (TWOLAR, section 3.2): the queries of each type are split evenly over the first stages,
    each stage retrieves the top documents of its queries, and a teacher ranks every list.

    teachers (one of them):
      --teacher-url U --teacher-model M   any OpenAI-compatible server, with a listwise prompt; the API key is read
                                          from the environment variable key_variable, never from an option
      --teacher-local M                   a causal language model on this machine, with the same prompt
      --teacher-scores M                  a reranker of this project (`default`: the released one), or of
                                          sentence-transformers ce:M, a CrossEncoder, or dense:M, a bi-encoder; lists
                                          are ranked by its scores, or by several models' mean z-score in each list,
                                          weighted by --teacher-weights

    --teacher-options NAME=VALUE …, for a language model:
      prompt=conversation (RankGPT's, one message per passage) or single (all in one message, for small models),
      window, step, passage_words, max_tokens, refuse_given_order=true; with --teacher-url also key_variable, timeout,
      tries, requests_per_minute, prompt_price and completion_price per million tokens, max_cost

    first stages: SPEC or NAME=SPEC, where SPEC is bm25, dense:MODEL, splade:MODEL, or rerank:MODEL (a reranker over
    BM25's top --rerank-depth documents).

    A teacher too weak for the task just counts, [1] > [2] > [3]: its lists only teach the first stage's order. The
    report counts such answers; refuse_given_order=true retries them and then marks them as failed. The ranking is
    taken from the last sequence [2] > [1] > [3] in the answer that contains at least half of the passages; numbers in
    prose and in <think>…</think> are ignored. Repeated and invalid numbers are dropped, missing passages are appended
    in the first stage's order, and the row is marked as repaired. An answer without such a sequence is retried and
    then recorded as failed, in failed.ndjson, never in the rows.

    With --leakage, queries that are also in a test collection, exactly or nearly, get no list, and the collection's
    passages are removed from the lists; the counts go into provenance.json and the card. Without it the card says that
    leakage was not checked.

    Every answer is cached: an interrupted or repeated run repeats no request. The output folder gets data/ (parquet,
    train and validation; for `tsarank train distill`), failed.ndjson and provenance.json.
    """
    parser = add_command(
        commands,
        "lists",
        "lists of documents, ranked by a teacher",
        _LIST_EXAMPLES,
        run,
        common="limit leakage first-stages list-size teacher-url teacher-local teacher-scores teacher-model ray",
    )
    add_options(parser, SharedOptions, "corpus")
    add_options(parser, SharedOptions, "output", metavar="DIR", help="output folder")
    add_options(parser, ListOptions, "queries", "limit", "validation_share", "first_stages", "list_size")
    add_options(parser, SharedOptions, "rerank_depth", "seed", "leakage", "cache", "index_cache")
    group = parser.add_argument_group("teacher")
    who = group.add_mutually_exclusive_group(required=True)
    add_options(who, ListOptions, "teacher_url", "teacher_local", "teacher_scores")
    add_options(group, ListOptions, "teacher_model", "teacher_options", "concurrency")
    add_options(group, SharedOptions, "teacher_weights", "teacher_trained_on", "max_length", "max_query_length")
    add_options(group, SharedOptions, "device", "dtype")
    add_pool_arguments(parser)


def _add_scores(commands: Any, run: Any) -> None:
    """Add a teacher's scores to labelled rows, for `tsarank train sft --teacher_weight W` (the labels stay, and the
    teacher's scores grade the relevance of all documents) or for `tsarank train distill` with a loss on scores.

    With --leakage, rows and documents that are also in a test collection, exactly or nearly, are left out.

    Rows in any layout of fine-tuning data are written as {"query_id", "query", "positives", "negatives",
    "positive_scores", "negative_scores"}. Scores are cached: an interrupted or repeated run computes none twice.
    NAME.report.txt, next to the rows, records the teacher and the leakage check for the cards, and how often the
    teacher's best document is a labelled one; --consistent-only writes only such rows, for model-generated queries
    that may not match their passages (Promptagator's round-trip filter, 2022).
    """
    parser = add_command(
        commands,
        "scores",
        "a teacher's scores for labelled documents",
        _SCORE_EXAMPLES,
        run,
        common="teacher-weights consistent-only leakage device dtype batch-tokens",
    )
    parser.add_argument("rows", metavar="ROWS", help="file, folder or Hub id of fine-tuning data")
    parser.add_argument(
        "--teacher",
        required=True,
        action="append",
        metavar="M",
        help="a reranker of this project (`default`: the released one), or of sentence-transformers ce:M, a "
        "CrossEncoder, or dense:M, a bi-encoder; if repeated, the mean of their z-scores in each row",
    )
    add_options(parser, SharedOptions, "teacher_weights", "teacher_trained_on", "leakage", "output")
    parser.add_argument(
        "--consistent-only", action="store_true", help="only rows whose labelled documents the teacher ranks first"
    )
    add_options(parser, SharedOptions, "max_length", "max_query_length", "batch_tokens", "cache", "device", "dtype")
    add_pool_arguments(parser)


def _add_mine(commands: Any, run: Any) -> None:
    """Mine hard negatives for `tsarank train sft`: for every query with relevant documents, m documents from a window
    of a first stage's ranks. Positives and their copies are never negatives. Likely false negatives are dropped by
    score: candidates that score above the lowest positive's score minus a margin, by the first stage or, with
    --judge, by a reranker.

    First stages: bm25, splade:MODEL, dense:MODEL, rerank:MODEL (over bm25's top --rerank-depth documents). Every
    negative is recorded with its rank and score, every row with its source, first stage, window and margins.

    With --leakage, queries, positives and negatives that are also in a test collection, exactly or nearly, are left
    out.

    Queries of `tsarank data queries` need no qrels: each is labelled with the passage it was made from.
    """
    parser = add_command(
        commands,
        "mine",
        "hard negatives for fine-tuning",
        _MINE_EXAMPLES,
        run,
        common="dataset split corpus queries qrels first-stage depth count relative-margin judge sampling leakage",
    )
    add_options(parser, MineOptions)
    add_options(parser, SharedOptions, "corpus", required=False)
    add_options(parser, MiningOptions)
    more = ("output", "leakage", "rerank_depth", "index_cache", "batch_tokens", "cache", "device", "dtype")
    add_options(parser, SharedOptions, *more)
    add_pool_arguments(parser)

"""Make distillation lists (TWOLAR, section 3.2): the queries of each type are split evenly over the first stages, each
stage finds the top documents of its queries, and a teacher puts every list in order.

teachers (one of them):
  --teacher-url U --teacher-model M   any OpenAI-compatible server, asked with a listwise prompt; the key is read from
                                      the environment variable key_variable, never from an option
  --teacher-local M                   a causal language model on this machine, asked the same
  --teacher-scores M                  a reranker of this project (`default`: the released one), or of
                                      sentence-transformers ce:M, a CrossEncoder, or dense:M, a bi-encoder: its
                                      scores give the order; of several the mean of their z-scores in each list,
                                      weighted by --teacher-weights

--teacher-options NAME=VALUE …, how a language model is asked:
  prompt=conversation (RankGPT's, a message a passage) or single (all in one message, for small models), window, step,
  passage_words, max_tokens, refuse_given_order=true; and with --teacher-url: key_variable, timeout, tries,
  requests_per_minute, prompt_price and completion_price of a million tokens, max_cost

first stages: SPEC or NAME=SPEC, where SPEC is bm25, dense:MODEL, splade:MODEL, or rerank:MODEL (a reranker over BM25's
first --rerank-depth documents).

A teacher too weak for the task answers by counting, [1] > [2] > [3]: its lists teach the first stage's order only. The
report counts such answers; refuse_given_order=true asks again, then fails them. An answer is read from its last run
[2] > [1] > [3] that names at least half of the passages; numbers in prose and in <think>…</think> do not count.
Repeated numbers and those of no passage are dropped, missing passages appended in the first stage's order, and the row
is marked as repaired. An answer without such a run is asked for again and then recorded as failed, in failed.ndjson,
never among the rows.

With --leakage, queries that a test collection has as well, exactly or nearly, get no list, and its passages are taken
out of the lists; the counts go into provenance.json and the card. Without it the card says that nothing was checked.

Every answer is cached: a killed or repeated run asks nothing twice. The output folder gets data/ (parquet, train and
validation; give it to `tsarank train distill`), failed.ndjson and provenance.json.
"""

from __future__ import annotations

import argparse
import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import add_command, real, whole
from modeling_tsarank.jobs.arguments import add_pool_arguments, with_pool
from modeling_tsarank.trainers.data.command_options import (
    add_shared,
    given_lengths,
    make_retriever,
    open_cache,
    open_check,
    print_counts,
    read_passages,
)


if TYPE_CHECKING:
    from modeling_tsarank.jobs.pools import Pool
    from modeling_tsarank.rankers.endpoint import Usage
    from modeling_tsarank.trainers.data.list_ordering import Teacher

logger = logging.getLogger(__name__)

_EXAMPLES = """\
  export TSARANK_TEACHER_KEY=…
  tsarank data lists --corpus beir/msmarco --queries cropped.jsonl generated.jsonl --output lists \\
      --first-stages bm25 splade:S dense:D rerank:castorini/monot5-base-msmarco --concurrency 8 \\
      --teacher-url https://host/v1 --teacher-model M --teacher-options prompt_price=0.5 completion_price=1.5
  tsarank data lists --corpus corpus.jsonl --queries q.jsonl --first-stages bm25 dense:D --output lists \\
      --teacher-scores default dense:D --teacher-weights 0.6 0.4 --list-size 10
"""


def register_lists(subparsers: Any) -> None:
    """Adds `lists`."""
    parser = add_command(
        subparsers,
        "lists",
        "lists of documents, ordered by a teacher",
        str(__doc__),
        _EXAMPLES,
        run_lists,
        common="limit leakage first-stages list-size teacher-url teacher-local teacher-scores teacher-model ray",
    )
    add_shared(parser, "corpus")
    parser.add_argument("--queries", nargs="+", required=True, metavar="FILE", help="files of `tsarank data queries`")
    add_shared(parser, "output", metavar="DIR", help="folder to write")
    parser.add_argument(
        "--limit", type=whole(), default=None, metavar="N", help="order only N lists, spread over all kinds"
    )
    parser.add_argument(
        "--validation-share", type=real(least=0, below=1), default=0.05, metavar="X", help="default: 0.05 (19:1)"
    )
    parser.add_argument("--first-stages", nargs="+", default=["bm25"], metavar="S", help="see above (default: bm25)")
    parser.add_argument(
        "--list-size", type=whole(least=2), default=30, metavar="N", help="documents of a list (default: 30)"
    )
    add_shared(parser, "rerank-depth", "seed", "leakage", "cache", "index-cache")
    group = parser.add_argument_group("teacher")
    who = group.add_mutually_exclusive_group(required=True)
    who.add_argument("--teacher-url", metavar="U", help="OpenAI-compatible server, such as https://host/v1")
    who.add_argument("--teacher-local", metavar="M", help="causal language model on this machine")
    who.add_argument(
        "--teacher-scores",
        nargs="+",
        action="extend",
        metavar="M",
        help="reranker, ce:CrossEncoder or dense:BiEncoder; or several",
    )
    group.add_argument("--teacher-model", default="", metavar="M", help="the model's name at the server")
    group.add_argument("--teacher-options", nargs="+", default=[], metavar="NAME=VALUE", help="see above")
    group.add_argument(
        "--concurrency",
        type=whole(most=1_000),
        default=4,
        metavar="N",
        help="lists a server has at a time (default: 4)",
    )
    add_shared(group, "teacher-weights", "teacher-trained-on", "max-length", "max-query-length", "device", "dtype")
    add_pool_arguments(parser)


def run_lists(args: argparse.Namespace) -> int:
    """Runs `tsarank data lists`."""
    from modeling_tsarank.trainers.data.teacher_scores import TeacherWorker

    return with_pool(args, partial(_make_lists, args), TeacherWorker())


def _make_lists(args: argparse.Namespace, pool: Pool) -> int:
    from modeling_tsarank.rankers.endpoint import Usage
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.list_building import (
        collect_lists,
        describe_stage,
        parse_stage,
        read_queries,
        spread,
    )
    from modeling_tsarank.trainers.data.list_ordering import order_lists, summarize
    from modeling_tsarank.trainers.data.list_writing import write_lists
    from modeling_tsarank.trainers.data.provenance import describe_file, teacher_facts

    given = args.teacher_scores or [args.teacher_local or args.teacher_model]
    teachers = teacher_facts(given, args.teacher_trained_on, here=not args.teacher_url)
    queries = read_queries(args.queries)
    stages = [parse_stage(text, rerank_depth=args.rerank_depth) for text in args.first_stages]
    documents = read_passages(args.corpus)
    leakage = None
    with ExitStack() as stack:
        args.opened_cache = open_cache(args)
        check = open_check(args, stack)
        if check is not None:
            asked = len(queries)
            queries = check.clean_queries(queries)
            if not queries:
                raise InputError(f"all {asked} queries are queries or passages of the test collections (--leakage)")
        usage = Usage()
        teacher, description = _teacher(args, usage, stack, pool)
        retriever = make_retriever(args, pool, documents)
        tasks, short = collect_lists(retriever, queries, stages, args.list_size, seed=args.seed)
        if check is not None:
            found = sum(len(task.document_ids) for task in tasks)
            tasks = check.clean_lists(tasks, documents)
            counts = {
                "queries_left_out": asked - len(queries),
                "documents_left_out": found - sum(len(task.document_ids) for task in tasks),
            }
            short += [task for task in tasks if len(task.document_ids) < 2]
            tasks = [task for task in tasks if len(task.document_ids) >= 2]
            leakage = {**check.record(), **counts}
        all_lists = len(tasks)
        tasks = tasks if args.limit is None else spread(tasks, args.limit)
        orderings = order_lists(teacher, tasks, documents)
    report = {
        "title": f"Distillation lists of {Path(args.corpus).name}",
        "seed": args.seed,
        "corpus": {**describe_file(Path(args.corpus)), "documents": len(documents)},
        "query_files": [describe_file(Path(path)) for path in args.queries],
        "teacher": description,
        "first_stages": [describe_stage(stage) for stage in stages],
        "list_size": args.list_size,
        "teachers": teachers,
        "leakage": leakage,
        "usage": usage.as_dict(),
        "not_asked_by_limit": all_lists - len(tasks),
        **summarize(tasks, orderings, len(short)),
    }
    report["queries"] += report["not_asked_by_limit"]
    splits = write_lists(args.output, tasks, orderings, documents, teacher.name, report, args.validation_share)
    return _finish(args, {**report, "splits": splits}, teacher.name)


def _teacher(args: argparse.Namespace, usage: Usage, stack: ExitStack, pool: Pool) -> tuple[Teacher, dict[str, Any]]:
    """The teacher and its description."""
    from modeling_tsarank.rankers.arguments import named_values
    from modeling_tsarank.rankers.chat import ChatEndpoint, ChatSettings
    from modeling_tsarank.rankers.listwise import ListwiseOptions
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.filters import build_options, option_defaults
    from modeling_tsarank.trainers.data.list_ordering import EndpointTeacher
    from modeling_tsarank.trainers.data.teacher_scores import LocalTeacher, ScoringTeacher, teacher_scorer

    options, cache = named_values(args.teacher_options, "--teacher-options"), args.opened_cache
    if args.teacher_scores is not None:
        if options:
            raise InputError("--teacher-options are for language models, not for --teacher-scores")
        place = None, args.device, args.dtype, pool
        scorer = teacher_scorer(args.teacher_scores, args.teacher_weights, cache, usage, *place, **given_lengths(args))
        return ScoringTeacher(scorer), scorer.describe()
    if args.teacher_weights is not None:
        raise InputError("--teacher-weights is for several teachers that score (--teacher-scores)")
    names = [name for name, _ in option_defaults(ListwiseOptions)]
    asked = {name: options.pop(name) for name in names if name in options}
    how = build_options(ListwiseOptions, asked, "--teacher-options")
    if args.teacher_local is not None:
        longest = options.pop("max_tokens", 256)
        if options:
            raise InputError(f"--teacher-options: {', '.join(options)} is nothing of a --teacher-local")
        place_options = {"max_new_tokens": longest, "device": args.device, "dtype": args.dtype}
        local = LocalTeacher(args.teacher_local, how, cache, usage, pool, **place_options)
        return local, local.description
    if {"url", "model"} & options.keys():
        raise InputError("--teacher-options: url and model of a server are --teacher-url and --teacher-model")
    where = {"url": args.teacher_url, "model": args.teacher_model, "key_variable": "TSARANK_TEACHER_KEY"}
    client = ChatEndpoint(build_options(ChatSettings, {**where, **options}, "--teacher-options"), cache, usage)
    return EndpointTeacher(stack.enter_context(client), how, args.concurrency), {**client.describe(), **how.describe()}


def _finish(args: argparse.Namespace, report: dict[str, Any], teacher: str) -> int:
    """Says what came of it."""
    from modeling_tsarank.ranking_errors import ModelError
    from modeling_tsarank.trainers.data.list_writing import FAILED_FILE

    rows = [("queries", report["queries"]), ("  too few documents", report["too_few_documents"])]
    rows += [("  not asked (--limit)", report["not_asked_by_limit"])]
    if report["leakage"] is not None:
        for what in ("queries", "documents"):
            rows.append((f"left out by --leakage: {what}", report["leakage"][f"{what}_left_out"]))
    rows += [(f"  {name}", count) for name, count in report["outcomes"].items()]
    rows += [(f"{name} rate", share) for name, share in report["rates"].items()]
    rows += [(f"answers: {name.replace('_', ' ')}", count) for name, count in report["answers"].items()]
    rows += [(f"usage: {name.replace('_', ' ')}", round(value, 6)) for name, value in report["usage"].items()]
    rows += [(f"rows: {name}", count) for name, count in report["splits"].items()]
    print_counts("Lists", rows)
    used, kept = report["answers"]["used"], report["answers"]["keeping_the_given_order"]
    if kept > used / 2:
        logger.warning(
            "%d of the teacher's %d answers keep the given order: it may only count; see refuse_given_order and "
            "prompt of --teacher-options, or take a stronger teacher",
            kept,
            used,
        )
    if not report["splits"]["train"] + report["splits"]["validation"]:
        raise ModelError(
            f"the teacher {teacher} ordered none of {report['lists']} lists; {args.output / FAILED_FILE} has why"
        )
    return 0

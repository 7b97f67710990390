"""`tsarank data lists`: lists of documents ordered by a teacher, ready for distillation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import add_command, real, seed, whole
from modeling_tsarank.jobs.arguments import add_pool_arguments, with_pool
from modeling_tsarank.trainers.data.command_options import (
    add_cache,
    add_corpus,
    add_leakage,
    add_lengths,
    add_model_place,
    add_teacher_weights,
    add_trained_on,
    given_lengths,
    open_cache,
    open_check,
    read_passages,
)


if TYPE_CHECKING:
    from modeling_tsarank.jobs.pools import Pool
    from modeling_tsarank.rankers.endpoint import Usage
    from modeling_tsarank.rankers.listwise import Ordering
    from modeling_tsarank.trainers.data.list_building import ListTask
    from modeling_tsarank.trainers.data.teacher_cache import RequestCache

logger = logging.getLogger(__name__)

# What every system can wait for, and what adds up to a finite sum.
_SECONDS, _PRICE = real(least=0.001, most=1e6), real(least=0, most=1e9)

_DESCRIPTION = """\
Make distillation lists (TWOLAR, section 3.2): the queries of each type are split evenly over the first stages, each
stage finds the top documents of its queries, and a teacher puts every list in order.

teachers (one of them):
  --teacher-url U --teacher-model M   any OpenAI-compatible server, asked with a listwise prompt; the key is
                                      read from the environment variable --teacher-key-variable, never from an option
  --teacher-local M                   a causal language model on this machine, asked the same
  --teacher-scores M                  a reranker of this project (`default`: the released one), or of
                                      sentence-transformers ce:M, a CrossEncoder, or dense:M, a bi-encoder: its
                                      scores give the order; of several the mean of their z-scores in each list,
                                      weighted by --teacher-weights

first stages: SPEC or NAME=SPEC, where SPEC is bm25, dense:MODEL, splade:MODEL, or rerank:MODEL (a reranker over BM25's
first --rerank-depth documents).

--prompt conversation (RankGPT's, a message a passage) suits large chat models; --prompt single (all passages in one
message, as for RankZephyr) small ones. A teacher too weak for the task answers by counting, [1] > [2] > [3]: its lists
teach the first stage's order only. The report counts such answers; --refuse-given-order asks again, then fails them.

An answer is read from its last run [2] > [1] > [3] that names at least half of the passages; numbers in prose and in
<think>…</think> do not count. Repeated numbers and those of no passage are dropped, missing passages appended in the
first stage's order, and the row is marked as repaired. An answer without such a run is asked for again and then
recorded as failed, in failed.ndjson, never among the rows.

With --leakage, queries that a test collection has as well, exactly or nearly, get no list, and its passages are taken
out of the lists; the counts go into provenance.json and the card. Without it the card says that nothing was checked.

Every answer is cached: a killed or repeated run asks nothing twice. The output folder gets data/ (parquet, train and
validation; give it to `tsarank train distill`), failed.ndjson and provenance.json.
"""
_EXAMPLES = """\
  export TSARANK_TEACHER_KEY=…
  tsarank data lists --corpus beir/msmarco --queries cropped.jsonl generated.jsonl --output lists \\
      --first-stages bm25 splade:S dense:D rerank:castorini/monot5-base-msmarco \\
      --teacher-url https://host/v1 --teacher-model M --concurrency 8 --prompt-price 0.5 --completion-price 1.5
  tsarank data lists --corpus corpus.jsonl --queries q.jsonl --first-stages bm25 dense:D --output lists \\
      --teacher-scores default --list-size 10
  tsarank data lists --corpus corpus.jsonl --queries q.jsonl --first-stages bm25 dense:D --output lists \\
      --teacher-scores default dense:D --teacher-weights 0.6 0.4
"""


def register_lists(subparsers: Any) -> None:
    """Adds `lists`."""
    parser = add_command(
        subparsers, "lists", "lists of documents, ordered by a teacher", _DESCRIPTION, _EXAMPLES, run_lists
    )
    add_corpus(parser)
    parser.add_argument("--queries", nargs="+", required=True, metavar="FILE", help="files of `tsarank data queries`")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--limit", type=whole(), default=None, metavar="N", help="order only N lists, spread over all kinds"
    )
    parser.add_argument(
        "--validation-share",
        type=real(least=0, below=1),
        default=0.05,
        metavar="X",
        help="default: 0.05, that is 19:1",
    )
    parser.add_argument("--seed", type=seed(), default=0, help="of dealing out and splitting (default: 0)")
    add_leakage(parser)
    add_cache(parser, "answers and scores")
    _add_stages(parser)
    _add_teachers(parser)
    _add_endpoint(parser)
    add_model_place(parser)
    add_pool_arguments(parser)


def _add_stages(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("first stages")
    group.add_argument("--first-stages", nargs="+", default=["bm25"], metavar="S", help="see above (default: bm25)")
    group.add_argument(
        "--list-size", type=whole(least=2), default=30, metavar="N", help="documents of a list (default: 30)"
    )
    group.add_argument(
        "--rerank-depth", type=whole(), default=100, metavar="N", help="reranked documents (default: 100)"
    )
    group.add_argument("--index-cache", type=Path, default=None, metavar="DIR", help="where indexes are kept")


def _add_teachers(parser: argparse.ArgumentParser) -> None:
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
    add_teacher_weights(group)
    add_trained_on(group)
    group.add_argument(
        "--window", type=whole(least=2), default=None, metavar="N", help="passages in a prompt (default: all)"
    )
    group.add_argument("--step", type=whole(), default=None, metavar="N", help="of the window (default: half of it)")
    group.add_argument(
        "--prompt", choices=["conversation", "single"], default="conversation", help="default: conversation"
    )
    group.add_argument(
        "--refuse-given-order",
        action="store_true",
        help="answers that keep four or more passages as given (or in the "
        "prompt's example, the rest as given) are no use",
    )
    group.add_argument("--passage-words", type=whole(), default=300, metavar="N", help="words shown (default: 300)")
    group.add_argument("--max-tokens", type=whole(), default=None, metavar="N", help="longest answer")
    add_lengths(group, "a reranker")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server (with --teacher-url)")
    group.add_argument("--teacher-model", default="", metavar="M", help="the model's name at the server")
    group.add_argument(
        "--teacher-key-variable", default="TSARANK_TEACHER_KEY", metavar="V", help="default: TSARANK_TEACHER_KEY"
    )
    group.add_argument(
        "--concurrency", type=whole(most=1_000), default=4, metavar="N", help="lists at a time (default: 4)"
    )
    group.add_argument(
        "--requests-per-minute", type=real(least=0.001, most=1e6), default=None, metavar="N", help="rate limit"
    )
    group.add_argument(
        "--timeout",
        type=_SECONDS,
        default=120.0,
        metavar="S",
        help="seconds a request may take as a whole (default: 120)",
    )
    group.add_argument("--tries", type=whole(), default=6, metavar="N", help="per request (default: 6)")
    group.add_argument("--prompt-price", type=_PRICE, default=0.0, metavar="P", help="of a million tokens read")
    group.add_argument(
        "--completion-price",
        type=_PRICE,
        default=0.0,
        metavar="P",
        help="of a million tokens written",
    )
    group.add_argument("--max-cost", type=real(above=0, most=1e9), metavar="P", help="stop when so much is spent")


def run_lists(args: argparse.Namespace) -> int:
    """Runs `tsarank data lists`."""
    from modeling_tsarank.trainers.data.teacher_scores import ScorerWorker

    return with_pool(args, partial(_make_lists, args), ScorerWorker())


def _make_lists(args: argparse.Namespace, pool: Pool) -> int:
    from modeling_tsarank.rankers.endpoint import Usage
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.list_building import (
        Retriever,
        collect_lists,
        describe_stage,
        parse_stage,
        read_queries,
        spread,
    )
    from modeling_tsarank.trainers.data.list_ordering import order_lists, summarize
    from modeling_tsarank.trainers.data.teacher_facts import teacher_facts
    from modeling_tsarank.trainers.data.teacher_scores import CachedScorer

    given = args.teacher_scores or [args.teacher_local or args.teacher_model]
    teachers = teacher_facts(given, args.teacher_trained_on, here=not args.teacher_url)
    queries = read_queries(args.queries)
    stages = [parse_stage(text, rerank_depth=args.rerank_depth) for text in args.first_stages]
    documents = read_passages(args.corpus)
    lengths = given_lengths(args)
    with ExitStack() as stack:
        cache, check = open_cache(args), open_check(args, stack)
        if check is not None:
            asked = len(queries)
            queries = check.clean_queries(queries)
            if not queries:
                raise InputError(f"all {asked} queries are queries or passages of the test collections (--leakage)")
        usage = Usage()
        teacher, description, concurrency, stop = _teacher(args, cache, usage, stack, pool)

        def make_scorer(name: str) -> CachedScorer:
            return CachedScorer(name, cache, None, None, args.device, args.dtype, pool, **lengths)

        options = {} if args.device is None else {kind: {"device": args.device} for kind in ("dense", "splade")}
        retriever = Retriever(documents, args.index_cache, make_scorer, options)
        tasks, short = collect_lists(retriever, queries, stages, args.list_size, seed=args.seed)
        leakage = None
        if check is not None:
            found = sum(len(task.document_ids) for task in tasks)
            tasks = check.clean_lists(tasks, documents)
            removed = found - sum(len(task.document_ids) for task in tasks)
            short += [task for task in tasks if len(task.document_ids) < 2]
            tasks = [task for task in tasks if len(task.document_ids) >= 2]
            counts = {"queries_left_out": asked - len(queries), "documents_left_out": removed}
            leakage = {**check.record(), **counts}
        left_out = len(tasks)
        if args.limit is not None:
            tasks = spread(tasks, args.limit)
        left_out -= len(tasks)
        orderings = order_lists(teacher, tasks, documents, concurrency, stop)
    summary = summarize(tasks, orderings, len(short)) | {"not_asked_by_limit": left_out}
    summary["queries"] += left_out
    about = {
        "teacher": description,
        "first_stages": [describe_stage(stage) for stage in stages],
        "list_size": args.list_size,
        "teachers": teachers,
        "leakage": leakage,
        "usage": usage.as_dict(),
    }
    return _write(args, tasks, orderings, documents, teacher.name, {**about, **summary})


def _teacher(
    args: argparse.Namespace, cache: RequestCache, usage: Usage, stack: ExitStack, pool: Pool
) -> tuple[Any, Any, int, Any]:
    """The teacher, its description, how many lists it is asked about at a time, and what ends its waiting."""
    from modeling_tsarank.rankers.chat import ChatEndpoint, ChatSettings
    from modeling_tsarank.rankers.chat_local import LocalChat
    from modeling_tsarank.rankers.listwise import ListwiseOptions, ListwiseRanker
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.teacher_mixture import teacher_scorer
    from modeling_tsarank.trainers.data.teacher_scores import ScoringTeacher

    if args.teacher_scores is not None:
        place = None, args.device, args.dtype, pool
        scorer = teacher_scorer(args.teacher_scores, args.teacher_weights, cache, usage, *place, **given_lengths(args))
        return ScoringTeacher(scorer), scorer.describe(), 1, None
    if args.teacher_weights is not None:
        raise InputError("--teacher-weights is for several teachers that score (--teacher-scores)")
    options = ListwiseOptions(
        window=args.window,
        step=args.step,
        passage_words=args.passage_words,
        prompt=args.prompt,
        refuse_given_order=args.refuse_given_order,
    )
    if args.teacher_local is not None:
        local = LocalChat(args.teacher_local, cache, usage, args.max_tokens or 256, args.device, args.dtype)
        return ListwiseRanker(local, options), {**local.describe(), **options.describe()}, 1, None
    settings = ChatSettings(
        url=args.teacher_url,
        model=args.teacher_model,
        key_variable=args.teacher_key_variable,
        max_tokens=args.max_tokens,
        timeout=args.timeout,
        tries=args.tries,
        requests_per_minute=args.requests_per_minute,
        prompt_price=args.prompt_price,
        completion_price=args.completion_price,
        max_cost=args.max_cost,
    )
    client = stack.enter_context(ChatEndpoint(settings, cache, usage))
    description = {**client.describe(), **options.describe()}
    return ListwiseRanker(client, options), description, args.concurrency, client.stop


def _write(
    args: argparse.Namespace,
    tasks: Sequence[ListTask],
    orderings: Sequence[Ordering],
    documents: Any,
    teacher: str,
    report: dict[str, Any],
) -> int:
    """Splits, writes and prints."""
    from modeling_tsarank.files.writing import write_jsonl
    from modeling_tsarank.ranking_errors import ModelError
    from modeling_tsarank.trainers.data.list_writing import (
        FAILED_FILE,
        PACKAGES,
        distillation_row,
        failed_row,
        stratified_split,
        write_splits,
    )
    from modeling_tsarank.trainers.data.provenance import describe_file, write_provenance

    prompt = report["teacher"].get("prompt")
    pairs = list(zip(tasks, orderings, strict=True))
    failed = [failed_row(task, ordering, teacher) for task, ordering in pairs if ordering.permutation is None]
    write_jsonl(args.output / FAILED_FILE, failed)
    rows = [
        distillation_row(task, ordering, documents, teacher, prompt)
        for task, ordering in pairs
        if ordering.permutation is not None
    ]
    train, validation = stratified_split(
        rows,
        lambda row: row["query_id"],
        lambda row: (row["query_type"], row["first_stage"]),
        args.validation_share,
        args.seed,
    )
    write_splits(args.output / "data", train, validation)
    report |= {
        "title": f"Distillation lists of {Path(args.corpus).name}",
        "seed": args.seed,
        "corpus": {**describe_file(Path(args.corpus)), "documents": len(documents)},
        "query_files": [describe_file(Path(path)) for path in args.queries],
    }
    report["splits"] = {"train": len(train), "validation": len(validation), "failed": len(failed)}
    write_provenance(args.output, "distillation_lists", report, PACKAGES)
    _print(report)
    used, kept = report["answers"]["used"], report["answers"]["keeping_the_given_order"]
    if kept > used / 2:
        logger.warning(
            "%d of the teacher's %d answers keep the given order: it may only count; see --refuse-given-order and "
            "--prompt, or take a stronger teacher",
            kept,
            used,
        )
    if not rows:
        raise ModelError(
            f"the teacher {teacher} ordered none of {len(tasks)} lists; {args.output / FAILED_FILE} has why"
        )
    return 0


def _print(report: dict[str, Any]) -> None:
    from modeling_tsarank.eval.reports import text_table

    rates, usage = report["rates"], report["usage"]
    rows = [["queries", report["queries"]], ["  too few documents", report["too_few_documents"]]]
    rows += [["  not asked (--limit)", report["not_asked_by_limit"]]]
    if report["leakage"] is not None:
        rows.append(["left out by --leakage: queries", report["leakage"]["queries_left_out"]])
        rows.append(["left out by --leakage: documents", report["leakage"]["documents_left_out"]])
    rows += [[f"  {name}", count] for name, count in report["outcomes"].items()]
    rows += [["failure rate", rates["failure"]], ["repair rate", rates["repair"]]]
    rows += [[f"answers: {name.replace('_', ' ')}", count] for name, count in report["answers"].items()]
    rows += [[f"usage: {name.replace('_', ' ')}", round(value, 6)] for name, value in usage.items()]
    rows += [[f"rows: {name}", count] for name, count in report["splits"].items()]
    sys.stdout.write(text_table(["Lists", "Number"], [[str(name), str(value)] for name, value in rows]))

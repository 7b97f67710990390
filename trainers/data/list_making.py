"""Distillation lists: built from queries and a corpus, ranked by a teacher, written with a report of all counts."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from operator import attrgetter
from pathlib import Path
from typing import Any

from modeling_tsarank.eval.beir import read_corpus
from modeling_tsarank.eval.types import Document
from modeling_tsarank.files.tables import arrow
from modeling_tsarank.files.writing import whole_file, write_jsonl
from modeling_tsarank.jobs.pools import Pool
from modeling_tsarank.rankers.arguments import named_values
from modeling_tsarank.rankers.chat import ChatEndpoint, ChatSettings
from modeling_tsarank.rankers.endpoint import Usage
from modeling_tsarank.rankers.listwise import ListwiseOptions, Ordering
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.data.filters import build_options, option_defaults
from modeling_tsarank.trainers.data.list_building import (
    ListTask,
    collect_lists,
    describe_stage,
    document_record,
    parse_stage,
    place_of,
    read_queries,
    spread,
)
from modeling_tsarank.trainers.data.list_ordering import EndpointTeacher, Teacher, order_lists, summarize
from modeling_tsarank.trainers.data.making import (
    corpus_file,
    make_retriever,
    make_scorer,
    open_cache,
    open_check,
    pooled,
    print_counts,
)
from modeling_tsarank.trainers.data.provenance import describe_file, teacher_facts, write_provenance
from modeling_tsarank.trainers.data.teacher_scores import LocalTeacher, ScoringTeacher


logger = logging.getLogger(__name__)

PACKAGES = ("bm25s", "httpx2", "pyarrow", "sentence-transformers", "torch", "transformers")
"""Packages whose versions are recorded with a dataset."""

Row = Mapping[str, Any]

FAILED_FILE = "failed.ndjson"
"""Lists without a ranking; readers of training data ignore this suffix."""


@pooled
def make_lists(args: Namespace, pool: Pool) -> int:
    """Runs `tsarank data lists`."""
    given = args.teacher_scores or [args.teacher_local or args.teacher_model]
    teachers = teacher_facts(given, args.teacher_trained_on, here=not args.teacher_url)
    queries = read_queries(args.queries)
    stages = [parse_stage(text, args.rerank_depth) for text in args.first_stages]
    documents = read_corpus(corpus_file(args.corpus))
    leakage = None
    with ExitStack() as stack:
        open_cache(args)
        asked, check = len(queries), open_check(args, stack)
        if check is not None:
            queries = check.clean_queries(queries, attrgetter("text"))
            if not queries:
                raise InputError(f"all {asked} queries are queries or passages of the test collections (--leakage)")
        usage = Usage()
        teacher, description = _teacher(args, usage, stack, pool)
        retriever = make_retriever(args, pool, documents)
        tasks, short = collect_lists(retriever, queries, stages, args.list_size, args.seed)
        if check is not None:
            found = sum(len(task.document_ids) for task in tasks)
            tasks = check.clean_lists(tasks, documents)
            left = sum(len(task.document_ids) for task in tasks)
            short += [task for task in tasks if len(task.document_ids) < 2]
            tasks = [task for task in tasks if len(task.document_ids) >= 2]
            counts = {"queries_left_out": asked - len(queries), "documents_left_out": found - left}
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
    rows, failed = [], []
    for task, ordering in zip(tasks, orderings, strict=True):
        if ordering.permutation is None:
            failed.append(_failed_row(task, ordering, teacher.name))
        else:
            rows.append(_distillation_row(task, ordering, documents, teacher.name, description.get("prompt")))
    write_jsonl(args.output / FAILED_FILE, failed)
    train, validation = stratified_split(rows, args.validation_share, args.seed)
    for name, own in (("train", train), ("validation", validation)):
        path = args.output / "data" / f"{name}-00000-of-00001.parquet"
        if own:
            write_parquet(path, own)
        else:
            path.unlink(missing_ok=True)
    report["splits"] = {"train": len(train), "validation": len(validation), "failed": len(failed)}
    write_provenance(args.output, "distillation_lists", report, PACKAGES)
    _tell(report)
    if not rows:
        raise ModelError(
            f"the teacher {teacher.name} ranked none of {report['lists']} lists; {args.output / FAILED_FILE} says why"
        )
    return 0


def _teacher(args: Namespace, usage: Usage, stack: ExitStack, pool: Pool) -> tuple[Teacher, dict[str, Any]]:
    """The teacher and its description."""
    options, cache = named_values(args.teacher_options, "--teacher-options"), open_cache(args)
    if args.teacher_scores is not None:
        if options:
            raise InputError("--teacher-options are for language models, not for --teacher-scores")
        scorer = make_scorer(args, pool, args.teacher_scores, args.teacher_weights, usage)
        return ScoringTeacher(scorer), scorer.describe()
    if args.teacher_weights is not None:
        raise InputError("--teacher-weights needs several teachers that score (--teacher-scores)")
    names = [name for name, _ in option_defaults(ListwiseOptions)]
    asked = {name: options.pop(name) for name in names if name in options}
    how = build_options(ListwiseOptions, asked, "--teacher-options")
    if args.teacher_local is not None:
        longest = options.pop("max_tokens", 256)
        if options:
            raise InputError(f"--teacher-options: {', '.join(options)} is not an option of --teacher-local")
        place_options = {"max_new_tokens": longest, "device": args.device, "dtype": args.dtype}
        local = LocalTeacher(args.teacher_local, how, cache, usage, pool, **place_options)
        return local, local.description
    if {"url", "model"} & options.keys():
        raise InputError("--teacher-options: give url and model of a server as --teacher-url and --teacher-model")
    where = {"url": args.teacher_url, "model": args.teacher_model, "key_variable": "TSARANK_TEACHER_KEY"}
    client = ChatEndpoint(build_options(ChatSettings, {**where, **options}, "--teacher-options"), cache, usage)
    return EndpointTeacher(stack.enter_context(client), how, args.concurrency), {**client.describe(), **how.describe()}


def _tell(report: dict[str, Any]) -> None:
    """Prints the report."""
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
            "%d of the teacher's %d answers are in the given order: it may just be counting; see refuse_given_order "
            "and prompt of --teacher-options, or use a stronger teacher",
            kept,
            used,
        )


# ---- the files ---------------------------------------------------------------------------------------


def _distillation_row(
    task: ListTask, ordering: Ordering, documents: Mapping[str, Document], teacher: str, prompt: str | None
) -> dict[str, Any]:
    """A row of distillation data for `trainers.training_data`, with its origin.

    Documents are in the first stage's order; `permutation` has their indices from 0 in the teacher's order, best
    first; `teacher_scores`, if the teacher scores, one per document. `answer` is the raw answer (null for a teacher
    that scores), `repaired` "true" or "false".
    """
    row: dict[str, Any] = {
        "query_id": task.query.query_id,
        "query": task.query.text,
        "documents": [document_record(name, documents) for name in task.document_ids],
        "permutation": ordering.permutation,
    }
    if ordering.scores is not None:
        row["teacher_scores"] = list(ordering.scores)
    return row | {
        "query_type": task.query.query_type,
        "source_docid": task.query.source,
        "generator": task.query.generator,
        "first_stage": task.first_stage,
        "teacher": teacher,
        "prompt": prompt,
        "answer": ordering.raw_answer if ordering.scores is None else None,
        "repaired": "true" if ordering.outcome == "repaired" else "false",
    }


def _failed_row(task: ListTask, ordering: Ordering, teacher: str) -> dict[str, Any]:
    """The record of a list without a ranking: everything but a permutation."""
    told = {name: getattr(ordering, name) for name in ("outcome", "reason", "answers")}
    listed = {"first_stage": task.first_stage, "document_ids": list(task.document_ids)}
    return {**asdict(task.query), **listed, "teacher": teacher, **told}


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Writes distillation rows atomically.

    Raises:
        ResourceError: pyarrow is not installed or the file cannot be written.
    """
    pa = arrow("data")
    text = pa.string()
    document = pa.struct([("docid", text), ("title", text), ("text", text)])
    known = {
        "documents": pa.list_(document),
        "permutation": pa.list_(pa.int64()),
        "teacher_scores": pa.list_(pa.float64()),
    }
    columns = list(dict.fromkeys(name for row in rows for name in row))
    schema = pa.schema([(name, known.get(name, text)) for name in columns])
    with whole_file(path) as temporary:
        pa.parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), temporary)


def stratified_split(
    rows: Sequence[Row], share: float | Fraction = Fraction(1, 20), seed: int = 0
) -> tuple[list[Row], list[Row]]:
    """Training and validation rows, each in the given order.

    The validation set has `round(share * n)` rows. Every stratum, of one query type and first stage, gives its share,
    rounded down, and the remaining places go to the strata with the largest remainders. The selection within a stratum
    depends only on the query ids and the seed, not on the order of the rows.

    Args:
        rows: n rows with a unique `query_id`, `query_type` and `first_stage`.
        share: Fraction of the validation set, from 0 to below 1 (TWOLAR: 1,000 of 20,000).
        seed: Seed of the selection.
    """
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        strata[row["query_type"], row["first_stage"]].append(row["query_id"])
    # A decimal such as 0.05 is used exactly, not as the nearest binary number.
    exact = share if isinstance(share, Fraction) else Fraction(str(share))
    wanted = {key: exact * len(members) for key, members in strata.items()}
    quota = {key: int(amount) for key, amount in wanted.items()}
    left = int(exact * len(rows) + Fraction(1, 2)) - sum(quota.values())
    by_remainder = sorted(strata, key=lambda key: (quota[key] - wanted[key], place_of(seed, "stratum", repr(key))))
    for key in by_remainder[:left]:
        quota[key] += 1
    chosen: set[str] = set()
    for key, members in strata.items():
        chosen.update(sorted(members, key=lambda name: place_of(seed, "validation", name))[: quota[key]])
    return [row for row in rows if row["query_id"] not in chosen], [row for row in rows if row["query_id"] in chosen]

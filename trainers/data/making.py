"""The implementation of the commands of `tsarank data`: queries, hard negatives and teacher scores."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from modeling_tsarank.eval.beir import read_corpus
from modeling_tsarank.eval.beir import read_queries as read_beir_queries
from modeling_tsarank.eval.collections import load_collection, load_collection_from_files
from modeling_tsarank.eval.reports import text_table
from modeling_tsarank.eval.types import Collection, Document
from modeling_tsarank.files.writing import write_jsonl
from modeling_tsarank.jobs.arguments import with_pool
from modeling_tsarank.jobs.pools import Pool
from modeling_tsarank.rankers.endpoint import Usage
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import document_text
from modeling_tsarank.trainers.data.data_options import MiningOptions, SamplingOptions
from modeling_tsarank.trainers.data.filters_leakage import LeakageCheck
from modeling_tsarank.trainers.data.hard_negatives import mine_negatives
from modeling_tsarank.trainers.data.list_building import Retriever, parse_stage, read_queries
from modeling_tsarank.trainers.data.provenance import recorded_origin, teacher_facts, write_report
from modeling_tsarank.trainers.data.query_files import (
    QueryCollector,
    QueryLimits,
    crop_queries,
    normalized,
    write_queries,
)
from modeling_tsarank.trainers.data.query_generation import QueryGenerator, generate_queries
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_scores import Scorer, TeacherWorker, teacher_scorer
from modeling_tsarank.trainers.options import given_options
from modeling_tsarank.trainers.row_checks import RowRules, checked_rows
from modeling_tsarank.trainers.rows import positives_and_negatives


# ---- option values -------------------------------------------------------------------------------------


def pooled(work: Callable[[Namespace, Pool], int]) -> Callable[[Namespace], int]:
    """A command whose teachers and rerankers run on the machines of a pool."""
    return lambda args: with_pool(args, partial(work, args), TeacherWorker())


def corpus_file(source: str) -> Path:
    """The file of `--corpus`; for a folder, its `corpus.jsonl`. Raises `InputError` for a folder without one."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = [path / name for name in ("corpus.jsonl", "corpus.jsonl.gz") if (path / name).is_file()]
        if not found:
            raise InputError(f"the folder {path} has no corpus.jsonl")
        path = found[0]
    return path


def open_check(args: Namespace, stack: ExitStack) -> LeakageCheck | None:
    """The check of `--leakage`, or None if no collection is given."""
    return stack.enter_context(LeakageCheck(args.leakage)) if args.leakage else None


def open_cache(args: Namespace) -> RequestCache:
    """The cache of `--cache`, created on first use."""
    if "opened_cache" not in args:
        args.opened_cache = RequestCache(args.cache or args.output.with_name(f"{args.output.name}.cache.jsonl"))
    cache: RequestCache = args.opened_cache
    return cache


def make_scorer(
    args: Namespace,
    pool: Pool,
    names: list[str],
    weights: list[float] | None = None,
    usage: Usage | None = None,
) -> Scorer:
    """The scorer of one name, or the mean of several, on the machines of the pool."""
    given = ("device", "dtype", "batch_tokens", "max_length", "max_query_length")
    options = {name: value for name in given if (value := getattr(args, name, None)) is not None}
    return teacher_scorer(names, weights, open_cache(args), usage, pool, **options)


def make_retriever(args: Namespace, pool: Pool, documents: Mapping[str, Document]) -> Retriever:
    """First stages over the documents; their rerankers score on the machines of the pool."""
    devices = {} if args.device is None else {kind: {"device": args.device} for kind in ("dense", "splade")}
    return Retriever(documents, args.index_cache, lambda name: make_scorer(args, pool, [name]), devices)


def print_counts(title: str, rows: list[tuple[str, Any]]) -> None:
    """Prints a table of names and numbers to standard output."""
    sys.stdout.write(text_table([title, "Number"], [[name, str(value)] for name, value in rows]))


# ---- the commands --------------------------------------------------------------------------------------


def make_queries(args: Namespace) -> int:
    """Runs `tsarank data queries`."""
    options = given_options(SamplingOptions, args)
    documents = read_corpus(corpus_file(args.corpus))
    with ExitStack() as stack:
        check = open_check(args, stack)

        def leaks(text: str, source: str) -> bool:
            return check is not None and (check.query_leaks([text])[0] or check.passage_leaks([documents[source]])[0])

        avoid = frozenset(normalized(text) for path in args.avoid for text in read_beir_queries(path).values())
        limits = QueryLimits(args.min_words, args.max_words)
        collector = QueryCollector(args.count, args.kind, limits, None, avoid, leaks)
        if args.kind == "cropped":
            crop_queries(documents, collector, options.seed, options.per_passage, args.language)
            settings = {"language": args.language}
        else:
            generator = QueryGenerator(args.model, options, open_cache(args), args.device, args.dtype)
            collector.generator = generator.name
            generate_queries(documents, generator, collector, args.min_shared)
            settings = {**vars(options), "min_shared": args.min_shared}
    report = collector.report()
    if not collector.queries:
        why = ", ".join(f"{reason} {count}" for reason, count in report["rejected"].items()) or "no passage"
        raise InputError(f"no query could be made from {args.corpus} ({why}); change the limits or the corpus")
    report |= {"corpus": Path(args.corpus).name, "seed": args.seed, "per_passage": args.per_passage}
    write_queries(args.output, collector.queries, report | {"leakage": check and check.record(), "settings": settings})
    rejected = [(f"  not taken: {reason}", count) for reason, count in report["rejected"].items()]
    print_counts(f"{args.kind} queries", [*((name, report[name]) for name in ("candidates", "taken")), *rejected])
    if not collector.full:
        sys.stderr.write(f"tsarank: the corpus gave only {report['taken']} of {args.count} queries\n")
    return 0


@pooled
def make_negatives(args: Namespace, pool: Pool) -> int:
    """Runs `tsarank data mine`."""
    options = given_options(MiningOptions, args)
    if args.judge is not None and not options.has_margin:
        raise InputError("--judge scores for the margins: give --absolute-margin or --relative-margin with it")
    collection = _load_judged(args)
    retriever = make_retriever(args, pool, collection.documents)
    stage = parse_stage(args.first_stage, args.rerank_depth)
    scorer = None if args.judge is None else make_scorer(args, pool, [args.judge])
    rows, counts = mine_negatives(collection, stage, retriever, options, scorer)
    leakage = None
    with ExitStack() as stack:
        if check := open_check(args, stack):
            before = counts.report(rows, options.count)
            rows = list(check.clean_rows(rows))
            counts.lost["in a test collection"] += before["rows"] - len(rows)
            leakage = {**check.record(), **{f"{name}_before": before[name] for name in ("rows", "negatives")}}
    if not rows:
        why = ", ".join(f"{reason}: {count}" for reason, count in counts.lost.items())
        raise InputError(
            f"none of {counts.queries} queries got enough negatives ({why}); widen the window or the margins"
        )
    write_jsonl(args.output, rows)
    settings = {name: value for name, value in vars(args).items() if isinstance(value, str | int | float | None)}
    report = counts.report(rows, options.count)
    write_report(args.output, {**report, "teachers": [], "leakage": leakage, "settings": settings})
    lost = [(f"  no row: {reason}", count) for reason, count in counts.lost.items()]
    dropped = [(f"candidates dropped: {reason}", count) for reason, count in counts.candidates.items()]
    negatives = [("negatives", report["negatives"]), ("rows with fewer than asked", report["short"])]
    print_counts("Mining", [("queries", counts.queries), ("rows", len(rows)), *lost, *negatives, *dropped])
    return 0


def _load_judged(args: Namespace) -> Collection:
    """The collection of `--dataset`, or of `--corpus`, `--queries` and `--qrels`.

    Without qrels, a query's relevant document is the passage that `tsarank data queries` made it from.

    Raises:
        InputError: neither is given, a file is malformed, or without qrels a query has no passage in the corpus.
    """
    if args.dataset is not None and not (args.corpus or args.queries or args.qrels):
        return load_collection(args.dataset, args.split)
    if args.dataset is not None or not (args.corpus and args.queries):
        raise InputError("give either --dataset, or --corpus and --queries (and --qrels)")
    corpus = corpus_file(args.corpus)
    if args.qrels:
        return load_collection_from_files(corpus, args.queries, args.qrels, name=corpus.stem)
    documents, queries = read_corpus(corpus), read_queries([args.queries])
    strange = next((query for query in queries if query.source not in documents), None)
    if strange is not None:
        raise InputError(
            f"the query {strange.query_id} of {args.queries} has no passage in {args.corpus} (metadata.docid: "
            f"{strange.source!r:.40}); give --qrels"
        )
    qrels = {query.query_id: {str(query.source): 1} for query in queries}
    return Collection(corpus.stem, documents, {query.query_id: query.text for query in queries}, qrels)


@pooled
def make_scores(args: Namespace, pool: Pool) -> int:
    """Runs `tsarank data scores`."""
    teachers = teacher_facts(args.teacher, args.teacher_trained_on)
    rows = checked_rows(args.rows, RowRules(positives=True, negatives=1), minimum_rows=1).rows
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        check = open_check(args, stack)
        scorer = make_scorer(args, pool, args.teacher, args.teacher_weights)
        bar = map(positives_and_negatives, tqdm(rows, desc="scoring rows", unit="row", disable=None))
        scored = _scored(bar if check is None else check.clean_rows(bar), scorer, counts)
        write_jsonl(args.output, (row for row in scored if not args.consistent_only or _consistent(row)))
    if args.consistent_only and not counts["labelled_first"]:
        args.output.unlink()
        raise InputError(f"the teacher ranks a labelled document first in none of {counts['rows']} rows")
    if not counts["rows"]:
        args.output.unlink()
        raise InputError(f"all {len(rows)} rows are left out because of the test collections (--leakage)")
    # Without a new check, the recorded check of the input rows is still valid.
    leakage = recorded_origin(Path(args.rows))["leakage"] if check is None else check.record()
    facts = {"teacher": scorer.describe(), "teachers": teachers, "leakage": leakage}
    write_report(args.output, {**facts, "rows_before": len(rows), **counts})
    share = f"{counts['labelled_first'] / max(1, counts['rows']):.1%}"
    kept = [("rows kept", counts["labelled_first"])] if args.consistent_only else []
    table: list[tuple[str, Any]] = [(name, counts[name]) for name in ("rows", "documents")]
    print_counts("Scores", [*table, ("a labelled document first", share), *kept])
    return 0


def _consistent(row: Mapping[str, Any]) -> bool:
    """Whether the teacher ranks a labelled document first."""
    return bool(max(row["positive_scores"]) > max(row["negative_scores"]))


def _scored(rows: Any, scorer: Any, counts: Counter[str]) -> Iterator[Mapping[str, Any]]:
    """The rows with their scores, in order."""
    scored, given = tee(map(dict, rows))
    lists = ((row["query"], [document_text(d) for d in row["positives"] + row["negatives"]]) for row in given)
    for row, scores in zip(scored, scorer.scores_of(lists), strict=True):
        count = len(row["positives"])
        row["positive_scores"], row["negative_scores"] = scores[:count], scores[count:]
        counts.update(rows=1, documents=len(scores), labelled_first=_consistent(row))
        yield {name: value for name, value in row.items() if value is not None}

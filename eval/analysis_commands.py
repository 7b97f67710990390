"""`tsarank analyze`: the papers' analyses, each a table and a plot."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import seed, whole
from modeling_tsarank.eval.checkpoint_sources import add_model_options, display_name, scorer_source
from modeling_tsarank.ranking_errors import InputError


_PERPLEXITY = """\
Perplexity of positive and negative queries given a document (TSARankLLM, Figure 5).

Perplexity is exp(-mean log p of the query's tokens). The gap, negative minus positive, roughly tells how well a model
can rank: a good one finds positive queries likely (continual pre-training helps) and negative ones unlikely
(fine-tuning helps). With --more-models, several stand side by side.
"""
_GENERATED = """\
Share of document words and of stop words in generated queries (TSARankLLM, Table 7).

The model writes a query for each of some relevant documents; beside it stand the people's own queries. A document word
is no stop word and has its stem in the document. The paper counted by hand, with synonyms: do not mix the numbers.
"""
_INTERSECTION = """\
How much the candidates of first stages agree (TWOLAR, Table 1 and Eq. 3): the mean share of common documents among the
top N of two stages. Low shares mean that each stage adds documents of its own.
"""


def register_analyze(subparsers: argparse._SubParsersAction) -> None:
    """Adds `analyze` with its three analyses."""
    parser = subparsers.add_parser(
        "analyze",
        help="the papers' analyses: perplexity, generated queries, intersection of first stages",
        description="The papers' analyses; each prints a table and writes it, with a plot, to --output.",
    )
    analyses = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)
    _register_perplexity(analyses)
    _register_generated(analyses)
    _register_intersection(analyses)


def _add(analyses: Any, name: str, help_text: str, description: str, example: str, run: Callable[..., int]) -> Any:
    parser = analyses.add_parser(
        name,
        help=help_text,
        description=description,
        epilog=f"example:\n  {example}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the table and the plot")
    parser.set_defaults(run=run)
    return parser


def _add_dataset(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--dataset", required=required, metavar="D", help="folder in BEIR's layout, Hub id, ir_datasets:NAME"
    )
    parser.add_argument("--split", default="test", help="judged split (default: test)")


def _register_perplexity(analyses: Any) -> None:
    example = (
        "tsarank analyze perplexity --model base --more-models after-cpt after-sft --dataset beir/scifact --output ppl"
    )
    parser = _add(
        analyses, "perplexity", "perplexity of positive and negative queries", _PERPLEXITY, example, run_perplexity
    )
    _add_dataset(parser)
    parser.add_argument(
        "--pairs", type=whole(), default=5000, metavar="N", help="positive pairs at most (default: 5000)"
    )
    parser.add_argument(
        "--negatives",
        default="random",
        metavar="KIND",
        help="random: another query for the same document; or a first stage or run file whose non-relevant documents "
        "stand beside the same query (default: random)",
    )
    add_run_format(parser)
    parser.add_argument("--seed", type=seed(), default=0, help="seed of the sample (default: 0)")
    add_model_options(parser, several=True)


def add_run_format(parser: Any) -> None:
    """Adds the option that decides what three columns of a run file are."""
    parser.add_argument(
        "--run-format",
        choices=("ranks", "scores"),
        help="what the third column of a run file with three columns is (default: found out, or refused)",
    )


def _register_generated(analyses: Any) -> None:
    example = (
        "tsarank analyze generated-queries --model base --more-models after-sft --dataset beir/scifact --output words"
    )
    parser = _add(
        analyses, "generated-queries", "document words and stop words in queries", _GENERATED, example, run_generated
    )
    _add_dataset(parser)
    parser.add_argument("--documents", type=whole(), default=500, metavar="N", help="documents at most (default: 500)")
    parser.add_argument(
        "--max-new-tokens", type=whole(most=65_536), default=32, metavar="N", help="longest query (default: 32)"
    )
    parser.add_argument("--batch-size", type=whole(), default=8, metavar="N", help="documents at a time (default: 8)")
    parser.add_argument("--seed", type=seed(), default=0, help="seed of the sample (default: 0)")
    add_model_options(parser, several=True)


def _register_intersection(analyses: Any) -> None:
    example = "tsarank analyze intersection --dataset beir/scifact --first-stages bm25 dense splade --output agree"
    parser = _add(analyses, "intersection", "agreement of first stages", _INTERSECTION, example, run_intersection)
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run files, at least two")
    _add_dataset(parser, required=False)
    parser.add_argument("--first-stages", nargs="+", default=[], metavar="S", help="with --dataset: stages to compare")
    parser.add_argument(
        "--lower",
        nargs="+",
        default=[],
        metavar="RUN",
        help="runs of the same stages over a second kind of queries: the lower triangle, as in the paper's table",
    )
    add_run_format(parser)
    parser.add_argument("--depth", type=whole(), default=30, metavar="N", help="documents a query (default: 30)")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="names of the stages (default: file names)")


def run_perplexity(args: argparse.Namespace) -> int:
    """Runs `tsarank analyze perplexity`."""
    from modeling_tsarank.eval.analyses import measure_perplexity, sample_query_pairs
    from modeling_tsarank.eval.collections import load_collection
    from modeling_tsarank.eval.first_stages import retrieve
    from modeling_tsarank.eval.plots import plot_grouped_bars

    models = _models(args)
    collection = load_collection(args.dataset, args.split)
    run = None
    if args.negatives != "random":
        run = retrieve(collection, args.negatives, depth=30, run_format=args.run_format)
    positive, negative = sample_query_pairs(collection, args.pairs, args.seed, run)
    summaries = {}
    for name, model in models.items():
        scorer = scorer_source(model, args).get()
        gap = measure_perplexity(scorer, positive, negative, args.batch_tokens, show=True)
        summaries[name] = gap.summary()
    header = ["Model", "Average", "PPL positive", "PPL negative", "Difference"]
    rows = [
        [name, way, *(f"{value:.2f}" for value in values)]
        for name, summary in summaries.items()
        for way, values in summary.items()
    ]
    description = {"dataset": collection.name, "pairs": len(positive), "negatives": args.negatives, "seed": args.seed}
    _report(args.output, "perplexity", header, rows, {**description, "perplexity": summaries})
    bars = {
        name: {"positive": summary["geometric"][0], "negative": summary["geometric"][1]}
        for name, summary in summaries.items()
    }
    title = f"Perplexity of queries given a document: {collection.name}, {len(positive)} pairs"
    plot_grouped_bars(args.output / "perplexity.png", bars, title, "perplexity (geometric mean over pairs)")
    return 0


def run_generated(args: argparse.Namespace) -> int:
    """Runs `tsarank analyze generated-queries`."""
    from modeling_tsarank.eval.collections import load_collection
    from modeling_tsarank.eval.plots import plot_grouped_bars
    from modeling_tsarank.eval.query_words import STOP_WORD_LIST, generate_queries, sample_relevant, word_shares

    models = _models(args)
    collection = load_collection(args.dataset, args.split)
    samples = sample_relevant(collection, args.documents, args.seed)
    documents = [document for _, document in samples]
    written: dict[str, list[str]] = {}
    for name, model in models.items():
        ranker = scorer_source(model, args).get()
        written[name] = generate_queries(ranker, documents, args.max_new_tokens, args.batch_size, show=True)
    written["Ground truth"] = [query for query, _ in samples]
    shares = {name: word_shares(queries, documents) for name, queries in written.items()}
    header = ["Queries of", "Document words %", "Stop words %", "Words a query"]
    rows = [
        [name, f"{100 * share.document:.1f}", f"{100 * share.stop:.1f}", f"{share.words / share.queries:.1f}"]
        for name, share in shares.items()
    ]
    bars = {
        name: {"document words": 100 * share.document, "stop words": 100 * share.stop}
        for name, share in shares.items()
    }
    description = {"dataset": collection.name, "documents": len(documents), "stop_words": STOP_WORD_LIST}
    _report(args.output, "generated_queries", header, rows, {**description, "shares": bars, "queries": written})
    title = f"Words of queries: {collection.name}, {len(documents)} documents"
    plot_grouped_bars(args.output / "generated_queries.png", bars, title, "share of all words (%)")
    return 0


def run_intersection(args: argparse.Namespace) -> int:
    """Runs `tsarank analyze intersection`."""
    from modeling_tsarank.eval.analyses import intersection_rates
    from modeling_tsarank.eval.plots import plot_matrix
    from modeling_tsarank.eval.run_files import read_run

    names, runs = _stages(args)
    if len(set(names)) < len(names):
        raise InputError(f"the names {', '.join(names)} are not distinct; give --names")
    upper = intersection_rates(runs, args.depth)
    lower = upper
    if args.lower:
        if len(args.lower) != len(runs):
            raise InputError(f"--lower has {len(args.lower)} runs and the upper triangle {len(runs)}; give as many")
        lower = intersection_rates([read_run(path, args.run_format) for path in args.lower], args.depth)
    count = range(len(runs))
    values = [
        [None if row == column else 100 * (upper if row < column else lower)[row][column] for column in count]
        for row in count
    ]
    rows = [
        [name, *("-" if value is None else f"{value:.1f}" for value in line)]
        for name, line in zip(names, values, strict=True)
    ]
    header = ["% shared", *names]
    _report(args.output, "intersection", header, rows, {"depth": args.depth, "names": names, "percent": values})
    plot_matrix(args.output / "intersection.png", names, values, f"Shared documents among the top {args.depth}")
    return 0


def _stages(args: argparse.Namespace) -> tuple[list[str], list[Any]]:
    """Names and runs: from files, or retrieved over a dataset's judged queries."""
    from modeling_tsarank.eval.collections import load_collection
    from modeling_tsarank.eval.first_stages import retrieve
    from modeling_tsarank.eval.run_files import read_run

    if bool(args.runs) == bool(args.first_stages):
        raise InputError("give either run files, or --dataset with --first-stages")
    if args.runs:
        names, runs = [Path(path).stem for path in args.runs], [read_run(path, args.run_format) for path in args.runs]
    else:
        if args.dataset is None:
            raise InputError("--first-stages needs --dataset")
        collection = load_collection(args.dataset, args.split)
        query_ids = collection.judged_queries()
        names = list(args.first_stages)
        runs = [
            retrieve(collection, stage, depth=args.depth, query_ids=query_ids, run_format=args.run_format)
            for stage in names
        ]
    if args.names:
        if len(args.names) != len(runs):
            raise InputError(f"{len(args.names)} names were given for {len(runs)} stages")
        names = args.names
    return names, runs


def _models(args: argparse.Namespace) -> dict[str, str | None]:
    """The models to analyze, by their names in the table: as much of a path as tells it from the others.

    Raises:
        InputError: one is given twice.
    """
    models = [args.model, *args.more_models]
    names = [display_name(model) for model in models]
    paths = [Path(model).resolve().parts if model is not None and Path(model).is_dir() else () for model in models]
    for parts in range(2, max(map(len, paths)) + 1):
        repeated = [name for name, count in Counter(names).items() if count > 1]
        names = [
            "/".join(path[-parts:]) if path and name in repeated else name
            for name, path in zip(names, paths, strict=True)
        ]
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"the model {name} is given {count} times")
    return dict(zip(names, models, strict=True))


def _report(output: Path, name: str, header: list[str], rows: list[list[str]], values: dict[str, Any]) -> None:
    """Prints the table and writes it as Markdown, CSV and, with everything behind it, JSON."""
    from modeling_tsarank.eval.reports import markdown_table, text_table
    from modeling_tsarank.files.writing import write_csv, write_json, write_text

    write_text(output / f"{name}.md", markdown_table(header, rows))
    write_csv(output / f"{name}.csv", header, rows)
    write_json(output / f"{name}.json", json.loads(json.dumps(values)))
    sys.stdout.write(text_table(header, rows))

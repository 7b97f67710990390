"""The evaluation commands: evaluate, compare and tune-fusion."""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import add_command, given, seed, whole
from modeling_tsarank.jobs.arguments import add_pool_arguments, with_pool
from modeling_tsarank.models.arguments import add_model_arguments, add_store_argument
from modeling_tsarank.rankers.arguments import RANKERS_HELP, add_ranker_arguments
from modeling_tsarank.ranking_errors import InputError


if TYPE_CHECKING:
    from modeling_tsarank.eval.options import EvaluationOptions
    from modeling_tsarank.eval.reports import Row
    from modeling_tsarank.eval.scoring import ScorerSource
    from modeling_tsarank.eval.significance import Comparison
    from modeling_tsarank.eval.types import Collection
    from modeling_tsarank.jobs.pools import Pool
    from modeling_tsarank.scores.fusion import FusionSetting


logger = logging.getLogger(__name__)

_EVALUATE_DETAILS = f"""\
--model also accepts: ce:MODEL, a CrossEncoder of sentence-transformers; dense:MODEL, one of its bi-encoders; st:MODEL,
either of the two (float32 unless --dtype says bfloat16); or the URL of a /rerank service (Jina, Cohere, vLLM,
text-embeddings-inference), which gets all documents of a query in one request. Ties of such a listwise ranker are
broken by the first stage's order, and each block is one query.

{RANKERS_HELP}"""
_EVALUATE_EXAMPLES = """\
  tsarank evaluate --dataset beir/scifact --output results
  tsarank evaluate --corpus docs.jsonl --queries queries.tsv --qrels qrels.tsv --name mine --output results
  tsarank evaluate --model my-ranker --dataset BeIR/scifact BeIR/nfcorpus --first-stage rrf:bm25+dense --output results
  tsarank evaluate --model ce:cross-encoder/ms-marco-MiniLM-L6-v2 --dataset beir/scifact --output minilm
  accelerate launch --num-processes 4 -m modeling_tsarank.cli evaluate --dataset beir/fiqa --output results
"""
_COMPARE_EXAMPLES = """\
  tsarank compare bm25.trec results/scifact/run.trec --qrels beir/scifact/qrels/test.tsv
  tsarank compare a.trec b.trec --qrels dl19.qrels --measure map --json > comparison.json
  tsarank compare --pair scifact a1.trec b1.trec q1.tsv --pair fiqa a2.trec b2.trec q2.tsv
"""
_TUNE_EXAMPLES = """\
  tsarank evaluate --dataset beir/scifact --split train --limit-queries 100 --output dev
  tsarank tune-fusion dev/scifact/run.trec dev/scifact/first_stage.trec --qrels beir/scifact/qrels/train.tsv \\
      --output fusion.json
"""


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds these commands to the command line."""
    _register_evaluate(subparsers)
    _register_compare(subparsers)
    _register_tune_fusion(subparsers)


def add_run_format(parser: Any) -> None:
    """Adds the option that says what the third column of a three-column run file is."""
    parser.add_argument(
        "--run-format",
        choices=("ranks", "scores"),
        help="third column of a run file with three columns (default: detected; an error if ambiguous)",
    )


def _register_evaluate(subparsers: argparse._SubParsersAction) -> None:
    parser = add_command(
        subparsers,
        "evaluate",
        "measure a reranker over test collections",
        _EVALUATE_EXAMPLES,
        run_evaluate,
        common="dataset split corpus first-stage top-k model dtype ranker interpolate measures",
        details=_EVALUATE_DETAILS,
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="D",
        nargs="+",
        action="extend",
        default=[],
        help="folder in BEIR's layout, Hub id, or ir_datasets:NAME; several are reported in one table",
    )
    data.add_argument("--split", default="test", help="judged split (default: test)")
    data.add_argument(
        "--corpus", type=Path, help="instead of --dataset: JSON Lines of documents; needs --queries and --qrels"
    )
    data.add_argument("--queries", type=Path, help="with --corpus: JSON Lines or TSV of queries")
    data.add_argument("--qrels", type=Path, help="with --corpus: TREC or BEIR relevance judgments")
    data.add_argument("--name", help="with --corpus: name of the collection (default: the corpus's file name)")
    data.add_argument("--limit-queries", type=whole(), metavar="N", help="only the first N judged queries")
    stage = parser.add_argument_group("first stage")
    stage.add_argument(
        "--first-stage",
        default="bm25",
        metavar="S",
        help="bm25, dense[:MODEL], splade[:MODEL], rrf[:S+S], or a run file, TREC or JSONL (default: bm25)",
    )
    add_run_format(stage)
    stage.add_argument("--top-k", type=whole(), default=100, metavar="N", help="documents to rerank (default: 100)")
    stage.add_argument(
        "--depth",
        type=whole(),
        metavar="N",
        help="documents to retrieve; those below --top-k stay in the first stage's order (default: --top-k)",
    )
    stage.add_argument("--cache-dir", type=Path, help="folder for cached indexes (default: the user's cache)")
    add_model_arguments(parser)
    add_store_argument(parser)
    add_ranker_arguments(parser)
    add_pool_arguments(parser)
    fusion = parser.add_argument_group("fusion with the first stage")
    fusion.add_argument(
        "--interpolate",
        "--fusion",
        metavar="W",
        help="rank by (1 - W) * reranker + W * first stage: W in [0, 1], or a file of tsarank tune-fusion",
    )
    fusion.add_argument(
        "--normalize",
        choices=("minmax", "zscore", "rrf"),
        help="per-query normalisation of both scores (default: minmax); rrf: 1 / (60 + rank)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for all results")
    output.add_argument(
        "--measures",
        nargs="+",
        metavar="M",
        default=argparse.SUPPRESS,
        help="default: ndcg@10 ndcg@1 ndcg@5 map mrr@10 recall@100",
    )
    output.add_argument(
        "--block-pairs",
        type=whole(),
        metavar="N",
        help="pairs per block, the unit of saving and of parallel work (default: 100 to 2,000, by their number)",
    )
    output.add_argument(
        "--order-sensitivity",
        action="store_true",
        help="for listwise rankers: rerank the first stage's order, its reverse and three shuffles; results "
        "in DIR/ORDER, means and spread in DIR/order_sensitivity.csv",
    )
    output.add_argument("--overwrite", action="store_true", help="discard the scores of an earlier evaluation")
    output.add_argument("--quiet", dest="show_progress", action="store_false", help="no progress bar")


def _register_compare(subparsers: argparse._SubParsersAction) -> None:
    parser = add_command(subparsers, "compare", "test whether one run beats another", _COMPARE_EXAMPLES, run_compare)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="two run files: A, the baseline, and B")
    parser.add_argument("--qrels", type=Path, metavar="Q", help="relevance judgments for the two runs")
    parser.add_argument(
        "--pair",
        nargs=4,
        action="append",
        default=[],
        metavar=("NAME", "RUN_A", "RUN_B", "QRELS"),
        help="another dataset; may be repeated",
    )
    add_run_format(parser)
    parser.add_argument("--measure", default="ndcg@10", help="default: ndcg@10")
    parser.add_argument(
        "--resamples",
        type=whole(most=10_000_000),
        default=100_000,
        metavar="N",
        help="number of random sign flips; all are enumerated if there are no more than this",
    )
    parser.add_argument("--seed", type=seed(), default=0, help="random seed (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def _register_tune_fusion(subparsers: argparse._SubParsersAction) -> None:
    parser = add_command(
        subparsers, "tune-fusion", "choose the fusion weight on a development split", _TUNE_EXAMPLES, run_tune_fusion
    )
    parser.add_argument("reranked", metavar="RUN_RERANKED", type=Path, help="the reranker's run, not fused")
    parser.add_argument("first", metavar="RUN_FIRST", type=Path, help="the first stage's run that was reranked")
    parser.add_argument("--qrels", type=Path, required=True, metavar="Q", help="judgments of the development split")
    add_run_format(parser)
    parser.add_argument("--measure", default="ndcg@10", help="default: ndcg@10")
    parser.add_argument(
        "--normalize",
        choices=("minmax", "zscore", "rrf"),
        default="minmax",
        help="default: minmax; rrf: 1 / (60 + rank)",
    )
    parser.add_argument(
        "--learned",
        action="store_true",
        help="instead of a grid search: the weight of a logistic regression on both scores",
    )
    parser.add_argument(
        "--steps", type=whole(most=10_000), default=20, metavar="N", help="intervals of the grid (default: 20)"
    )
    parser.add_argument("--top-k", type=whole(), metavar="N", help="number of reranked documents, if not all")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file for the setting")


def run_evaluate(args: argparse.Namespace) -> int:
    """Rerank a first stage's candidates over test collections and evaluate the result.

    Repeat the same command to resume an interrupted evaluation; other measures or another fusion weight need no new
    scores.

    OUTPUT receives a table over all datasets (table.md, table.csv) and for each DATASET a folder with run.trec,
    first_stage.trec, metrics.json and per_query.csv.
    """
    from modeling_tsarank.eval.checkpoint_sources import evaluated_source
    from modeling_tsarank.eval.options import EvaluationOptions
    from modeling_tsarank.eval.scoring import BlockScorer
    from modeling_tsarank.jobs.pools import leads

    fusion = _fusion_setting(args.interpolate, args.normalize)
    options = EvaluationOptions(**given(EvaluationOptions, args), fusion=fusion)
    source = evaluated_source(args.model, args)
    if args.order_sensitivity:
        return _order_sensitivity(args, options, source)
    scorer = BlockScorer(source, options.show_progress and args.ray is None and leads())
    with_pool(args, partial(_evaluate, args, options, source), scorer)
    return 0


def _order_sensitivity(args: argparse.Namespace, options: EvaluationOptions, source: ScorerSource) -> int:
    """Evaluates the same candidates in several input orders; differences are due to the ranker."""
    from modeling_tsarank.eval.reports import measure_title, text_table
    from modeling_tsarank.eval.scoring import BlockScorer, ScorerSource
    from modeling_tsarank.files.writing import write_csv
    from modeling_tsarank.jobs.pools import leads
    from modeling_tsarank.rankers.cascade import ORDERS, Reordered

    if not source.whole_lists:
        raise InputError("--order-sensitivity is for listwise rankers; pointwise scores do not depend on the order")
    means: dict[str, list[float]] = {}
    for order in ORDERS:
        ordered = ScorerSource(
            f"{source.name} {order}",
            lambda order=order: Reordered(source.get(), order),  # type: ignore[misc]
            {**source.settings, "order": order},
            whole_lists=True,
        )
        folder = argparse.Namespace(**{**vars(args), "output": args.output / order})
        scorer = BlockScorer(ordered, options.show_progress and args.ray is None and leads())
        for row in with_pool(args, partial(_evaluate, folder, options, ordered), scorer):
            means.setdefault(row.dataset, []).append(row.systems[-1][options.measures[0]])
    if leads():
        header = ["dataset", *ORDERS, "spread"]
        rows = [
            [name, *(f"{100 * value:.2f}" for value in values), f"{100 * (max(values) - min(values)):.2f}"]
            for name, values in means.items()
        ]
        write_csv(args.output / "order_sensitivity.csv", header, rows)
        _print(f"{measure_title(options.measures[0])} x 100\n{text_table(header, rows)}")
    return 0


def _evaluate(args: argparse.Namespace, options: EvaluationOptions, source: ScorerSource, pool: Pool) -> list[Row]:
    from modeling_tsarank.eval import reports
    from modeling_tsarank.eval.harness import evaluate_collection, folder_name
    from modeling_tsarank.eval.results import system_names
    from modeling_tsarank.files.writing import write_csv, write_text

    rows = []
    try:
        for name, parts in _load_datasets(args):
            results = [
                evaluate_collection(source, part, options, args.output / folder_name(part.name), pool)
                for part in parts
            ]
            rows.append(reports.average_row(name, [one.row() for one in results]))
    except KeyboardInterrupt:
        logger.warning("interrupted: scored blocks are saved; repeat the same command to resume")
        raise
    table = [*rows, reports.average_row("Average", rows)], system_names(source.name, options)
    write_text(args.output / "table.md", reports.result_pages(*table, options.measures))
    write_csv(args.output / "table.csv", *reports.result_lines(*table, options.measures))
    main = options.measures[0]
    _print(f"{reports.measure_title(main)} x 100\n{reports.text_table(*reports.result_cells(*table, main))}")
    _print(f"results: {args.output}\n")
    return rows


def _fusion_setting(interpolate: str | None, normalize: Any) -> FusionSetting | None:
    """The setting of `--interpolate`: a number, or a file written by tune-fusion."""
    from modeling_tsarank.scores.fusion import fusion_setting

    if interpolate is None:
        if normalize is not None:
            raise InputError("--normalize needs --interpolate; give a weight as well")
        return None
    return fusion_setting(interpolate, normalize)


def _load_datasets(args: argparse.Namespace) -> list[tuple[str, list[Collection]]]:
    """(name, parts) of every requested dataset; only CQADupStack has more than one part."""
    from modeling_tsarank.eval.collections import load_collection_from_files, load_collections
    from modeling_tsarank.eval.harness import folder_name

    files = (args.corpus, args.queries, args.qrels)
    if any(files) and (args.dataset or not all(files)):
        raise InputError("give either --dataset, or all of --corpus, --queries and --qrels")
    if not any(files) and not args.dataset:
        raise InputError("no dataset: give --dataset, or --corpus, --queries and --qrels")
    if args.corpus:
        name = args.name or args.corpus.name.partition(".")[0]
        loaded = [(name, [load_collection_from_files(args.corpus, args.queries, args.qrels, name)])]
    else:
        loaded = []
        for dataset in args.dataset:
            parts = load_collections(dataset, args.split, args.cache_dir)
            loaded.append((parts[0].name.partition("/")[0] if len(parts) > 1 else parts[0].name, parts))
    folders = [folder_name(part.name) for _, parts in loaded for part in parts]
    double = next((folder for folder in folders if folders.count(folder) > 1), None)
    if double is not None:
        raise InputError(f"two datasets are called {double}: evaluate them into separate output folders")
    return loaded


def run_compare(args: argparse.Namespace) -> int:
    """Test whether run B ranks better than run A.

    For each dataset: the means, the mean difference B - A with its 95% confidence interval, the effect size d_z (mean
    difference over its standard deviation), the queries won, tied and lost by B, and two-sided p-values of the paired
    t-test and of the randomization test, which flips the signs of the queries' differences. With several datasets,
    Holm's correction is applied to each test's p-values. Judged queries that are missing from a run count 0.
    """
    import json
    from dataclasses import asdict

    from modeling_tsarank.eval.reports import comparison_cells, measure_title, text_table
    from modeling_tsarank.eval.significance import correct

    pairs = [(name, Path(run_a), Path(run_b), Path(qrels)) for name, run_a, run_b, qrels in args.pair]
    if args.runs or args.qrels:
        if len(args.runs) != 2 or args.qrels is None:
            raise InputError(f"give two runs and --qrels; {len(args.runs)} run(s) and qrels {args.qrels} were given")
        pairs.insert(0, (args.qrels.name, args.runs[0], args.runs[1], args.qrels))
    if not pairs:
        raise InputError("nothing to compare: give two runs and --qrels, or --pair NAME RUN_A RUN_B QRELS")
    comparisons = correct([_compare(args, *pair) for pair in pairs])
    if args.json:
        # JSON has no infinity, the effect size where all differences are equal.
        values = [
            {key: None if value in (float("inf"), float("-inf")) else value for key, value in asdict(one).items()}
            for one in comparisons
        ]
        _print(json.dumps(values, indent=2, allow_nan=False) + "\n")
    else:
        _print(f"{measure_title(comparisons[0].measure)} x 100, B - A: the gain of run B\n")
        _print(text_table(*comparison_cells(comparisons)))
    return 0


def _compare(args: argparse.Namespace, name: str, run_a: Path, run_b: Path, qrels: Path) -> Comparison:
    from modeling_tsarank.eval.run_files import read_qrels, read_run
    from modeling_tsarank.eval.significance import compare_runs

    judgments = read_qrels(qrels)
    first, second = read_run(run_a, args.run_format), read_run(run_b, args.run_format)
    for path, run in ((run_a, first), (run_b, second)):
        missing = len(judgments.keys() - run.keys())
        if missing:
            logger.warning("%s lacks %d of the %d judged queries, which count as 0", path, missing, len(judgments))
    return compare_runs(first, second, judgments, args.measure, name, args.resamples, args.seed)


def run_tune_fusion(args: argparse.Namespace) -> int:
    """Choose the weight W of (1 - W) * reranker + W * first stage on a development split.

    Both scores are first normalised within each query, over the documents that were reranked: min-max to [0, 1],
    z-score, or reciprocal rank. Use OUTPUT with `tsarank rank --fusion OUTPUT` and `tsarank evaluate --fusion OUTPUT`,
    which rejects it for the queries it was tuned on.
    """
    from modeling_tsarank.eval.fusion import tune_fusion
    from modeling_tsarank.eval.reports import measure_title, text_table
    from modeling_tsarank.eval.run_files import read_qrels, read_run

    qrels = read_qrels(args.qrels)
    first = read_run(args.first, args.run_format)
    judged = {query_id: grades for query_id, grades in qrels.items() if query_id in first}
    if not judged:
        raise InputError(f"{args.first} and {args.qrels} have no query in common")
    reranked = read_run(args.reranked, args.run_format)
    tuned = tune_fusion(reranked, first, judged, args.measure, args.normalize, args.steps, args.top_k, args.learned)
    tuned.setting.save(args.output)
    title = measure_title(tuned.setting.measure or args.measure)
    rows = [
        [f"{weight:g}", f"{100 * value:.2f}", "<- chosen" if weight == tuned.setting.weight else ""]
        for weight, value in zip(tuned.weights, tuned.curve, strict=True)
    ]
    _print(text_table(["weight", f"{title} x 100", ""], rows))
    _print(f"{len(judged)} development queries; setting: {args.output}\n")
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text)

"""`tsarank frontier`: quality against cost of several rankers on one collection."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import add_command
from modeling_tsarank.ranking_errors import InputError


COSTS = ("tokens", "seconds", "calls")
_SAME = ("dataset", "split", "first_stage_hash")
_EXAMPLES = """\
  tsarank evaluate --dataset beir/scifact --model zero-shot --output rankers/pointwise
  tsarank evaluate --dataset beir/scifact --model zero-shot --ranker setwise --top-k 20 --output rankers/setwise
  tsarank frontier rankers/* --plot frontier.png
"""


@dataclass(frozen=True)
class Measured:
    """Results of one ranker on one collection; costs are means per query.

    Attributes:
        name: Name of its results folder.
        queries: Number of evaluated queries.
        first_stage: The first stage's measure on the same queries, between 0 and 1.
        quality: The reranker's measure.
        calls: Prompts of a listwise ranker, pairs of any other.
        tokens: Tokens computed; None if the model does not report them.
        seconds: Scoring time, without loading.
        unusable: Unusable answers over all queries; None for models that generate no answer.
        best: Whether it is on the frontier: evaluated on the most queries, and no other such ranker is at least as
            good for at most the same cost.
    """

    name: str
    queries: int
    first_stage: float
    quality: float
    calls: float
    tokens: float | None
    seconds: float
    unusable: int | None
    best: bool = False


def register(subparsers: Any) -> None:
    """Adds `frontier` to the command line."""
    parser = add_command(subparsers, "frontier", "compare rankers by quality and cost", _EXAMPLES, run_frontier)
    parser.add_argument(
        "results", metavar="RESULTS", type=Path, nargs="+", help="--output folders of tsarank evaluate"
    )
    parser.add_argument("--collection", metavar="NAME", help="the collection, if several were evaluated")
    parser.add_argument("--measure", default="ndcg@10", help="default: ndcg@10")
    parser.add_argument("--cost", choices=COSTS, default="tokens", help="cost per query (default: tokens)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also plot quality against cost")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table as JSON")


def run_frontier(args: argparse.Namespace) -> int:
    """Compare rankers by quality and cost on one collection, from the results of `tsarank evaluate`.

    A star marks rankers on the frontier: no other is at least as good for at most the same cost. Rankers that do not
    report this cost (-), and those evaluated on fewer queries than others, get no star and are not plotted: compare
    the latter with the first stage on their own queries, in the next column.
    """
    from modeling_tsarank.eval.reports import markdown_table
    from modeling_tsarank.files.writing import write_json

    found = [read_measured(folder, args.collection, args.measure) for folder in args.results]
    for folder, (_, setting) in zip(args.results, found, strict=True):
        if setting != found[0][1]:
            raise InputError(f"{folder} and {args.results[0]} differ in {' or '.join(_SAME)}; they cannot be compared")
    rows = mark_best([row for row, _ in found], args.cost)
    header = ["ranker", "queries", "first stage", args.measure, *(f"{cost} per query" for cost in COSTS), "unusable"]
    body = [
        [
            f"{row.name} *" if row.best else row.name,
            str(row.queries),
            f"{100 * row.first_stage:.1f}",
            f"{100 * row.quality:.1f}",
            "-" if row.tokens is None else f"{row.tokens:,.0f}",
            f"{row.seconds:,.1f}",
            f"{row.calls:,.0f}",
            "-" if row.unusable is None else str(row.unusable),
        ]
        for row in sorted(rows, key=lambda row: (-row.queries, -row.quality))
    ]
    sys.stdout.write(markdown_table(header, body) + "\n")
    if args.output is not None:
        write_json(args.output, [asdict(row) for row in rows])
    if args.plot is not None:
        plot_frontier(rows, args.cost, args.measure, args.plot)
    return 0


def read_measured(folder: Path, collection: str | None, measure: str) -> tuple[Measured, dict[str, Any]]:
    """One ranker's results, and the settings that must match for a comparison.

    Raises:
        InputError: `folder` has no results of the collection, has several and none is named, or lacks the measure.
    """
    from modeling_tsarank.files.reading import read_json_object

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected the output of `tsarank evaluate`")
    found = sorted(path.parent.name for path in folder.glob("*/metrics.json"))
    chosen = found if collection is None else [name for name in found if name == collection]
    if len(chosen) != 1:
        wanted = "results of one collection" if collection is None else f"results of {collection}"
        raise InputError(f"{folder} has no {wanted}, but of {', '.join(found) or 'none'}: give an evaluate output")
    path = folder / chosen[0] / "metrics.json"
    metrics = read_json_object(path)
    try:
        queries, measures = metrics["queries"], metrics["measures"]
        tokens, calls = metrics["tokens"], metrics["model_calls"]
        row = Measured(
            folder.resolve().name,
            queries,
            measures["first_stage"][measure],
            (measures["fused"] or measures["reranked"])[measure],
            (metrics["pairs"] if calls is None else calls) / queries,
            None if tokens is None else tokens / queries,
            metrics["scoring_seconds"] / queries,
            metrics["unusable_answers"],
        )
        return row, {name: metrics[name] for name in _SAME}
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path} was not written by tsarank evaluate, or lacks {measure} ({error})") from error


def mark_best(rows: Sequence[Measured], cost: str) -> list[Measured]:
    """The rows with `best` set for those on the frontier among the rows with the most queries."""
    compared = _comparable(rows, cost)

    def beats(other: Measured, row: Measured) -> bool:
        theirs, own = getattr(other, cost), getattr(row, cost)
        if theirs > own or other.quality < row.quality:
            return False
        return bool(theirs < own or other.quality > row.quality)

    return [replace(row, best=row in compared and not any(beats(other, row) for other in compared)) for row in rows]


def _comparable(rows: Sequence[Measured], cost: str) -> list[Measured]:
    """The rows with the most queries that report this cost."""
    most = max(row.queries for row in rows)
    return [row for row in rows if row.queries == most and getattr(row, cost) is not None]


def plot_frontier(rows: Sequence[Measured], cost: str, measure: str, path: Path) -> None:
    """Plots quality against cost, only of rankers evaluated on the most queries: others are not comparable."""
    from modeling_tsarank.eval.plots import new_figure, save_figure

    drawn = sorted(_comparable(rows, cost), key=lambda row: row.quality)
    if not drawn:
        raise InputError(f"no ranker reports its {cost}: nothing to plot")
    figure, axes = new_figure(width=7.0, height=4.5)
    axes.axhline(100 * drawn[0].first_stage, color="0.6", linestyle="--", label="first stage")
    best = [row for row in drawn if row.best]
    axes.plot([getattr(row, cost) for row in best], [100 * row.quality for row in best], color="C0", label="frontier")
    for row in drawn:
        place = getattr(row, cost), 100 * row.quality
        axes.plot(*place, marker="o", color="C0" if row.best else "0.5", linestyle="")
        axes.annotate(row.name, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel=f"{cost} per query", ylabel=f"{measure} x 100, {drawn[0].queries} queries")
    axes.margins(x=0.25, y=0.1)
    axes.legend(loc="lower right")
    save_figure(figure, path)

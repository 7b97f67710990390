"""Plots of evaluations, in colours that colour-blind readers can tell apart (Okabe and Ito's palette)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank.files.extras import require
from modeling_tsarank.files.writing import whole_file


BLUE = "#0072B2"
VERMILION = "#D55E00"


def plot_gains(path: Path, gains: Sequence[float], measure: str, dataset: str, system: str, baseline: str) -> None:
    """Bars of the per-query gain over the first stage, best query first.

    Args:
        path: The picture, such as `gain.png`.
        gains: Reranked minus first stage, one value a query, between -1 and 1.
        measure: As it is to be printed, such as `nDCG@10`.
        dataset: Name of the collection.
        system: Name of the reranker.
        baseline: Name of the first stage.
    """
    figure, axes = new_figure(width=8.0, height=4.2)
    ordered = sorted(gains, reverse=True)
    colors = [BLUE if gain > 0 else VERMILION for gain in ordered]
    # Bars of one unit leave no gaps: with hundreds of queries, gaps turn into a moiré pattern.
    axes.bar(range(1, len(ordered) + 1), ordered, width=1.0 if len(ordered) > 60 else 0.8, color=colors)
    axes.axhline(0, color="black", linewidth=0.8)
    mean = sum(ordered) / len(ordered)
    axes.axhline(mean, color="black", linewidth=1.2, linestyle=(0, (4, 3)), label=f"mean {mean:+.3f}")
    wins, losses = sum(gain > 0 for gain in ordered), sum(gain < 0 for gain in ordered)
    ties = len(ordered) - wins - losses
    axes.set_title(f"{dataset}: {measure} of {_short(system)} minus {_short(baseline)}, by query")
    axes.set_xlabel(f"queries, sorted by gain: {wins} better, {ties} equal, {losses} worse")
    axes.set_ylabel(f"gain in {measure}")
    axes.set_xlim(0.5, len(ordered) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper right", frameon=False)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes; sizes in inches. Raises `ResourceError` where matplotlib is missing."""
    figure_module = require("matplotlib.figure", extra="eval", purpose="A plot")
    # Without pyplot there is no global state, no display, and nothing to close.
    figure = figure_module.Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure, whole or not at all, in the format of the file's ending or else as PNG."""
    kind = path.suffix.lower().removeprefix(".")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=kind if kind in figure.canvas.get_supported_filetypes() else "png")


def _short(name: str, length: int = 32) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"

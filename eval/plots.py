"""Plots of evaluations, in colours that colour-blind readers can tell apart (Okabe and Ito's palette)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank.files.extras import require
from modeling_tsarank.files.writing import whole_file


BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
_PALETTE = (BLUE, VERMILION, GREEN, "#CC79A7", "#E69F00", "#56B4E9")


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
    figure, axes = _figure(width=8.0, height=4.2)
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
    _save(figure, path)


def plot_grouped_bars(
    path: Path, groups: Mapping[str, Mapping[str, float]], title: str, label: str, digits: int = 1
) -> None:
    """Bars side by side: one group for each key, one bar for each inner key, each with its value.

    Args:
        path: The picture.
        groups: Group to series to value; every group has the same series.
        title: Title of the picture.
        label: Name of the value axis, with its unit.
        digits: Decimals of the printed values.
    """
    names = list(groups)
    series = list(groups[names[0]])
    # Room for a name of 24 letters under each group, until there are so many that the names are slanted.
    slanted = len(names) > 5
    figure, axes = _figure(
        width=max(5.5, 1.2 + (1.2 if slanted else 2.2) * len(names)), height=5.0 if slanted else 4.2
    )
    width = 0.8 / len(series)
    for index, one in enumerate(series):
        places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(names))]
        heights = [groups[name][one] for name in names]
        bars = axes.bar(places, heights, width=width * 0.95, color=_PALETTE[index % len(_PALETTE)], label=one)
        axes.bar_label(bars, fmt=f"%.{digits}f", padding=2, fontsize=9)
    slant: dict[str, Any] = {"rotation": 30, "ha": "right"} if slanted else {}
    axes.set_xticks(range(len(names)), [_short(name, 24) for name in names], **slant)
    axes.set_ylim(0, 1.15 * max(max(values.values()) for values in groups.values()) or 1.0)
    axes.set_title(title)
    axes.set_ylabel(label)
    # Outside the axes: inside them it would lie on a bar sooner or later.
    figure.legend(loc="outside lower center", ncols=len(series), frameon=False)
    _save(figure, path)


def plot_matrix(path: Path, names: Sequence[str], values: Sequence[Sequence[float | None]], title: str) -> None:
    """A heat map of percentages with the numbers in it; None leaves a cell empty.

    Args:
        path: The picture.
        names: Names of rows and columns.
        values: Shape `(len(names), len(names))`, from 0 to 100.
        title: Title of the picture.
    """
    numpy = require("numpy")
    side = max(4.5, 1.1 * len(names) + 2.2)
    figure, axes = _figure(width=side + 0.8, height=side)
    grid = numpy.array([[numpy.nan if value is None else value for value in row] for row in values], dtype=float)
    # cividis reads the same with and without colour blindness.
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value is not None:
                color = "black" if value > 55 else "white"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
    short = [_short(name, 24) for name in names]
    axes.set_xticks(range(len(names)), short, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), short)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    figure.colorbar(image, ax=axes, label="shared documents (%)", fraction=0.046, pad=0.04)
    _save(figure, path)


def plot_tuning(path: Path, weights: Sequence[float], curve: Sequence[float], best: float, measure: str) -> None:
    """The development measure over the fusion weight, with the chosen weight marked.

    Args:
        path: The picture.
        weights: Shape `(n,)`, from 0 to 1.
        curve: Shape `(n,)`, means of the measure.
        best: The chosen weight.
        measure: As it is to be printed.
    """
    figure, axes = _figure(width=6.5, height=4.2)
    axes.plot(weights, curve, color=BLUE, marker="o", markersize=4)
    value = curve[list(weights).index(best)]
    axes.plot([best], [value], color=VERMILION, marker="D", markersize=9, linestyle="none")
    axes.annotate(f"{best:g}: {value:.4f}", (best, value), textcoords="offset points", xytext=(0, 11), ha="center")
    axes.margins(y=0.18)
    axes.set_title(f"Choice of the fusion weight: {measure} on the development queries")
    axes.set_xlabel("weight of the first stage (0: reranker alone, 1: first stage alone)")
    axes.set_ylabel(measure)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure_module = require("matplotlib.figure", extra="eval", purpose="A plot")
    # Without pyplot there is no global state, no display, and nothing to close.
    figure = figure_module.Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    kind = path.suffix.lower().removeprefix(".")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=kind if kind in figure.canvas.get_supported_filetypes() else "png")


def _short(name: str, length: int = 32) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"

"""Matplotlib figures, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeling_tsarank.files.extras import require
from modeling_tsarank.files.writing import whole_file


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes; sizes in inches. Raises `ResourceError` if matplotlib is not installed."""
    figure_module = require("matplotlib.figure", extra="eval", purpose="A plot")
    # Without pyplot there is no global state, no display, and nothing to close.
    figure = figure_module.Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure atomically, in the format of the file's suffix or else as PNG."""
    kind = path.suffix.lower().removeprefix(".")
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=kind if kind in figure.canvas.get_supported_filetypes() else "png")

"""Result tables in the papers' form, in Markdown, CSV and plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modeling_tsarank.eval.collections import mean_results
from modeling_tsarank.eval.significance import Comparison


_TITLES = {"ndcg": "nDCG", "map": "MAP", "mrr": "MRR", "recall": "Recall", "p": "P"}


@dataclass(frozen=True)
class Row:
    """One dataset's means, between 0 and 1.

    Attributes:
        dataset: Its name.
        queries: Number of evaluated queries.
        systems: Measure to mean of the first stage, of the reranker and, if any, of their fusion.
    """

    dataset: str
    queries: int
    systems: Sequence[Mapping[str, float]]


def result_cells(rows: Sequence[Row], systems: Sequence[str], measure: str) -> tuple[list[str], list[list[str]]]:
    """Header and body of one measure's table, as in Tables 2 to 4 of the papers.

    Args:
        rows: One per dataset, and their average.
        systems: Names of the compared systems, in the order of `Row.systems`.
        measure: The measure.
    """
    body = []
    for row in rows:
        values = [system[measure] for system in row.systems]
        gain = f"{100 * (values[-1] - values[0]):+.1f}"
        body.append([row.dataset, str(row.queries), *map(_percent, values), gain])
    return ["Dataset", "Queries", *systems, "Gain"], body


def result_pages(rows: Sequence[Row], systems: Sequence[str], measures: Sequence[str]) -> str:
    """One Markdown table per measure, values times 100 with one decimal, each under a heading."""
    tables = {measure: markdown_table(*result_cells(rows, systems, measure)) for measure in measures}
    return "\n".join(f"## {measure_title(measure)} (x 100)\n\n{table}" for measure, table in tables.items())


def result_lines(
    rows: Sequence[Row], systems: Sequence[str], measures: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and body of the machine-readable table: one line per dataset and system, values x 100, two decimals."""
    body = [
        [row.dataset, str(row.queries), name, *(f"{100 * values[measure]:.2f}" for measure in measures)]
        for row in rows
        for name, values in zip(systems, row.systems, strict=True)
    ]
    return ["dataset", "queries", "system", *measures], body


def average_row(name: str, rows: Sequence[Row]) -> Row:
    """The mean over datasets, each with equal weight whatever its number of queries; queries are summed."""
    columns = zip(*(row.systems for row in rows), strict=True)
    return Row(name, sum(row.queries for row in rows), [mean_results(column) for column in columns])


def measure_title(measure: str) -> str:
    """A measure as papers print it: `ndcg@10` becomes `nDCG@10`."""
    name, at, depth = measure.partition("@")
    return _TITLES.get(name, name) + at + depth


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column left-aligned and the others right-aligned; `|` in a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join([":---", *["---:"] * (len(header) - 1)]) + "|"
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned table for a terminal."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)]) + "\n"


def comparison_cells(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table of `tsarank compare`; measures and differences are times 100."""
    corrected = len(comparisons) > 1
    header = ["Dataset", "n", "A", "B", "B - A", "95% CI", "d_z", "W/T/L", "p (t)", "p (rand.)"]
    header += ["p (t, Holm)", "p (rand., Holm)"] if corrected else []
    body = []
    for item in comparisons:
        cells = [
            item.name,
            str(item.queries),
            _percent(item.mean_a),
            _percent(item.mean_b),
            f"{100 * item.difference:+.2f}",
            f"[{100 * item.ci_low:+.2f}, {100 * item.ci_high:+.2f}]",
            f"{item.effect_size:+.2f}",
            f"{item.wins}/{item.ties}/{item.losses}",
            _p_value(item.t_p),
            _p_value(item.randomization_p),
        ]
        if corrected and item.t_p_holm is not None and item.randomization_p_holm is not None:
            cells += [_p_value(item.t_p_holm), _p_value(item.randomization_p_holm)]
        body.append(cells)
    return header, body


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _p_value(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"

"""Fills the tables of RESULTS.md from the evaluations under benchmarks/results.

    python benchmarks/results_page.py
    python benchmarks/results_page.py --keep OUTPUT NAME
    python benchmarks/results_page.py --means

The second form first imports the output of `tsarank evaluate --output OUTPUT` as the results of NAME: measures,
per-query values, and the compressed runs: `run.trec.gz` is the reranker alone, `mixed.trec.gz` its fusion with the
first stage, if any. The third prints the differences between a row's mean over the collections and those of the rows
it is compared with, with 95 % intervals, and writes nothing.

RESULTS.md contains, for every table of results_page.yaml, a pair of comments `<!-- table: NAME -->` and
`<!-- end -->`; the text between them is regenerated. A cell comes from the two files of `results/COLLECTION/RUN/`;
if they are missing it is a dash, and its row has no mean. A mark says that a row is better than the mark's row, by
the paired t-test over queries with Holm's correction over the collections (p < 0.05); a down arrow that it is
worse.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from modeling_tsarank.eval.reports import markdown_table
from modeling_tsarank.eval.significance import compare_values, correct, mean_interval
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_text
from modeling_tsarank.ranking_errors import InputError, TSARankError


HERE = Path(__file__).resolve().parent
MEASURE = "ndcg@10"
COLUMNS = ("first_stage", "reranked", "fused")
LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """One line of a table: its label, its run, and which of an evaluation's three rankings.

    `run` may be several names: on each collection the first one with results counts (all have one first stage).
    """

    label: str
    run: str | list[str]
    column: str = "reranked"
    compare: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.column not in COLUMNS:
            raise InputError(f"row {self.label!r}: column must be one of {', '.join(COLUMNS)}, got {self.column!r}")


def keep(output: Path, name: str, results: Path) -> list[Path]:
    """Copies an evaluation's measures, per-query values and compressed runs to `results/COLLECTION/NAME/`.

    Raises:
        InputError: `output` contains no evaluation.
    """
    kept = []
    for source in sorted(path.parent for path in output.glob("*/metrics.json")):
        target = results / source.name / name
        target.mkdir(parents=True, exist_ok=True)
        for file in ("metrics.json", "per_query.csv"):
            shutil.copyfile(source / file, target / file)
        # `tsarank evaluate` writes the fused run, if any, to run.trec, and the reranker's own then to reranker.trec.
        if (source / "reranker.trec").is_file():
            _pack(source / "reranker.trec", target / "run.trec.gz")
            _pack(source / "run.trec", target / "mixed.trec.gz")
        else:
            _pack(source / "run.trec", target / "run.trec.gz")
            (target / "mixed.trec.gz").unlink(missing_ok=True)
        kept.append(target)
    if not kept:
        raise InputError(f"{output} contains no results of `tsarank evaluate`")
    return kept


def _pack(source: Path, target: Path) -> None:
    # Without file name and time, so that the same run gives the same bytes.
    with target.open("wb") as raw, gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed:
        packed.write(source.read_bytes())


def read_values(results: Path, row: Row, collection: str) -> dict[str, float] | None:
    """The measure of every query, or `None` if there are no results.

    Raises:
        InputError: The per-query file and metrics.json disagree.
    """
    runs = [row.run] if isinstance(row.run, str) else row.run
    folders = [results / collection / run for run in runs]
    folder = next((one for one in folders if (one / "per_query.csv").is_file()), folders[0])
    if not (folder / "per_query.csv").is_file():
        return None
    name = f"{row.column} {MEASURE}"
    with (folder / "per_query.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or name not in rows[0]:
        return None
    values = {line["query_id"]: float(line[name]) for line in rows}
    stated = read_json(folder / "metrics.json")["measures"][row.column][MEASURE]
    if abs(stated - sum(values.values()) / len(values)) > 1e-5:
        raise InputError(f"{folder}: per_query.csv does not match the {MEASURE} of metrics.json")
    return values


def render(table: dict[str, Any], results: Path) -> str:
    """A Markdown table of nDCG@10 x 100. Raises `InputError` for a row compared with one that the table lacks."""
    collections = list(table["collections"])
    rows = [Row(**one) for one in table["rows"]]
    values = {row.label: [read_values(results, row, name) for name in collections] for row in rows}
    lines = []
    for row in rows:
        cells = values[row.label]
        marks = [""] * len(cells)
        for other, mark in row.compare.items():
            if other not in values:
                raise InputError(f"row {row.label!r} is compared with {other!r}, which the table does not have")
            marks = [f"{a}{b}" for a, b in zip(marks, _marks(cells, values[other], mark), strict=True)]
        means = [None if cell is None else 100 * sum(cell.values()) / len(cell) for cell in cells]
        shown = ["-" if mean is None else f"{mean:.2f}{mark}" for mean, mark in zip(means, marks, strict=True)]
        known = [mean for mean in means if mean is not None]
        lines.append([row.label, *shown, f"{sum(known) / len(known):.2f}" if len(known) == len(means) else "-"])
    return markdown_table(["", *collections, "mean"], lines)


def mean_differences(table: dict[str, Any], results: Path) -> list[str]:
    """Each row's differences from the rows it is compared with, if both have results on every collection."""
    rows = {one["label"]: Row(**one) for one in table["rows"]}
    lines = []
    for label, row in rows.items():
        for other in row.compare:
            differences = {}
            for name in table["collections"]:
                own, theirs = (read_values(results, one, name) for one in (row, rows[other]))
                if own is not None and theirs is not None:
                    differences[name] = [100 * (own[query] - theirs[query]) for query in own]
            if len(differences) == len(table["collections"]):
                middle, low, high = mean_interval(differences)
                lines.append(f"{label} over {other}: {middle:+.2f} ({low:+.2f} to {high:+.2f})")
    return lines


def _marks(cells: list[dict[str, float] | None], others: list[dict[str, float] | None], mark: str) -> list[str]:
    places, comparisons = [], []
    for place, (cell, other) in enumerate(zip(cells, others, strict=True)):
        if cell is not None and other is not None:
            if cell.keys() != other.keys():
                raise InputError("two rows of one table were evaluated on different queries")
            places.append(place)
            comparisons.append(compare_values([other[query] for query in cell], list(cell.values()), resamples=1))
    marks = [""] * len(cells)
    for place, found in zip(places, correct(comparisons), strict=True):
        if found.t_p_holm is not None and found.t_p_holm < LEVEL:
            marks[place] = mark if found.difference > 0 else f"{mark}↓"
    return marks


def fill(page: str, tables: dict[str, Any], results: Path) -> str:
    """The page with regenerated tables. Raises `InputError` for a table without a placeholder or the reverse."""
    places = re.findall(r"<!-- table: (\S+) -->", page)
    if sorted(places) != sorted(tables):
        raise InputError(f"the page has placeholders for {', '.join(places)}; there are tables {', '.join(tables)}")

    def one(match: re.Match[str]) -> str:
        return f"{match[1]}\n{render(tables[match[2]], results)}<!-- end -->"

    return re.sub(r"(<!-- table: (\S+) -->)\n.*?<!-- end -->", one, page, flags=re.DOTALL)


def main() -> int:
    """Parses the command line and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--tables", type=Path, default=HERE / "results_page.yaml")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--keep", nargs=2, metavar=("OUTPUT", "NAME"), help="first import an evaluation's results")
    parser.add_argument("--means", action="store_true", help="print differences of the means, with intervals")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the page is not up to date")
    args = parser.parse_args()
    try:
        if args.keep:
            keep(Path(args.keep[0]), args.keep[1], args.results)
        old = args.page.read_text(encoding="utf-8")
        tables = yaml.safe_load(args.tables.read_text(encoding="utf-8"))
        if args.means:
            lines = [line for table in tables.values() for line in mean_differences(table, args.results)]
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            return 0
        new = fill(old, tables, args.results)
    except (TSARankError, OSError) as error:
        sys.stderr.write(f"results_page: error: {error}\n")
        return 2
    if args.check:
        return int(new != old)
    write_text(args.page, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())

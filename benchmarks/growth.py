"""How the cost of query likelihood grows with candidates, document length and queries: a table and a plot.

    python benchmarks/growth.py --output FILE.json --plot FILE.png [--repeats 3]

Three sweeps of the ways of `engine.py`, each point measured in a process of its own, which gives its peak memory (the
model's 0.5 GiB included). One sweep varies the candidates of a query, one the tokens of a document, one the queries
that are asked about the same documents; what is not varied is 16 candidates of 200 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from tqdm import tqdm


mpl.use("Agg")
from matplotlib import pyplot as plt


ENGINE = Path(__file__).with_name("engine.py")
CANDIDATES, LENGTH = 16, 200
WAYS = {
    "published": ("as published", "tab:red"),
    "cold": ("cold", "tab:blue"),
    "cold-int8": ("cold, int8 weights", "tab:cyan"),
    "shared": ("read once for all queries", "tab:purple"),
    "kept": ("kept in memory", "tab:green"),
    "kept-int8": ("kept on disk, int8", "tab:olive"),
}
SWEEPS: dict[str, tuple[str, list[int]]] = {
    "candidates": ("candidates of a query", [4, 16, 64]),
    "length": ("tokens of a document", [50, 100, 200, 400]),
    "queries": ("queries about the same documents", [1, 2, 4, 8, 16]),
}


def points() -> list[dict[str, Any]]:
    """What is measured: the sweep, its value, the way, and the options of `engine.py`."""
    wanted = []
    for sweep, (_, values) in SWEEPS.items():
        for value in values:
            settings = {"candidates": CANDIDATES, "length": LENGTH, "queries": 12, sweep: value}
            # The number of queries changes only what is shared between them.
            ways = ["shared"] if sweep == "queries" else [way for way in WAYS if way != "shared"]
            wanted += [{"sweep": sweep, "value": value, "way": way, **settings} for way in ways]
    return wanted


def measure(point: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One point: seconds per query and peak memory."""
    command = [sys.executable, str(ENGINE), "--way", point["way"], "--lengths", str(point["length"])]
    command += ["--candidates", str(point["candidates"]), "--queries", str(point["queries"])]
    command += ["--repeats", str(args.repeats), "--threads", str(args.threads), "--dtype", args.dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    kept = {name: found[name] for name in ("seconds_per_query", "all_seconds", "peak_memory_gib")}
    return {**{name: point[name] for name in ("sweep", "value", "way")}, **kept}


def curves(results: list[dict[str, Any]], sweep: str) -> dict[str, list[tuple[int, float, float]]]:
    """For each way (value, seconds per query, GiB); what does not depend on the number of queries is a flat line."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for row in results:
        if row["sweep"] == sweep:
            point = row["value"], row["seconds_per_query"], row["peak_memory_gib"]
            found.setdefault(row["way"], []).append(point)
    if sweep == "queries":
        for row in results:
            if row["sweep"] == "candidates" and row["value"] == CANDIDATES:
                found[row["way"]] = [
                    (value, row["seconds_per_query"], row["peak_memory_gib"]) for value in SWEEPS[sweep][1]
                ]
    return found


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Six panels: time above, memory below, one column a sweep."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharey="row", layout="constrained")
    for column, (sweep, (title, values)) in enumerate(SWEEPS.items()):
        for way, rows in curves(results, sweep).items():
            label, colour = WAYS[way]
            for row, part in ((0, 1), (1, 2)):
                axes[row, column].plot(
                    [p[0] for p in rows], [p[part] for p in rows], marker="o", markersize=4, color=colour, label=label
                )
        for row in (0, 1):
            axes[row, column].set_xscale("log", base=2)
            axes[row, column].set_xticks(values, [str(value) for value in values])
            axes[row, column].minorticks_off()
            axes[row, column].grid(alpha=0.3)
        axes[1, column].set_xlabel(title)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("seconds per query")
    axes[1, 0].set_ylabel("peak memory (GiB)")
    axes[1, 0].set_ylim(bottom=0)
    handles, labels = axes[0, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: seconds per query of every way, a row a point."""
    lines = []
    for sweep, (title, values) in SWEEPS.items():
        ways = [way for way in WAYS if any((row["sweep"], row["way"]) == (sweep, way) for row in results)]
        lines += [f"| {title} | " + " | ".join(WAYS[way][0] for way in ways) + " |"]
        lines += ["|---:" * (len(ways) + 1) + "|"]
        for value in values:
            seconds = [
                f"{row['seconds_per_query']:.3f}"
                for way in ways
                for row in results
                if (row["sweep"], row["value"], row["way"]) == (sweep, value, way)
            ]
            lines.append(f"| {value} | " + " | ".join(seconds) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, required=True, help="JSON; what it holds already is not measured again")
    parser.add_argument("--plot", type=Path, required=True, help="PNG")
    args = parser.parse_args()
    results: list[dict[str, Any]] = json.loads(args.output.read_text())["results"] if args.output.exists() else []
    done = {(row["sweep"], row["value"], row["way"]) for row in results}
    for point in tqdm([p for p in points() if (p["sweep"], p["value"], p["way"]) not in done], unit="point"):
        results.append(measure(point, args))
        report = {"dtype": args.dtype, "threads": args.threads, "repeats": args.repeats, "results": results}
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    draw(results, args.plot)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()

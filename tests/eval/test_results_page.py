"""The script that fills the tables of benchmarks/RESULTS.md, on results that are written here."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.run_files import read_qrels, read_run
from modeling_tsarank.models.embedded_models import releases
from modeling_tsarank.ranking_errors import InputError


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_results_page", BENCHMARKS / "results_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Forty queries of two collections; run `b` is better than its first stage in the first one, run `c` is worse."""
    generator = np.random.default_rng(0)
    for collection, gains in (("first", {"a": 0.0, "b": 0.3, "c": -0.3}), ("second", {"a": 0.0, "b": 0.0})):
        start = generator.uniform(0.3, 0.6, 40)
        for run, gain in gains.items():
            values = start + gain + generator.normal(0, 0.05 if gain else 0.0, 40)
            folder = tmp_path / "results" / collection / run
            folder.mkdir(parents=True)
            lines = ["query_id,first_stage ndcg@10,reranked ndcg@10"]
            lines += [f"q{i},{a:.6f},{b:.6f}" for i, (a, b) in enumerate(zip(start, values, strict=True))]
            (folder / "per_query.csv").write_text("\n".join(lines) + "\n")
            measures = {
                "first_stage": {"ndcg@10": start.mean()},
                "reranked": {"ndcg@10": values.mean()},
                "fused": None,
            }
            (folder / "metrics.json").write_text(json.dumps({"measures": measures}))
    return tmp_path / "results"


TABLE = {
    "collections": ["first", "second"],
    "rows": [
        {"label": "start", "run": "a", "column": "first_stage"},
        {"label": "better", "run": "b", "compare": {"start": "†"}},
        {"label": "worse", "run": "c", "compare": {"start": "†", "better": "‡"}},
        {"label": "mixed", "run": "b", "column": "fused"},
        {"label": "either", "run": ["c", "b"]},
    ],
}


def test_cells_are_the_measured_means_with_their_marks(script: Any, results: Path) -> None:
    lines = script.render(TABLE, results).split("\n")
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    assert cells[0] == ["first", "second", "mean"]

    def measured(collection: str, run: str, column: str = "reranked") -> float:
        measures = json.loads((results / collection / run / "metrics.json").read_text())["measures"]
        return 100 * float(measures[column]["ndcg@10"])

    start = [measured(name, "a", "first_stage") for name in ("first", "second")]
    assert cells[2] == ["start", *(f"{value:.2f}" for value in start), f"{sum(start) / 2:.2f}"]
    assert cells[3][1:3] == [f"{measured('first', 'b'):.2f}†", f"{measured('second', 'b'):.2f}"]
    assert cells[4][1:] == [f"{measured('first', 'c'):.2f}†↓‡↓", "-", "-"]
    assert cells[5] == ["mixed", "-", "-", "-"]
    assert cells[6][1:3] == [f"{measured('first', 'c'):.2f}", f"{measured('second', 'b'):.2f}"]


def test_differences_of_means_where_both_rows_are_measured(script: Any, results: Path) -> None:
    """Against the formula, written with NumPy: sample variances of the means of each collection."""
    parts = []
    for name in ("first", "second"):
        values = np.loadtxt(results / name / "b" / "per_query.csv", delimiter=",", skiprows=1, usecols=2)
        first = np.loadtxt(results / name / "a" / "per_query.csv", delimiter=",", skiprows=1, usecols=1)
        parts.append(100 * (values - first))
    middle = np.mean([part.mean() for part in parts])
    half = 1.96 * np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts)) / 2
    said = f"better over start: {middle:+.2f} ({middle - half:+.2f} to {middle + half:+.2f})"
    assert script.mean_differences(TABLE, results) == [said], "run c has one collection only"


def test_the_page_keeps_its_text_and_is_stable(script: Any, results: Path) -> None:
    page = "# Title\n\n<!-- table: one -->\nold\n<!-- end -->\n\nText after.\n"
    filled = script.fill(page, {"one": TABLE}, results)
    assert filled.startswith("# Title\n\n<!-- table: one -->\n| ")
    assert filled.endswith("\n<!-- end -->\n\nText after.\n")
    assert script.fill(filled, {"one": TABLE}, results) == filled
    with pytest.raises(InputError, match="has placeholders for one; there are tables one, two"):
        script.fill(page, {"one": TABLE, "two": TABLE}, results)


def test_an_evaluation_is_taken_in(script: Any, results: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    for name in ("first", "second"):
        shutil.copytree(results / name / "b", output / name)
        (output / name / "run.trec").write_text("q1 Q0 d1 1 2.5 b\n")
    assert script.keep(output, "new", results) == [results / "first" / "new", results / "second" / "new"]
    taken = {path.name: path.read_bytes() for path in (results / "first" / "new").iterdir()}
    assert sorted(taken) == ["metrics.json", "per_query.csv", "run.trec.gz"]
    assert gzip.decompress(taken["run.trec.gz"]) == b"q1 Q0 d1 1 2.5 b\n"
    script.keep(output, "new", results)
    assert (results / "first" / "new" / "run.trec.gz").read_bytes() == taken["run.trec.gz"]
    for name in ("first", "second"):  # now mixed: run.trec is the mixture, reranker.trec the reranker
        (output / name / "reranker.trec").write_text("q1 Q0 d1 1 1.5 b\n")
    script.keep(output, "mixed", results)
    mixed = results / "first" / "mixed"
    assert gzip.decompress((mixed / "run.trec.gz").read_bytes()) == b"q1 Q0 d1 1 1.5 b\n"
    assert gzip.decompress((mixed / "mixed.trec.gz").read_bytes()) == b"q1 Q0 d1 1 2.5 b\n"
    assert script.read_values(results, script.Row("x", "new"), "first") is not None
    with pytest.raises(InputError, match="contains no results"):
        script.keep(tmp_path / "nothing", "new", results)


def test_what_does_not_belong_together_is_refused(script: Any, results: Path) -> None:
    with pytest.raises(InputError, match="column must be one of"):
        script.render({**TABLE, "rows": [{"label": "x", "run": "a", "column": "best"}]}, results)
    with pytest.raises(InputError, match="which the table does not have"):
        script.render({**TABLE, "rows": [{"label": "x", "run": "a", "compare": {"y": "†"}}]}, results)
    path = results / "first" / "b" / "per_query.csv"
    path.write_text("\n".join(path.read_text().split("\n")[:20]) + "\n")
    with pytest.raises(InputError, match=r"per_query\.csv does not match"):
        script.render(TABLE, results)


RELEASES = sorted(
    path.parent.relative_to(BENCHMARKS / "results")
    for name in releases()
    for path in (BENCHMARKS / "results").glob(f"*/{name}/metrics.json")
)


@pytest.mark.parametrize("folder", RELEASES, ids=str)
def test_the_stated_measures_follow_from_the_kept_runs_alone(folder: Path) -> None:
    """Anyone can recompute a release's figures from `run.trec.gz` (unmixed) and `mixed.trec.gz` with the qrels."""
    if not os.environ.get("TSARANK_DATA"):
        pytest.skip("TSARANK_DATA is not set")
    qrels = read_qrels(Path(os.environ["TSARANK_DATA"], "beir", folder.parts[0], "qrels", "test.tsv"))
    kept = BENCHMARKS / "results" / folder
    with (kept / "per_query.csv").open(newline="", encoding="utf-8") as file:
        values = {row["query_id"]: row for row in csv.DictReader(file)}
    stated = json.loads((kept / "metrics.json").read_text())["measures"]
    for name, column in (("run.trec.gz", "reranked"), ("mixed.trec.gz", "fused")):
        judged = {query_id: qrels[query_id] for query_id in values}
        found = compute_metrics(read_run(kept / name), judged, measures=("ndcg@10",))
        assert found.aggregate["ndcg@10"] == pytest.approx(stated[column]["ndcg@10"], abs=1e-9)
        for query_id, row in values.items():
            assert found.per_query[query_id]["ndcg@10"] == pytest.approx(float(row[f"{column} ndcg@10"]), abs=1e-6)


def test_the_page_in_the_repository_is_up_to_date(script: Any) -> None:
    page = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    tables = yaml.safe_load((BENCHMARKS / "results_page.yaml").read_text(encoding="utf-8"))
    assert script.fill(page, tables, BENCHMARKS / "results") == page

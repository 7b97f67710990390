"""Quality beside cost: what is marked, and what is read of real evaluations."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from modeling_tsarank.cli import main
from modeling_tsarank.eval.frontier import Measured, mark_best, read_measured
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.ranking_errors import InputError


ROW = Measured("a", 10, 0.5, 0.6, 20, 1000, 2.0, None)


def test_the_frontier_is_what_nothing_beats() -> None:
    rows = [
        ROW,
        replace(ROW, name="dearer and better", quality=0.7, tokens=2000),
        replace(ROW, name="dearer and worse", quality=0.55, tokens=1500),
        replace(ROW, name="as dear and worse", quality=0.5),
        replace(ROW, name="an equal"),
        replace(ROW, name="fewer queries", queries=5, quality=0.4, tokens=9000),
        replace(ROW, name="does not tell", quality=0.9, tokens=None),
    ]
    best = [row.name for row in mark_best(rows, "tokens") if row.best]
    assert best == ["a", "dearer and better", "an equal"]
    assert [row.name for row in mark_best(rows, "seconds") if row.best] == ["does not tell"]


def test_rankers_that_were_measured(
    small_folder: Path, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common = ["evaluate", "--dataset", str(small_folder), "--model", str(tiny_llama), "--device", "cpu", "--quiet"]
    common += ["--top-k", "4", "--cache-dir", str(tmp_path / "cache"), "--output"]
    assert main([*common, str(tmp_path / "pointwise")]) == 0
    assert main([*common, str(tmp_path / "attention"), "--ranker", "attention"]) == 0
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("pointwise", "attention")]
    plot, table = tmp_path / "plot.png", tmp_path / "table.json"
    assert main(["frontier", *folders, "--cost", "calls", "--plot", str(plot), "--output", str(table)]) == 0
    printed = capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")
    for row in read_json(table):
        metrics = read_json(tmp_path / row["name"] / small_folder.name / "metrics.json")
        assert row["quality"] == metrics["measures"]["reranked"]["ndcg@10"]
        calls = metrics["pairs"] if row["name"] == "pointwise" else metrics["model_calls"]
        assert (row["calls"], row["tokens"]) == (calls / metrics["queries"], metrics["tokens"] / metrics["queries"])
        assert (f"{row['name']} *" in printed) == row["best"]

    shutil.copytree(tmp_path / "pointwise" / small_folder.name, tmp_path / "other" / small_folder.name)
    path = tmp_path / "other" / small_folder.name / "metrics.json"
    path.write_text(json.dumps({**read_json(path), "split": "train"}))
    assert main(["frontier", folders[0], str(tmp_path / "other")]) == 2
    assert "differ in dataset or split" in capsys.readouterr().err
    (tmp_path / "foreign" / "x").mkdir(parents=True)
    (tmp_path / "foreign" / "x" / "metrics.json").write_text("{}")
    for folder, collection, measure, message in [
        (tmp_path / "cache", None, "ndcg@10", "has no results of one collection, but of none"),
        (tmp_path / "nowhere", None, "ndcg@10", "nowhere is no folder"),
        (tmp_path / "pointwise", "elsewhere", "ndcg@10", "has no results of elsewhere"),
        (tmp_path / "pointwise", None, "ndcg@7", "lacks ndcg@7"),
        (tmp_path / "foreign", None, "ndcg@10", "was not written by tsarank evaluate"),
    ]:
        with pytest.raises(InputError, match=message):
            read_measured(folder, collection, measure)

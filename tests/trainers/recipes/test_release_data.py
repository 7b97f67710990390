"""The preparation of a release's data, on self-written raw files."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_tsarank import cli
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.run_files import read_run
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.cpt_config import ROW_RULES
from modeling_tsarank.trainers.data.list_building import read_queries
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES
from modeling_tsarank.trainers.recipes.judged import Judged, Pool, reread
from modeling_tsarank.trainers.recipes.labelled import choose_dev
from modeling_tsarank.trainers.recipes.release_data import prepare
from modeling_tsarank.trainers.row_checks import RowRules, checked_rows
from modeling_tsarank.trainers.training_data import load_training_rows


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    names = ("cpt", "sft", "dev", "held_out", "pools", "distill")
    paths = [path for name in names for path in (folder / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def texts_of(folder: Path) -> set[str]:
    """Every query and document that anything is trained on."""
    found = {
        row[side]
        for name in ("train", "validation")
        for row in rows_of(folder / "cpt" / f"{name}.jsonl")
        for side in ("query", "document")
    }
    for path in (folder / "sft").glob("*.jsonl"):
        for row in rows_of(path):
            found |= {row["query"], *row["positives"], *row["negatives"]}
    found |= {row["text"] for row in rows_of(folder / "pools" / "objects" / "corpus.jsonl")}
    return found | {
        row["text"] for name in ("corpus", "queries") for row in rows_of(folder / "distill" / f"{name}.jsonl")
    }


def test_training_files_hold_no_text_of_a_test_collection(raw: dict[str, Any], release: Path) -> None:
    trained = {text.lower() for text in texts_of(release)}
    assert not trained & {raw["query"], raw["document"], raw["near"], "some words"}
    dev = {row["text"] for path in (release / "dev").glob("*/*.jsonl") for row in rows_of(path)}
    assert not dev & {raw["query"], raw["near"]}
    found = json.loads((release / "counts.json").read_text())["leakage"]["test_collections"]["found"]
    assert found["near_document:exam"] == 8, "once of each kind of pair, once of a file"
    assert found["exact_query:exam"] >= 1


def test_development_queries_and_their_positives_are_not_trained_on(release: Path) -> None:
    held = {row["text"] for name in ("corpus", "queries") for row in rows_of(release / "held_out" / f"{name}.jsonl")}
    assert len(held) == 2 * (3 + 12 + 4)
    assert not held & texts_of(release)
    assert (
        json.loads((release / "counts.json").read_text())["leakage"]["held_out"]["found"]["exact_query:held_out"] >= 1
    )


def test_development_collections_have_candidates_with_a_positive_among_them(release: Path) -> None:
    counts = json.loads((release / "counts.json").read_text())["sources"]
    for name, queries in (("objects", 3), ("texts", 12), ("answers", 4)):
        collection = load_collection(release / "dev" / name, "dev")
        run = read_run(collection.runs["candidates"])
        assert len(run) == counts[name]["dev"] == queries
        for query_id, scores in run.items():
            assert 1 < len(scores) <= 5
            assert scores.keys() <= collection.documents.keys()
            assert any(collection.qrels[query_id].get(document_id) == 1 for document_id in scores)


def test_hard_development_queries_are_those_that_the_first_stage_gets_wrong(tmp_path: Path) -> None:
    easy = Judged("easy", "moss lamp", ("moss lamp",), (1.0,))
    hard = Judged("hard", "tin drum", ("a drum for the long parade through every street of the town",), (1.0,))
    lost = Judged("lost", "far shore", ("nothing in common",), (1.0,))
    rows = [easy, hard, lost]
    pool = Pool("p", [*(row.positives[0] for row in rows), "tin drum", "moss", "far shore"], tmp_path)

    def chosen(hard: bool, count: int = 3) -> set[str]:
        return {row.query_id for row in choose_dev(rows, pool, count, 2, hard, random.Random(0))[0]}

    assert chosen(hard=False) == {"easy", "hard"}
    assert chosen(hard=True) == {"hard"}
    assert chosen(hard=False, count=0) == set()
    assert len(chosen(hard=False, count=1)) == 1


def test_rows_can_be_trained_on_and_keep_the_shares(release: Path) -> None:
    rows = rows_of(release / "sft" / "all.jsonl")
    by_source = {name: [row for row in rows if row["source"] == name] for name in ("objects", "texts", "answers")}
    assert [len(one) for one in by_source.values()] == [15, 15, 30]
    assert len(checked_rows(rows, RowRules(positives=True, negatives=1)).rows) == len(rows)
    # A development query's positive among the mined ones is taken out again.
    sizes = {len(row["negatives"]) for row in rows}
    assert min(sizes) >= 1
    assert max(sizes) == 4
    # Cleaned: the bracket before the query, and what was once read as Latin-1.
    assert not any(row["query"].startswith(")") for row in by_source["texts"])
    assert all(row["positives"][0].endswith(" café") for row in by_source["texts"])
    # Six queries in 30 rows: each five times.
    answers = [row["query"] for row in by_source["answers"]]
    assert {answers.count(query) for query in answers} == {5}
    checked_rows(rows_of(release / "cpt" / "train.jsonl"), ROW_RULES)
    assert {row["type"] for row in rows_of(release / "cpt" / "train.jsonl")} == set(PAIR_TYPES)
    assert 0 < len(read_queries([release / "distill" / "queries.jsonl"])) <= 9
    assert 3 <= len(rows_of(release / "distill" / "corpus.jsonl")) <= 30


def test_a_pool_is_every_document_of_its_source_that_may_be_trained_on(release: Path) -> None:
    pool = rows_of(release / "pools" / "objects" / "corpus.jsonl")
    # Twelve rows with 0 to 3 negatives each, and positives less the three of the development queries.
    assert len(pool) == 12 - 3 + 3 * (0 + 1 + 2 + 3)
    assert len({row["_id"] for row in pool}) == len({row["text"] for row in pool}) == len(pool)
    counts = json.loads((release / "counts.json").read_text())
    assert counts["sources"]["objects"]["corpus"] == len(pool)
    assert counts["files"]["pools/objects/corpus.jsonl"]["rows"] == len(pool)
    trained = {
        text for row in rows_of(release / "sft" / "all.jsonl") for text in (*row["positives"], *row["negatives"])
    }
    assert {row["text"] for row in pool} & trained


def test_counts_say_what_was_read_and_written(raw: dict[str, Any], release: Path) -> None:
    text = (release / "counts.json").read_text()
    counts = json.loads(text)
    assert str(raw["data"]) not in text
    assert str(release) not in text
    assert counts["weak"]["read"] == 7 * 32
    assert counts["sources"]["texts"]["left_out"]["no positive"] == 1
    assert counts["sources"]["objects"]["usable"] == 12
    for name, one in counts["files"].items():
        assert one["rows"] == len(rows_of(release / name))
    assert {"objects.jsonl.gz", "texts_dev.jsonl.gz", "question_answer.jsonl.gz"} <= counts["inputs"].keys()
    assert all(len(one["sha256"]) == 64 for one in counts["inputs"].values())


def test_the_same_plan_gives_the_same_bytes_also_over_an_interrupted_preparation(
    raw: dict[str, Any], release: Path, tmp_path: Path
) -> None:
    prepare(raw["plan"], raw["data"], tmp_path / "again")
    before = files_of(release)
    assert files_of(tmp_path / "again") == before
    (release / "sft" / "all.jsonl").unlink()  # as if it had been interrupted
    prepare(raw["plan"], raw["data"], release)
    assert files_of(release) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": ["nobody"]}, "pools contains 'nobody'; there are objects, texts, answers"),
        ({"mixes": {"all": {"nobody": 1}}}, "contains 'nobody'; there are objects, texts, answers"),
        ({"mixes": {"all": {"texts": 0}}}, "must give shares above 0"),
        ({"mixes": {"all": {"texts": True}}}, "must give shares above 0"),
        ({"leakage": []}, "leakage must list the test collections"),
        ({"sources": [{"name": "x"}]}, "needs either files or types"),
        ({"sources": [{"name": "x", "files": ["a"], "mining": {"depht": 3}}]}, "no option 'depht'"),
        ({"sources": [{"name": "x", "types": ["question_answer"], "dev_files": ["a"]}]}, "dev_files without files"),
        ({"sources": [{"name": "a/b", "files": ["a"]}]}, "they name folders"),
        ({"leakage": "beir"}, "leakage must be of type list"),
        ({"seeds": 3}, "no option 'seeds'"),
        ({"weak_recipe": 3}, "weak_recipe must be of type str"),
        ({"weak_recipe": "none.yaml"}, r"no such file: .*none\.yaml"),
        ({"sources": [{"name": "x", "files": ["gone"]}], "mixes": {}, "pools": []}, r"there is no .*gone\.jsonl\.gz"),
    ],
)
def test_a_wrong_plan_is_one_line(raw: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    plan = yaml.safe_load(raw["plan"].read_text()) | change
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "weak.yaml").write_text((raw["data"] / "weak.yaml").read_text())
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "plan.yaml", raw["data"], tmp_path / "out")


def test_a_row_of_no_layout_is_named(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "supervised").mkdir()
    odd = json.dumps({"query": "a", "good": ["b"], "bad": ["c"]}) + "\n"
    (tmp_path / "supervised" / "odd.jsonl.gz").write_bytes(gzip.compress(odd.encode()))
    for name in ("weak_pairs", "beir"):
        (tmp_path / name).symlink_to(raw["data"] / name)
    plan = yaml.safe_load(raw["plan"].read_text()) | {
        "sources": [{"name": "odd", "files": ["odd"]}],
        "mixes": {},
        "pools": [],
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "weak.yaml").write_text((raw["data"] / "weak.yaml").read_text())
    with pytest.raises(InputError, match=r"odd\.jsonl\.gz, line 1"):
        prepare(tmp_path / "plan.yaml", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "expected"), [("cafÃ©", "café"), ("café", "café"), ("日本", "日本"), ("plain", "plain"), ("", "")]
)
def test_only_what_was_read_wrongly_is_read_again(text: str, expected: str) -> None:
    assert reread(text) == expected


# ---- the command -----------------------------------------------------------------------------------


def test_the_command_prints_the_counts_and_one_line_for_an_error(
    raw: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", str(raw["plan"]), "--data", str(raw["data"]), "--output", str(tmp_path / "out")]
    assert cli.main(["recipe", *words, "--limit", "20"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["weak"]["read"] == 140
    assert json.loads(printed)["sources"]["texts"]["usable"] == 13
    assert cli.main(["recipe", *words, "--limit", "-1"]) == 2
    assert capsys.readouterr().err.startswith("tsarank recipe prepare: error: --limit: expected a whole")
    assert cli.main(["recipe", "prepare", "nothing", "--data", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "no file 'nothing'" in capsys.readouterr().err


def test_help_is_quick() -> None:
    code = (
        "import argparse, sys\n"
        "from modeling_tsarank.trainers.recipe_commands import register\n"
        "register(argparse.ArgumentParser().add_subparsers())\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_teacher_orders_the_lists_of_the_distillation(
    make_ranker: Callable[..., Any], release: Path, tmp_path: Path
) -> None:
    make_ranker("tsarank").save_pretrained(tmp_path / "teacher")
    words = ["data", "lists", "--corpus", str(release / "distill"), "--output", str(tmp_path / "lists")]
    words += ["--queries", str(release / "distill" / "queries.jsonl"), "--index-cache", str(tmp_path / "cache")]
    words += ["--teacher-scores", str(tmp_path / "teacher"), "--list-size", "4"]
    assert cli.main([*words, "--dtype", "float32", "--device", "cpu"]) == 0
    rows = load_training_rows(tmp_path / "lists" / "data", cache_dir=tmp_path / "datasets")
    assert len(rows) >= 2
    checked_rows(rows, RowRules())

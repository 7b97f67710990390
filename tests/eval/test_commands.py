"""The room's commands, called as the shell calls them, over real files and a real tiny model."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling_tsarank import TwolarModel, cli, load_ranker
from modeling_tsarank.eval.collections import CQADUPSTACK_PARTS
from modeling_tsarank.eval.fusion import fuse_runs
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.run_files import read_qrels, read_run, write_run
from modeling_tsarank.eval.significance import compare_runs
from modeling_tsarank.files.reading import read_json


COMMANDS = "modeling_tsarank.eval.commands"
Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    """Runs `tsarank …` in this process; returns exit status, standard output and standard error."""
    if COMMANDS not in cli.COMMAND_MODULES:
        monkeypatch.setattr(cli, "COMMAND_MODULES", (*cli.COMMAND_MODULES, COMMANDS))
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def write_collection() -> Callable[..., Path]:
    """The maker of collections behind the room's fixtures."""
    specification = importlib.util.spec_from_file_location("eval_conftest", Path(__file__).with_name("conftest.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.write_collection


def test_an_instruction_reaches_the_model(shell: Shell, small_folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    template = "{instruction} Query: {query} Document: {document} Relevant:"
    words = {"true_text": "honey", "false_text": "ship", "max_length": 60, "max_query_length": 20}
    TwolarModel.from_backbone(str(tiny_llama), template=template, **words).save_pretrained(tmp_path / "ranker")
    evaluate = ("evaluate", "--model", tmp_path / "ranker", "--dataset", small_folder, "--top-k", 3, "--output")
    told = ("--instruction", "wax queen")
    assert shell(*evaluate, tmp_path / "none")[0] == shell(*evaluate, tmp_path / "told", *told)[0] == 0
    texts = [json.loads(line) for line in (small_folder / "corpus.jsonl").read_text().splitlines()]
    text_of = {row["_id"]: f"{row['title']} {row['text']}" for row in texts}
    queries = [json.loads(line) for line in (small_folder / "queries.jsonl").read_text().splitlines()]
    query, found = queries[0]["text"], read_run(tmp_path / "told" / "small" / "run.trec")[queries[0]["_id"]]
    ranker = load_ranker(tmp_path / "ranker", instruction="wax queen")
    assert list(found.values()) == pytest.approx(ranker.predict([(query, text_of[one]) for one in found]), abs=1e-4)
    assert found != read_run(tmp_path / "none" / "small" / "run.trec")[queries[0]["_id"]]
    assert read_json(tmp_path / "told" / "small" / "metrics.json")["instruction"] == "wax queen"
    status, _, error = shell(*evaluate, tmp_path / "none", *told)
    assert status == 2
    assert "instruction" in error


@pytest.fixture(scope="session")
def second_folder(small_folder: Path, write_collection: Callable[..., Path]) -> Path:
    """Another collection beside the small one."""
    return write_collection(small_folder.parent / "second", documents=30, queries=8, seed=9, prefix="x")


def evaluate(shell: Shell, tiny_llama: Path, output: Path, *arguments: object) -> tuple[int, str, str]:
    return shell(
        "evaluate", "--model", tiny_llama, "--device", "cpu", "--quiet", "--max-length", "200",
        "--max-query-length", "40", "--top-k", "10", "--output", output, *arguments,
    )  # fmt: skip


def test_two_datasets_make_one_table(
    shell: Shell, tiny_llama: Path, small_folder: Path, second_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    status, out, err = evaluate(
        shell, tiny_llama, output, "--dataset", small_folder, second_folder, "--measures", "nDCG@10", "map"
    )
    assert status == 0, err
    values = {}
    for folder in (small_folder, second_folder):
        qrels = read_qrels(folder / "qrels" / "test.tsv")
        for system, name in (("bm25", "first_stage.trec"), ("tiny-llama", "run.trec")):
            run = read_run(output / folder.name / name)
            values[folder.name, system] = compute_metrics(run, qrels, measures=("ndcg@10", "map")).aggregate
    with (output / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["dataset"] for row in rows] == ["small", "small", "second", "second", "Average", "Average"]
    for row in rows[:4]:
        for measure in ("ndcg@10", "map"):
            assert row[measure] == f"{100 * values[row['dataset'], row['system']][measure]:.2f}"
    for row in rows[4:]:
        mean = (values["small", row["system"]]["map"] + values["second", row["system"]]["map"]) / 2
        assert row["map"] == f"{100 * mean:.2f}"
    markdown = (output / "table.md").read_text()
    assert "## nDCG@10 (x 100)" in markdown
    assert "## MAP (x 100)" in markdown
    assert f"| small | 12 | {100 * values['small', 'bm25']['ndcg@10']:.1f} |" in markdown
    assert "Average" in out
    status, _, err = evaluate(shell, tiny_llama, output, "--dataset", small_folder, "--top-k", "3")
    assert status == 2
    assert "top_k was 10 and is now 3" in err


def test_tuned_fusion_is_used_elsewhere_and_refused_at_home(
    shell: Shell, tiny_llama: Path, small_folder: Path, second_folder: Path, tmp_path: Path
) -> None:
    assert evaluate(shell, tiny_llama, tmp_path / "dev", "--dataset", small_folder)[0] == 0
    runs = (tmp_path / "dev" / "small" / "run.trec", tmp_path / "dev" / "small" / "first_stage.trec")
    qrels = small_folder / "qrels" / "test.tsv"
    setting = tmp_path / "fusion.json"
    status, out, err = shell("tune-fusion", *runs, "--qrels", qrels, "--output", setting, "--steps", "4")
    assert status == 0, err
    assert out.count("<- chosen") == 1
    weight = read_json(setting)["weight"]
    status, _, err = evaluate(shell, tiny_llama, tmp_path / "dev", "--dataset", small_folder, "--interpolate", setting)
    assert status == 2
    assert "tuned on 12 of the 12 judged queries" in err
    output = tmp_path / "test"
    status, out, err = evaluate(shell, tiny_llama, output, "--dataset", second_folder, "--interpolate", setting)
    assert status == 0, err
    assert f"tiny-llama + {weight:g} x bm25" in out
    reranked, first = (read_run(output / "second" / name) for name in ("reranker.trec", "first_stage.trec"))
    assert read_run(output / "second" / "run.trec") == fuse_runs(reranked, first, weight)
    assert read_json(output / "second" / "metrics.json")["fusion"]["tuned_on"] == read_json(setting)["qrels_hash"]


def test_int8_weights_are_recorded_and_not_mixed_with_exact_scores(
    shell: Shell, tiny_llama: Path, small_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "results"
    status, _, err = evaluate(shell, tiny_llama, output, "--dataset", small_folder, "--dtype", "int8")
    assert status == 0, err
    (metrics,) = output.glob("*/metrics.json")
    assert json.loads(metrics.read_text())["dtypes"] == ["int8"]
    status, _, err = evaluate(shell, tiny_llama, output, "--dataset", small_folder, "--dtype", "float32")
    assert status == 2
    assert "dtype was 'int8' and is now 'float32'" in err


def test_the_parts_of_cqadupstack_are_one_row(
    shell: Shell, tiny_llama: Path, write_collection: Callable[..., Path], tmp_path: Path
) -> None:
    for number, part in enumerate(CQADUPSTACK_PARTS):
        write_collection(tmp_path / "cqadupstack" / part, documents=40, queries=3 + number % 2, seed=number)
    output = tmp_path / "out"
    status, out, err = evaluate(shell, tiny_llama, output, "--dataset", tmp_path / "cqadupstack")
    assert status == 0, err
    values = [
        read_json(output / f"cqadupstack-{part}" / "metrics.json")["measures"]["reranked"]["ndcg@10"]
        for part in CQADUPSTACK_PARTS
    ]
    assert out.splitlines()[3].split()[:2] == ["cqadupstack", "42"]
    assert out.splitlines()[3].split()[3] == f"{100 * sum(values) / 12:.1f}"


def test_a_collection_of_three_files(
    shell: Shell, tiny_llama: Path, small_folder: Path, second_folder: Path, tmp_path: Path
) -> None:
    assert evaluate(shell, tiny_llama, tmp_path / "folder", "--dataset", small_folder)[0] == 0
    files = ["--corpus", small_folder / "corpus.jsonl", "--queries", small_folder / "queries.jsonl"]
    files += ["--qrels", small_folder / "qrels" / "test.tsv"]
    run = tmp_path / "folder" / "small" / "first_stage.trec"
    status, out, err = evaluate(shell, tiny_llama, tmp_path / "files", *files, "--name", "mine", "--first-stage", run)
    assert status == 0, err
    assert out.splitlines()[3].split()[0] == "mine"
    mine, theirs = (read_run(tmp_path / name / "run.trec") for name in ("files/mine", "folder/small"))
    assert mine == theirs


def test_compare_prints_what_the_tests_say(shell: Shell, tmp_path: Path) -> None:
    qrels = {f"q{number}": {"a": 1, "b": 0} for number in range(10)}
    good = {query_id: {"a": 2.0, "b": 1.0} for query_id in qrels}
    poor = {query_id: {"a": 1.0, "b": 2.0 if number % 3 else 0.5} for number, query_id in enumerate(qrels)}
    write_run(tmp_path / "good.trec", good, tag="good")
    write_run(tmp_path / "poor.trec", poor, tag="poor")
    lines = [
        f"{query_id} 0 {document_id} {grade}" for query_id in qrels for document_id, grade in qrels[query_id].items()
    ]
    (tmp_path / "qrels.txt").write_text("\n".join(lines) + "\n")
    files = [tmp_path / "poor.trec", tmp_path / "good.trec"]
    status, out, err = shell("compare", *files, "--qrels", tmp_path / "qrels.txt", "--json")
    assert status == 0, err
    expected = compare_runs(poor, good, qrels, name="qrels.txt")
    (found,) = json.loads(out)
    assert found["randomization_p"] == expected.randomization_p == pytest.approx(2 / 2**6)
    assert found["t_p_holm"] == expected.t_p
    assert (found["wins"], found["ties"], found["losses"]) == (6, 4, 0)
    pair = ["--pair", "again", *files, tmp_path / "qrels.txt"]
    status, out, _ = shell("compare", *files, "--qrels", tmp_path / "qrels.txt", *pair)
    assert status == 0
    assert "6/4/0" in out
    assert f"{2 * expected.randomization_p:.4f}" in out, "Holm doubles the smaller of two equal p-values"


def bad(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text, encoding="utf-8") and None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "{folder}", "--measures", "ndgc@10"], "ndgc@10"),
        (["--dataset", "{folder}", "--top-k", "0"], "--top-k: expected a whole number from 1"),
        (["--dataset", "{folder}", "--depth", "5"], "--depth 5 is below --top-k 10"),
        (["--dataset", "{folder}", "--interpolate", "1.5"], "must be in [0, 1]"),
        (["--dataset", "{folder}", "--interpolate", "nowhere.json"], "no such file: nowhere.json"),
        (["--dataset", "{folder}", "--normalize", "zscore"], "needs --interpolate"),
        (["--dataset", "{folder}", "--first-stage", "bm52"], "bm52"),
        (["--dataset", "{folder}", "--first-stage", "{foreign}"], "none of the 12 queries"),
        (["--dataset", "{folder}", "--split", "dev"], "dev"),
        (["--dataset", "{folder}", "--dtype", "float8"], "float8"),
        (["--dataset", "{folder}", "{folder}"], "two datasets are called small"),
        (["--dataset", "{folder}", "--corpus", "{folder}/corpus.jsonl"], "give either --dataset"),
        (["--corpus", "{folder}/corpus.jsonl"], "all of --corpus, --queries and --qrels"),
        ([], "no dataset"),
        (["--dataset", "{nojson}"], "line 3"),
        (["--dataset", "{empty}"], "empty"),
        (["--dataset", "{strangers}"], "have no text"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    shell: Shell, tiny_llama: Path, small_folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    folders = {"folder": small_folder, "foreign": tmp_path / "foreign.trec"}
    write_run(folders["foreign"], {"z": {"d0": 1.0}}, tag="foreign")
    corpus = (small_folder / "corpus.jsonl").read_text().splitlines()
    for name, changed, text in (
        ("nojson", "corpus.jsonl", "\n".join([*corpus[:2], "{nonsense", *corpus[3:]])),
        ("empty", "corpus.jsonl", ""),
        ("strangers", "qrels/test.tsv", "query-id\tcorpus-id\tscore\nstranger\td0\t1\n"),
    ):
        folders[name] = tmp_path / name
        (folders[name] / "qrels").mkdir(parents=True)
        for file in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
            (folders[name] / file).write_text((small_folder / file).read_text())
        (folders[name] / changed).write_text(text)
    status, out, err = evaluate(
        shell, tiny_llama, tmp_path / "out", *(argument.format(**folders) for argument in arguments)
    )
    assert status == 2
    assert out == ""
    assert message in err
    assert [line.startswith(("tsarank: error: ", "tsarank evaluate: error: ")) for line in err.strip().splitlines()][
        -1
    ]
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "nothing to compare"),
        (["compare", "a.trec", "--qrels", "q"], "give two runs and --qrels"),
        (["compare", "a.trec", "b.trec", "--qrels", "missing"], "no such file: missing"),
        (["tune-fusion", "a", "b", "--qrels", "missing", "--output", "o"], "no such file: missing"),
    ],
)
def test_bad_input_of_the_other_commands(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = shell(*arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_told(
    shell: Shell, tiny_llama: Path, small_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    status, _, err = evaluate(shell, tiny_llama, tmp_path / "file" / "out", "--dataset", small_folder)
    assert status == 2
    assert "cannot write" in err
    assert "Not a directory" in err


@pytest.mark.parametrize("command", [["evaluate"], ["compare"], ["tune-fusion"]])
def test_help_is_quick_and_has_examples(shell: Shell, command: list[str]) -> None:
    status, out, _ = shell(*command, "--help")
    assert status == 0
    assert "example" in out


def test_registering_loads_nothing_heavy() -> None:
    code = (
        "import argparse, sys\n"
        f"from {COMMANDS} import register\n"
        "register(argparse.ArgumentParser().add_subparsers())\n"
        "heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'pytrec_eval', 'bm25s', 'datasets'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    assert time.monotonic() - started < 10


def test_datasets_may_be_named_together_or_one_by_one() -> None:
    together = cli.build_parser().parse_args(["evaluate", "--dataset", "a", "b", "--output", "o"])
    apart = cli.build_parser().parse_args(["evaluate", "--dataset", "a", "--dataset", "b", "--output", "o"])
    assert together.dataset == apart.dataset == ["a", "b"]

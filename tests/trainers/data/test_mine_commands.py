"""The mining commands of `tsarank data`, run as a user would."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.data.commands import register_commands


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "kitchen"
    (folder / "qrels").mkdir(parents=True)
    words = ["flour", "yeast", "dough", "oven", "crust", "knead", "bake", "loaf", "salt", "water"]
    with (folder / "corpus.jsonl").open("w") as file:
        for n in range(40):
            text = (
                f"The {words[n % 10]} number {n} needs {words[n // 4]} and time. Then comes {words[(n * 3) % 10]} {n}."
            )
            file.write(json.dumps({"_id": f"d{n}", "text": text}) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        for n in range(6):
            file.write(json.dumps({"_id": f"q{n}", "text": f"{words[n]} and {words[n + 3]}"}) + "\n")
    (folder / "qrels" / "train.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(6))
    )
    return folder


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    register_commands(parser.add_subparsers(required=True))
    args = parser.parse_args([str(argument) for argument in arguments])
    return args.run(args)


def test_help_is_quick_and_says_something():
    code = (
        "import argparse, sys\n"
        "from modeling_tsarank.trainers.data.commands import register_commands\n"
        "parser = argparse.ArgumentParser()\n"
        "commands = parser.add_subparsers()\n"
        "register_commands(commands)\n"
        "for name in ('queries', 'lists', 'scores', 'mine'):\n"
        "    assert len(commands.choices[name].format_help()) > 600, name\n"
        "    assert 'examples:' in commands.choices[name].format_help(), name\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow', 'httpx2'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_from_passages_to_lists(corpus, tmp_path, capsys, make_ranker):
    """Cropped and generated queries, four first stages, a score-giving teacher, and training data at the end."""
    import datasets

    from modeling_tsarank.trainers.row_checks import RowRules, checked_rows

    ranker = tmp_path / "ranker"
    make_ranker("tsarank").save_pretrained(ranker)
    cropped, generated = tmp_path / "cropped.jsonl", tmp_path / "generated.jsonl"
    assert run("queries", "cropped", "--corpus", corpus, "--count", 24, "--output", cropped) == 0
    assert re.search(r"taken +24", capsys.readouterr().out)
    records = [json.loads(line) for line in cropped.read_text().splitlines()]
    with generated.open("w") as file:
        for n, record in enumerate(records[:16]):
            about = {"query_type": "generated", "docid": record["metadata"]["docid"], "generator": "hand"}
            text = f"what about {record['text'].split()[1]} number {n}"
            file.write(json.dumps({"_id": f"generated-{n}", "text": text, "metadata": about}) + "\n")
    out = tmp_path / "lists"
    arguments = ["lists", "--corpus", corpus, "--queries", cropped, generated, "--output", out]
    arguments += ["--first-stages", "bm25", "two=bm25", "three=bm25", f"rerank:{ranker}", "--rerank-depth", 10]
    arguments += ["--list-size", 6, "--teacher-scores", ranker, "--dtype", "float32", "--device", "cpu"]
    arguments += ["--index-cache", tmp_path / "indexes", "--validation-share", 0.1]
    assert run(*arguments) == 0
    assert re.search(r"rows: train +36", capsys.readouterr().out)

    report = json.loads((out / "provenance.json").read_text())
    assert report["queries"] == 40
    assert sum(report["outcomes"].values()) + report["too_few_documents"] == 40
    assert report["splits"] == {"train": 36, "validation": 4, "failed": 0}
    assert report["teacher"]["model"] == "ranker"
    assert len(report["by_source"]) == 8
    loaded = datasets.load_dataset(str(out / "data"), cache_dir=str(tmp_path / "hub"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 36, "validation": 4}
    rows = checked_rows(out / "data", RowRules(), cache_dir=tmp_path / "arrow").rows
    assert {row["query_type"] for row in rows} == {"cropped", "generated"}
    for row in rows:
        ordered = [row["teacher_scores"][place] for place in row["permutation"]]
        assert ordered == sorted(ordered, reverse=True)
    first = {path.name: path.read_bytes() for path in (out / "data").iterdir()}
    assert run(*arguments) == 0
    assert {path.name: path.read_bytes() for path in (out / "data").iterdir()} == first
    again = json.loads((out / "provenance.json").read_text())
    assert again["usage"]["requests"] == 0
    assert again["usage"]["cached"] == 40


def test_a_teacher_that_cannot_do_it_leaves_a_report_and_no_rows(corpus, tmp_path, make_ranker):
    """A random model's answers name nothing: all lists are recorded as failed or refused, none is kept."""
    ranker = tmp_path / "ranker"
    make_ranker("tsarank").save_pretrained(ranker)
    cropped = tmp_path / "cropped.jsonl"
    run("queries", "cropped", "--corpus", corpus, "--count", 5, "--output", cropped)
    arguments = ["lists", "--corpus", corpus, "--queries", cropped, "--output", tmp_path / "lists", "--list-size", 2]
    arguments += [
        "--teacher-local",
        ranker,
        "--teacher-options",
        "max_tokens=3",
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    arguments += ["--index-cache", tmp_path / "indexes"]
    with pytest.raises(ModelError, match="ranked none of 5 lists"):
        run(*arguments)
    failed = [json.loads(line) for line in (tmp_path / "lists" / "failed.ndjson").read_text().splitlines()]
    assert len(failed) == 5
    assert {row["outcome"] for row in failed} <= {"failed", "refused"}
    assert all(row["reason"] and len(row["document_ids"]) == 2 for row in failed)
    assert not list((tmp_path / "lists" / "data").glob("*.parquet"))


def test_a_limit_is_spread_and_counted(corpus, tmp_path, make_ranker):
    ranker = tmp_path / "ranker"
    make_ranker("tsarank").save_pretrained(ranker)
    cropped = tmp_path / "cropped.jsonl"
    run("queries", "cropped", "--corpus", corpus, "--count", 12, "--output", cropped)
    arguments = ["lists", "--corpus", corpus, "--queries", cropped, "--output", tmp_path / "lists", "--list-size", 4]
    arguments += ["--first-stages", "bm25", "two=bm25", "--teacher-scores", ranker, "--dtype", "float32"]
    assert run(*arguments, "--limit", 6, "--index-cache", tmp_path / "indexes") == 0
    report = json.loads((tmp_path / "lists" / "provenance.json").read_text())
    assert report["queries"] == 12
    assert report["not_asked_by_limit"] == 6
    assert {source: counts["clean"] for source, counts in report["by_source"].items()} == {
        "cropped x bm25": 3,
        "cropped x two": 3,
    }


def test_mining(corpus, tmp_path, capsys):
    path = tmp_path / "sft.jsonl"
    arguments = ["mine", "--dataset", corpus, "--output", path, "--depth", 20, "--count", 5]
    assert run(*arguments, "--index-cache", tmp_path / "indexes") == 0
    assert re.search(r"rows +6", capsys.readouterr().out)
    assert json.loads((tmp_path / "sft.report.txt").read_text())["negatives"] == 30
    files = ["--corpus", corpus / "corpus.jsonl", "--queries", corpus / "queries.jsonl"]
    other = tmp_path / "other.jsonl"
    arguments = ["mine", *files, "--qrels", corpus / "qrels" / "train.tsv", "--output", other, "--depth", 20]
    assert run(*arguments, "--count", 5, "--index-cache", tmp_path / "indexes") == 0
    negatives = [[one["docid"] for one in json.loads(line)["negatives"]] for line in path.read_text().splitlines()]
    assert negatives == [
        [one["docid"] for one in json.loads(line)["negatives"]] for line in other.read_text().splitlines()
    ]


def test_made_queries_are_labelled_with_their_passages(corpus, tmp_path):
    cropped, mined = tmp_path / "cropped.jsonl", tmp_path / "mined.jsonl"
    assert run("queries", "cropped", "--corpus", corpus, "--count", 9, "--output", cropped) == 0
    arguments = ["mine", "--corpus", corpus, "--output", mined, "--depth", 20, "--count", 5]
    assert run(*arguments, "--queries", cropped, "--index-cache", tmp_path / "indexes") == 0
    passages = {one["_id"]: one["metadata"]["docid"] for one in map(json.loads, cropped.read_text().splitlines())}
    rows = [json.loads(line) for line in mined.read_text().splitlines()]
    assert {row["query_id"]: [one["docid"] for one in row["positives"]] for row in rows} == {
        query_id: [passage] for query_id, passage in passages.items()
    }
    with pytest.raises(InputError, match=r"the query q0 of .* has no passage in .*give --qrels"):
        run(*arguments, "--queries", corpus / "queries.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mine", "--output", "x", "--corpus", "c"), "give either --dataset, or --corpus and --queries"),
        (("mine", "--output", "x", "--judge", "m"), "give --absolute-margin or --relative-margin"),
        (("mine", "--output", "x", "--depth", 10), "48 negatives do not fit in the ranks 0 to 10"),
        (("queries", "cropped", "--corpus", "nowhere", "--count", 1, "--output", "x"), "no such file"),
    ],
)
def test_errors_say_what_to_do(arguments, message):
    with pytest.raises(InputError, match=message):
        run(*arguments)


def test_errors_about_inputs(corpus, tmp_path):
    with pytest.raises(InputError, match=r"no query could be made .*too short 80.*change the limits"):
        run(
            "queries", "cropped", "--corpus", corpus, "--count", 3, "--min-words", 30, "--output", tmp_path / "x.jsonl"
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no corpus"):
        run("queries", "cropped", "--corpus", tmp_path / "empty", "--count", 3, "--output", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()
    teacher = ["--teacher-url", "http://127.0.0.1:9/v1", "--teacher-model", "m", "--teacher-options", "url=http://x"]
    lists = ["lists", "--corpus", corpus, "--queries", corpus / "queries.jsonl", "--output", tmp_path / "lists"]
    with pytest.raises(InputError, match="as --teacher-url and --teacher-model"):
        run(*lists, *teacher)

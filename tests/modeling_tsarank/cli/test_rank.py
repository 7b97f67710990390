"""`tsarank rank` as a user runs it: a process of its own, real files, exit statuses."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from chat_server import ChatServer
from transformers import AutoModelForCausalLM

from modeling_tsarank import TSARankModel, load_ranker
from modeling_tsarank.cache.state_files import read_documents
from modeling_tsarank.cli import main
from modeling_tsarank.ranking_errors import InputError


@pytest.fixture(scope="module")
def model_folder(zoo, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("ranker") / "llama"
    TSARankModel.from_backbone(str(zoo.folders["llama"])).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def documents(tmp_path) -> str:
    rows = [
        {"_id": "b", "title": "Bread", "text": "Yeast makes gas."},
        {"_id": "s", "text": "Ships need pilots."},
        {"text": "Bees \x1b[31mdance\nin the hive."},
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return str(path)


def test_a_table_and_the_same_in_json(run_command, model_folder, documents) -> None:
    base = ["rank", "--query", "why does bread rise", "--documents", documents, "--model", model_folder]
    done = run_command(*base, "--json", "--device", "cpu", "--batch-tokens", "64")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(done.stdout)["results"]
    model = load_ranker(model_folder, device="cpu")
    expected = model.rank("why does bread rise", [d.text for d in read_documents(documents)])
    ids = [d.id for d in read_documents(documents)]
    assert ids == ["b", "s", "3"]
    assert [row["id"] for row in results] == [ids[row["corpus_id"]] for row in expected]
    assert all(math.isclose(a["score"], b["score"], abs_tol=1e-4) for a, b in zip(results, expected, strict=True))
    table = run_command(*base, "--top-k", "2", COLUMNS="60")
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["rank", "id", "score", "text"]
    assert [line.split()[1] for line in lines[1:]] == [row["id"] for row in results[:2]]
    assert all(len(line) <= 60 for line in lines)
    assert "\x1b" not in run_command(*base).stdout


def test_rankers_of_lists_here_and_behind_an_address(capsys, zoo, documents) -> None:
    base = ["rank", "--query", "why does bread rise", "--documents", documents, "--json"]
    here = ["--model", str(zoo.folders["llama"]), "--ranker", "pairwise", "--device", "cpu", "--dtype", "float32"]
    assert main([*base, *here, "--ranker-options", "method=allpair"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["calls"], found["unusable"]) == (6, 0)
    assert sum(row["score"] for row in found["results"]) == 3, "three comparisons, each a win or two halves"

    for ranker, calls in (("attention", 3), ("one-pass", 1)):
        assert main([*base, *here, "--ranker", ranker]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (len(found["results"]), found["calls"]) == (3, calls)

    def longest_first(_, number, payload):
        rows = [{"index": n, "relevance_score": len(text)} for n, text in enumerate(payload["documents"])]
        return 200, {}, {"results": rows}

    with ChatServer(longest_first) as server:
        assert main([*base, "--model", server.url, "--top-k", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["score"]) for row in found["results"]] == [("3", 28), ("b", 22)]
    assert found["calls"] == 1
    assert main([*base, *here, "--store", "somewhere"]) == 2
    assert "--store has no effect on a pairwise ranker" in capsys.readouterr().err


@pytest.mark.parametrize("ranker", ["pointwise", "listwise", "setwise"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--revision", "v1"), "revision 'v1' has no effect on "),
        (("--api-model", "m"), "--api-model has no effect on a model on this machine"),
        (("--api-timeout", "1"), "--api-timeout has no effect on a model on this machine"),
    ],
)
def test_options_of_other_models_are_refused(capsys, model_folder, documents, ranker, option, message) -> None:
    base = ["rank", "--query", "bread", "--documents", documents, "--model", model_folder, "--ranker", ranker]
    assert main([*base, *option]) == 2
    assert message in capsys.readouterr().err


def test_kept_states_are_read_and_give_the_same_scores(capsys, model_folder, documents, tmp_path) -> None:
    store = str(tmp_path / "store")
    model = ["--documents", documents, "--model", model_folder, "--device", "cpu", "--dtype", "float32"]
    assert main(["index", *model, "--store", store, "--store-dtype", "float32"]) == 0
    size = sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.safetensors"))
    assert size > 0
    results = []
    for more in ([], ["--store", store]):
        capsys.readouterr()
        assert main(["rank", "--query", "why does bread rise", "--json", *model, *more]) == 0
        results.append([(row["id"], row["score"]) for row in json.loads(capsys.readouterr().out)["results"]])
    assert [name for name, _ in results[0]] == [name for name, _ in results[1]]
    assert all(math.isclose(a, b, abs_tol=1e-5) for (_, a), (_, b) in zip(*results, strict=True))
    assert sum(path.stat().st_size for path in (tmp_path / "store").rglob("*.safetensors")) == size


def test_standard_input_text_or_json(run_command, model_folder) -> None:
    base = ["rank", "--query", "bread", "--documents", "-", "--model", model_folder, "--json"]
    text = json.loads(run_command(*base, stdin="yeast\n\nships\r\n").stdout)["results"]
    assert {(row["id"], row["text"]) for row in text} == {("1", "yeast"), ("3", "ships")}
    rows = json.loads(run_command(*base, stdin='{"_id": "x", "text": "yeast"}\n').stdout)["results"]
    assert [row["id"] for row in rows] == ["x"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ('{"text": "a"}\n{"text": ', "d.jsonl", "line 2: not JSON"),
        ('{"text": "a"}\n[1]', "d.jsonl", "line 2: expected a JSON object, found list"),
        ('{"body": "a"}', "d.jsonl", "line 1: no field 'text'; fields: body"),
        ('{"text": 3}', "d.jsonl", "line 1 must be a string, got int"),
        (
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}',
            "d.jsonl",
            "line 2: the id 'a' was already used in line 1",
        ),
        ("\n \n", "d.txt", "has no documents"),
        (b"good\nb\xffad", "d.txt", "line 2: not UTF-8"),
        ("x", "d.docx", "extract the text first"),
        ("x", "d.pdf", "for example with pdftotext"),
        ("x", "d.bin", "expected .txt, .jsonl, .csv"),
        ("_id,body\n1,a", "d.csv", "line 2: no field 'text'; fields: _id, body; set it with --text-column (and"),
        ("id,text\n1,a\n1,b", "d.csv", "line 3: the id '1' was already used in line 2"),
        ("id,text\n1,a,b", "d.csv", "line 2: the number of fields"),
        ("id,text\n", "d.csv", "has no documents"),
        ("x", "d.parquet", "cannot be read as Parquet"),
        (None, "missing.txt", "no such file"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, content, name, message) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_documents(str(path), columns={})
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_files_with_odd_text_are_read_whole(tmp_path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes("\ufeffone\x0cstill one\u2028and still\r\ntwo \x00\n".encode())
    assert [d.text for d in read_documents(str(path))] == ["one\x0cstill one\u2028and still", "two \x00"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--query", "  "], "the query is empty"),
        (["--documents", "nowhere.txt"], "no such file: nowhere.txt"),
        (["--documents", "nowhere"], "no such file: nowhere"),
        (["--top-k", "0"], "--top-k: expected a whole number from 1"),
        (["--model", "."], "is no model folder"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--device", "cuda:77"], "there is no device 'cuda:77'"),
        (["--device", "abacus"], "unknown device"),
        (["--batch-tokens", "0"], "--batch-tokens: expected a whole number from 1"),
        (["--max-length", "1"], "must be smaller than max_length (1)"),
        (["--max-length", "100000"], "the model supports 512 tokens"),
        (["--store", "nowhere"], "there is no store nowhere"),
    ],
)
def test_mistakes_are_one_line_and_status_2(capsys, model_folder, documents, tmp_path, change, message) -> None:
    arguments = {"--query": "bread", "--documents": documents, "--model": model_folder}
    arguments |= {change[0]: change[1]}
    if change == ["--model", "."]:
        (tmp_path / "empty").mkdir()
        arguments["--model"] = str(tmp_path / "empty")
    capsys.readouterr()
    status = main(["rank", *(part for item in arguments.items() for part in item)])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith(("tsarank: error: ", "tsarank rank: error: "))
    assert message in lines[0]


def test_nan_weights_are_one_line_and_status_2(run_command, zoo, documents, tmp_path) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(zoo.folders["llama"], folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    model.save_pretrained(folder)
    done = run_command("rank", "--query", "bread", "--documents", documents, "--model", str(folder))
    assert done.returncode == 2
    assert "the model gave the score nan for pair 0" in done.stderr
    assert done.stdout == ""


def test_empty_documents_warn_and_rank(run_command, model_folder, tmp_path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": ""}\n{"text": "yeast \\ud800"}\n')
    done = run_command("rank", "--query", "bread", "--documents", str(path), "--model", model_folder)
    assert done.returncode == 0
    assert "1 of 2 documents are empty" in done.stderr
    assert "lone surrogates" in done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_a_closed_pipe_is_quiet(model_folder, documents) -> None:
    import subprocess
    import sys

    command = f"{sys.executable} -m modeling_tsarank.cli rank --query b --documents {documents} --model {model_folder}"
    done = subprocess.run(f"{command} | true", shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_help_is_quick_and_complete(run_command) -> None:
    import time

    started = time.perf_counter()
    done = run_command("--help")
    assert time.perf_counter() - started < 5, "the help must not load torch"
    assert "rank" in done.stdout
    for option in ("--query", "--documents", "--top-k", "--json", "--fusion", "--dtype", "--device", "--model"):
        assert option in run_command("rank", "--help").stdout
    assert run_command("rank", "--query", "x").returncode == 2
    assert run_command("--version").stdout.startswith("tsarank ")


def test_tables_and_folders_are_read_as_json_lines_are(tmp_path, caplog) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"_id": "7", "title": "Bread", "text": "Yeast makes\ngas."},
        {"_id": "x y", "title": "", "text": 'Ships, "big" ones.'},
        {"_id": "b", "title": "Bees", "text": "They\tdance."},
    ]
    expected = [(row["_id"], f"{row['title']} {row['text']}".strip(), row["title"]) for row in rows]
    other = [{"key": row["_id"], "heading": row["title"], "body": row["text"]} for row in rows]
    named = {"id": "key", "title": "heading", "text": "body"}
    for given, columns in ((rows, None), (other, named)):
        for name, delimiter in (("d.csv", ","), ("d.tsv", "\t")):
            with (tmp_path / name).open("w", newline="") as file:
                import csv

                writer = csv.DictWriter(file, list(given[0]), delimiter=delimiter)
                writer.writeheader()
                writer.writerows(given)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), tmp_path / "d.parquet")
        (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        for name in ("d.csv", "d.tsv", "d.parquet", "d.jsonl"):
            found = read_documents(str(tmp_path / name), columns=columns)
            assert [(d.id, d.text, d.title) for d in found] == expected, name
    (tmp_path / "d.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InputError, match="no column 'body'; fields: _id, title, text"):
        read_documents(str(tmp_path / "d.jsonl"), columns={"text": "body"})

    folder = tmp_path / "notes"
    (folder / "more").mkdir(parents=True)
    (folder / "b.txt").write_text("one\ntwo\n")
    (folder / "more" / "a.md").write_text("# three\n")
    (folder / "c.pdf").write_text("%PDF")
    assert [(d.id, d.text) for d in read_documents(str(folder))] == [("b.txt", "one\ntwo"), ("more/a.md", "# three")]
    assert "1 of 3 files are ignored" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no documents: no \.txt or \.md file"):
        read_documents(str(tmp_path / "empty"))


def test_first_stage_scores_of_a_file_are_mixed_in(capsys, model_folder, tmp_path) -> None:
    (tmp_path / "d.csv").write_text("id,text,score\na,yeast makes gas,1.5\nb,ships,7\nc,bees,-2\n")
    base = ["rerank", "--query", "bread", "--documents", str(tmp_path / "d.csv"), "--model", model_folder, "--json"]
    base += ["--device", "cpu", "--dtype", "float32"]
    assert main([*base, "--fusion", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(row["id"], row["score"]) for row in rows] == [("b", 1.0), ("a", 0.388889), ("c", 0.0)]
    (tmp_path / "d.csv").write_text("id,text,score\na,yeast makes gas,much\n")
    assert main([*base, "--fusion", "1"]) == 2
    assert "line 2: 'score' must be a finite number, found 'much'" in capsys.readouterr().err
    assert main(base) == 0, "without --fusion a field of that name may be anything"


def test_a_length_that_does_not_fit_changes_the_other_one(capsys, model_folder, documents, monkeypatch) -> None:
    base = ["rank", "--query", "bread", "--documents", documents, "--model", model_folder]
    assert main([*base, "--max-length", "100"]) == 0
    assert "max_query_length is set to 50, to fit the other given length" in capsys.readouterr().err
    assert main([*base, "--max-query-length", "8"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*base, "--max-length", "100", "--max-query-length", "200"]) == 2
    assert "max_query_length (200) must be smaller than max_length (100)" in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(base) == 0
    told = capsys.readouterr().err
    assert f"tsarank: loading {model_folder} …" in told
    assert "tsarank: ranking 3 documents …" in told

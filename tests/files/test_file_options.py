"""Every option that takes a file answers a damaged one with status 2 and one line."""

from __future__ import annotations

import gzip

import pytest

from modeling_tsarank.cli import main


RUN, QRELS = "q Q0 a 1 2.0 t\nq Q0 b 2 1.0 t\n", "q 0 a 1\n"
DAMAGE = {
    "deep JSON": b'{"a": ' + b"[" * 100_000,
    "a long integer": b'{"_id": "a", "text": "x", "n": ' + b"9" * 5000 + b"}\n",
    "NaN": b'{"_id": "a", "text": "x", "permutation": [NaN]}\n',
    "UTF-16": '{"_id": "a", "text": "x"}\n'.encode("utf-16"),
    "no UTF-8": b'{"_id": "a", "text": "\xff"}\n',
    "half an object": b'{"_id": "a"',
    "a lone surrogate as an id": b'{"_id": "\\ud800", "text": "x"}\n',
    "empty": b"",
    "NULs": b"\0" * 50,
    "cut gzip": gzip.compress(b'{"_id": "a", "text": "x"}\n' * 20)[:-6],
}
COMMANDS = {
    "rank --documents": ["rank", "--query", "q", "--documents", "BAD.jsonl", "--model", "missing"],
    "compare RUN": ["compare", "BAD.jsonl", "RUN", "--qrels", "QRELS"],
    "compare --qrels": ["compare", "RUN", "RUN", "--qrels", "BAD.jsonl"],
    "tune-fusion": ["tune-fusion", "RUN", "BAD.jsonl", "--qrels", "QRELS", "--output", "OUT"],
    "calibrate RUN": ["calibrate", "BAD.jsonl", "--qrels", "QRELS", "--output", "OUT"],
    "calibrate --qrels": ["calibrate", "RUN", "--qrels", "BAD.jsonl", "--output", "OUT"],
    "rank --calibration": [
        "rank",
        "--query",
        "q",
        "--documents",
        "-",
        "--calibration",
        "BAD.jsonl",
        "--model",
        "missing",
    ],
    "data scores": ["data", "scores", "BAD.jsonl", "--teacher", "missing", "--output", "OUT"],
    "data scores, Parquet": ["data", "scores", "BAD.parquet", "--teacher", "missing", "--output", "OUT"],
    "publish dataset": ["publish", "dataset", "FOLDER", "a/b", "--license", "mit", "--dry-run"],
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").write_text(RUN)
    (tmp_path / "QRELS").write_text(QRELS)
    (tmp_path / "FOLDER").mkdir()
    return tmp_path


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_file_is_one_line_and_status_2(here, capsys, command, damage):
    arguments = COMMANDS[command]
    bad = next((part for part in arguments if part.startswith("BAD.")), "FOLDER/train.jsonl")
    ending = ".gz" if damage == "cut gzip" and not bad.endswith(".parquet") else ""
    (here / (bad + ending)).write_bytes(DAMAGE[damage])
    status = main([part + ending if part == bad else part for part in arguments])
    said = capsys.readouterr().err.strip()
    tolerated = {"publish dataset": ("NaN", "a lone surrogate as an id")}
    if damage in tolerated.get(command, ()):
        return
    assert status == 2, said
    assert len([line for line in said.splitlines() if "error" in line]) == 1, said
    assert "unforeseen" not in said
    assert "Traceback" not in said
    assert not (here / "OUT").exists()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"a: " + b"9" * 5000, b"\xff", b"a: [1", b"a: 2024-13-45", b""])
def test_a_damaged_configuration_is_refused(tmp_path, content):
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.recipe_files import read_recipe

    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)

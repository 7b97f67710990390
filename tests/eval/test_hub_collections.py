"""Hub datasets, through `datasets` itself on local folders of the same layout, and a Hub that cannot be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_tsarank.eval.hub_collections import load_hub_collection
from modeling_tsarank.eval.types import Document
from modeling_tsarank.ranking_errors import InputError


pytest.importorskip("datasets")


def write_jsonl(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_card(folder: Path, configurations: dict[str, tuple[str, str]]) -> None:
    """The dataset card whose header tells `datasets` the configurations: name to (split, file)."""
    entries = [
        f"- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {path}\n"
        for name, (split, path) in configurations.items()
    ]
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(entries) + "---\n", encoding="utf-8")


def make_texts(folder: Path) -> dict[str, tuple[str, str]]:
    corpus = [{"_id": "4983", "title": "A title", "text": "and text"}, {"_id": "7", "title": "", "text": "bare"}]
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", [{"_id": "1", "title": "", "text": "a question"}])
    return {"corpus": ("corpus", "corpus.jsonl"), "queries": ("queries", "queries.jsonl")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder where a Hub id is a relative path, so that `datasets` reads it without a network."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(collection) -> None:
    assert collection.name == "tiny"
    assert dict(collection.documents) == {"4983": Document("A title", "and text"), "7": Document("", "bare")}
    assert "7" in collection.documents
    assert "8" not in collection.documents
    assert collection.queries == {"1": "a question"}
    assert collection.qrels == {"1": {"4983": 1, "7": 0}}


def test_judgments_in_the_twin_repository_with_numbers_as_ids(here):
    write_card(here / "BeIR" / "tiny", make_texts(here / "BeIR" / "tiny"))
    twin = here / "BeIR" / "tiny-qrels"
    twin.mkdir()
    (twin / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t4983\t1\n1\t7\t0\n")
    write_card(twin, {"default": ("test", "test.tsv")})
    check(load_hub_collection("BeIR/tiny", "tiny", "test", here / "cache"))
    with pytest.raises(InputError, match="'BeIR/tiny-qrels' has no split train; it has test"):
        load_hub_collection("BeIR/tiny", "tiny", "train", here / "cache")


def test_judgments_in_the_default_configuration(here):
    folder = here / "mteb" / "tiny"
    texts = make_texts(folder)
    judgments = [
        {"query-id": "1", "corpus-id": "4983", "score": 1.0},
        {"query-id": "1", "corpus-id": "7", "score": 0.0},
    ]
    write_jsonl(folder / "test.jsonl", judgments)
    write_card(folder, {**texts, "default": ("test", "test.jsonl")})
    check(load_hub_collection("mteb/tiny", "tiny", "test", here / "cache"))


def test_wrong_columns_and_grades_are_refused(here):
    folder = here / "BeIR" / "tiny"
    write_card(folder, make_texts(folder))
    twin = here / "BeIR" / "tiny-qrels"
    twin.mkdir()
    write_card(twin, {"default": ("test", "test.tsv")})
    (twin / "test.tsv").write_text("query\tdoc\tscore\n1\t4983\t1\n")
    with pytest.raises(InputError, match="no column query-id, corpus-id; there are query, doc, score"):
        load_hub_collection("BeIR/tiny", "tiny", "test", here / "cache")
    (twin / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t4983\t0.5\n")
    with pytest.raises(InputError, match=r"the relevance 0\.5 of query '1' is not a whole number"):
        load_hub_collection("BeIR/tiny", "tiny", "test", here / "cache2")


def test_a_hub_that_cannot_be_reached_is_one_clear_error(tmp_path):
    script = (
        "from modeling_tsarank.eval.collections import load_collection\n"
        "from modeling_tsarank.ranking_errors import ResourceError\n"
        "try:\n"
        "    load_collection('BeIR/scifact')\n"
        "except ResourceError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the Hub cannot be reached for the dataset 'BeIR/scifact', configuration 'corpus'")
    assert done.stdout.count("\n") == 1

"""Datasets, the metric and the Space on the loopback Hub, loaded by `datasets` and `evaluate` as they are."""

from __future__ import annotations

import ast
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from loopback_metadata import validate_card

from modeling_tsarank import InputError
from modeling_tsarank.hub_cards.dataset_publishing import prepare_dataset
from modeling_tsarank.hub_cards.space_publishing import prepare_metric, prepare_space


LISTS = [
    {
        "query": f"why {i}",
        "documents": [{"docid": str(d), "title": None, "text": f"text {i} {d}"} for d in range(3)],
        "permutation": [2, 0, 1],
        "query_type": "cropped" if i % 2 else "generated",
        "teacher": "a teacher",
    }
    for i in range(7)
]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Distillation lists as `tsarank data lists` writes them."""
    folder = tmp_path / "lists"
    folder.mkdir()
    for name, rows in (("train", LISTS[:5]), ("validation", LISTS[5:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}-00000-of-00001.parquet")
    (folder / "requests.sqlite3").write_text("a cache")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Pairs in compressed JSON Lines."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows = [{"query": f"q {i}", "document": f"a document {i}"} for i in range(4)]
    with gzip.open(folder / "pairs.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def test_the_card_of_lists(lists: Path) -> None:
    publication = prepare_dataset(lists, "alice/lists", license="cc-by-4.0", languages=["en"])
    data, errors = validate_card(publication.card)
    assert errors == []
    assert data is not None
    assert data["size_categories"] == ["n<1K"]
    splits = {entry["split"] for entry in data["configs"][0]["data_files"]}
    assert splits == {"train", "validation"}
    for text in (
        "7 rows in 2 splits",
        "| `train` | 5 |",
        "| `permutation` |",
        "tsarank train distill",
        "| teachers | not recorded |",
        "| leakage check | not recorded",
    ):
        assert text in publication.card
    assert dict(publication.selection.left_out)["requests.sqlite3"] == "a cache or a log"


def test_licences_beside_the_data_are_published_and_no_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "LICENSES").mkdir()
    for name in ("LICENSE", "LICENSE.md", "NOTICE.txt", "LICENSES/build.sh"):
        (tmp_path / name).write_text("text")
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "positives": ["p"], "negatives": ["n"]}\n')
    paths = set(prepare_dataset(tmp_path, "alice/rows", license="mit").selection.paths)
    assert paths == {"LICENSE", "LICENSE.md", "NOTICE.txt", "README.md", "rows.jsonl"}


def test_the_card_of_pairs(pairs: Path) -> None:
    with pytest.raises(InputError, match="--license"):
        prepare_dataset(pairs, "alice/pairs").check()
    (pairs / "provenance.json").write_text(
        json.dumps({"format": 1, "kind": "queries", "seed": 7, "sources": ["a", "b"]})
    )
    card = prepare_dataset(pairs, "alice/pairs", license="mit", title="Pairs | of <texts>").card
    assert validate_card(card)[1] == []
    for text in (
        "4 rows in 1 split,",
        "tsarank train cpt",
        "| `document` | `string` |",
        "| seed | `7` |",
        "2 entries in",
    ):
        assert text in card
    (pairs / "more.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(InputError, match="other columns"):
        prepare_dataset(pairs, "alice/pairs", license="mit")


def test_the_card_of_recorded_weak_pairs(tmp_path: Path) -> None:
    """The record that `tsarank data weak-pairs` keeps has a card of its own."""
    from modeling_tsarank.trainers.data.cards import render_card
    from modeling_tsarank.trainers.data.provenance import read_provenance

    folder = tmp_path / "weak"
    (folder / "data").mkdir(parents=True)
    table = pyarrow.table({name: ["a"] for name in ("query", "document", "type", "source", "licence")})
    pyarrow.parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Written by hand\n")
    publication = prepare_dataset(folder, "alice/weak")
    assert publication.card.endswith("# Written by hand\n")
    (folder / "README.md").write_text("# no metadata")
    with pytest.raises(InputError, match="has no metadata"):
        prepare_dataset(folder, "alice/weak")
    assert callable(render_card)
    assert callable(read_provenance)


LOAD = """
import json
from datasets import load_dataset
rows = load_dataset("alice/lists", revision="v1")
pairs = load_dataset("alice/pairs", revision="v1", split="train")
print(json.dumps({name: list(split) for name, split in rows.items()} | {"pairs": list(pairs)}))
"""


def test_the_card_of_rows_that_no_training_reads(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("name,grade\nflea,1\n")
    card = prepare_dataset(tmp_path, "alice/rows", license="mit").card
    assert "Rows with the columns below." in card
    assert "tsarank train" not in card
    assert "| `grade` | `string` |" in card


def test_datasets_load_from_the_hub(lists: Path, pairs: Path, publish: Any, in_process: Any, hub: Any) -> None:
    publish("dataset", lists, "alice/lists", "--license", "cc-by-4.0")
    publish("dataset", pairs, "alice/pairs", "--license", "mit")
    found = json.loads(in_process(LOAD, cache="reader").splitlines()[-1])
    assert found["train"] == LISTS[:5]
    assert found["validation"] == LISTS[5:]
    assert found["pairs"][2] == {"query": "q 2", "document": "a document 2"}
    assert hub.store.repo("dataset", "alice/lists")["private"] is True
    stranger = in_process(LOAD, cache="stranger", token="hf_loopback_stranger", check=False)
    assert stranger.returncode != 0
    assert "DatasetNotFoundError" in stranger.stderr


EVALUATE = """
import evaluate, json
metric = evaluate.load("alice/ndcg", revision="v1")
run, qrels = {"q1": {"d1": 0.2, "d2": 0.9}}, {"q1": {"d1": 1}, "q2": {"d3": 1}}
print(json.dumps(metric.compute(predictions=run, references=qrels, k=[1, 2])))
"""


def test_the_metric_loads_from_the_hub(publish: Any, in_process: Any, hub: Any) -> None:
    refused = publish("metric", "alice/ndcg-metric", check=False)
    assert refused.returncode == 2
    assert "module" in refused.stderr
    publish("metric", "alice/ndcg")
    assert hub.store.repo("space", "alice/ndcg")["sdk"] == "static"
    found = json.loads(in_process(EVALUATE, cache="reader").splitlines()[-1])
    assert found == {"ndcg@1": 0.0, "ndcg@2": pytest.approx(0.6309297535714575 / 2)}
    card = prepare_metric("alice/ndcg").card
    assert validate_card(card)[1] == []
    assert 'evaluate.load("alice/ndcg", revision="v1")' in card


def test_the_space_has_everything_its_start_file_names(trained: Any, tmp_path: Path) -> None:
    publication = prepare_space("alice/page", bake=trained("tsarank"))
    data, errors = validate_card(publication.card)
    assert errors == []
    assert data is not None
    paths = publication.selection.paths
    assert data["app_file"] in paths
    assert data["sdk"] == "gradio"
    assert {"app.py", "requirements.txt", "modeling_tsarank/cli/__init__.py", "modeling_tsarank/eval/bm25.py"} <= paths
    assert {"modeling_tsarank/hub_cards/app_endpoints.py", "model/config.json", "model/model.safetensors"} <= paths
    assert not any(path.startswith("modeling_tsarank/tests") or "training_args" in path for path in paths)
    files = {file.path: file for file in publication.selection.files}
    ast.parse(files["start.py"].read())
    assert 'os.environ.setdefault("TSARANK_MODEL", str(here / "model"))' in files["start.py"].read().decode()
    requirements = files["requirements.txt"].read().decode()
    assert "torch==2" in requirements
    assert "+cpu" not in requirements
    assert not any(name in requirements for name in ("gradio==", "pytest", "trl", "tsarank=="))
    named = prepare_space("alice/page", model="alice/ranker")
    assert yaml.safe_load(named.card.split("---")[1])["models"] == ["alice/ranker"]
    with pytest.raises(InputError, match="not both"):
        prepare_space("alice/page", model="a/b", bake=trained("tsarank"))
    with pytest.raises(InputError, match="--app"):
        prepare_space("alice/page", app=tmp_path / "absent.py")


@pytest.mark.slow
def test_the_space_runs_out_of_its_own_files(trained: Any, publish: Any, in_process: Any, hub: Any) -> None:
    publish("space", "alice/page", "--bake", trained("tsarank"))
    assert hub.store.repo("space", "alice/page")["sdk"] == "gradio"
    code = """
import os, sys
from huggingface_hub import snapshot_download
folder = snapshot_download("alice/page", repo_type="space", revision="v1")
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path.insert(0, folder)
os.environ["HF_HUB_OFFLINE"] = "1"
start = folder + "/start.py"
# Everything that starting does but the page itself.
code = open(start).read().replace('run_name="__main__"', 'run_name="app"')
exec(compile(code, start, "exec"), {"__file__": start})
import modeling_tsarank, modeling_tsarank.eval.bm25
assert modeling_tsarank.__file__.startswith(folder), modeling_tsarank.__file__
assert modeling_tsarank.eval.bm25.__file__.startswith(folder)
from modeling_tsarank import load_ranker
print(load_ranker(os.environ["TSARANK_MODEL"]).predict([("ship", "a harbour")]).tolist())
"""
    from modeling_tsarank import load_ranker

    expected = load_ranker(str(trained("tsarank"))).predict([("ship", "a harbour")]).tolist()
    assert json.loads(in_process(code, cache="reader").splitlines()[-1]) == pytest.approx(expected)


def test_a_dry_run_uploads_nothing_and_shows_everything(lists: Path, publish: Any, hub: Any) -> None:
    (lists / ".env").write_text("HF_TOKEN=x")
    done = publish("dataset", lists, "alice/lists", "--license", "mit", "--dry-run", token=None)
    assert hub.requests == []
    for text in (
        "dataset alice/lists (private, one commit, tag v1)",
        "train-00000-of-00001.parquet",
        "in 3 files",
        ".env  (looks like a secret)",
        "# lists",
    ):
        assert text in done.stdout


def test_a_secret_stops_the_publication(lists: Path, publish: Any, hub: Any) -> None:
    secret = "hf_" + "aB3" * 12
    (lists / "notes.md").write_text(f"use {secret}\n")
    done = publish("dataset", lists, "alice/lists", "--license", "mit", check=False)
    assert done.returncode == 2
    assert "notes.md (line 1): a Hugging Face token" in done.stderr
    assert secret not in done.stderr
    assert hub.requests == []

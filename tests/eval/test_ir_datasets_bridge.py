"""Collections of ir_datasets, through ir_datasets itself on a dataset registered from local files."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.types import Document
from modeling_tsarank.ranking_errors import InputError


ir_datasets = pytest.importorskip("ir_datasets")


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A dataset under the name `tsarank-demo/test`, and its documents alone under `tsarank-demo`."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    (tmp_path / "docs.tsv").write_text("d1\tFlour and water.\nd2\tIce, slowly flowing.\n")
    (tmp_path / "queries.tsv").write_text("q1\thow to bake\n")
    (tmp_path / "qrels.txt").write_text("q1 0 d1 2\nq1 0 d2 0\n")
    docs = str(tmp_path / "docs.tsv")
    whole = ir_datasets.create_dataset(
        docs_tsv=docs, queries_tsv=str(tmp_path / "queries.tsv"), qrels_trec=str(tmp_path / "qrels.txt")
    )
    entries = ir_datasets.registry._registered
    monkeypatch.setattr(ir_datasets.registry, "_registered", dict(entries))
    ir_datasets.registry.register("tsarank-demo/test", whole)
    ir_datasets.registry.register("tsarank-demo", ir_datasets.create_dataset(docs_tsv=docs))


@pytest.mark.parametrize("name", ["tsarank-demo/test", "tsarank-demo"])
def test_a_registered_dataset_by_its_name_or_by_name_and_split(registered, name):
    collection = load_collection(f"ir_datasets:{name}", split="test")
    assert collection.name == name
    assert dict(collection.documents) == {
        "d1": Document("", "Flour and water."),
        "d2": Document("", "Ice, slowly flowing."),
    }
    assert "d1" in collection.documents
    with pytest.raises(KeyError):
        collection.documents["d3"]
    assert collection.queries == {"q1": "how to bake"}
    assert collection.qrels == {"q1": {"d1": 2, "d2": 0}}


def test_names_that_ir_datasets_does_not_know_or_that_lack_a_part(registered):
    with pytest.raises(InputError, match="knows no dataset 'no-such-dataset'"):
        load_collection("ir_datasets:no-such-dataset")
    with pytest.raises(InputError, match="'tsarank-demo' has no queries and no qrels"):
        load_collection("ir_datasets:tsarank-demo", split="train")


def test_titles_are_kept_apart_where_a_dataset_has_them():
    from ir_datasets.datasets.beir import BeirTitleDoc
    from ir_datasets.formats import GenericDoc

    from modeling_tsarank.eval.ir_datasets_bridge import _document

    assert _document(BeirTitleDoc("d", "body", "A title")) == Document("A title", "body")
    assert _document(GenericDoc("d", "body")) == Document("", "body")


@pytest.mark.parametrize("grades", [[0.9], [1, 2]])
def test_grades_that_are_not_whole_or_contradict_each_other_are_refused(registered, monkeypatch, grades):
    whole = ir_datasets.load("tsarank-demo/test")
    judgments = [SimpleNamespace(query_id="q1", doc_id="d1", relevance=grade) for grade in grades]
    monkeypatch.setattr(whole, "qrels_iter", lambda: iter(judgments), raising=False)
    with pytest.raises(InputError, match="document 'd1' has the relevance"):
        load_collection("ir_datasets:tsarank-demo/test")

"""Every way in takes the same texts, refuses the same mistakes, and counts what it cut."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.modeling_twolar import LogitOptions, TemplateEncoder, TwolarModel
from modeling_tsarank.ranking_errors import InputError


TASKS = [
    {"query": "who guides a ship", "documents": ["The pilot climbs aboard.", "Bread rises.", {"text": "Bees dance."}]},
    {"query": "why does bread rise", "documents": ["Yeast makes gas."]},
    {"query": "how do bees talk", "documents": ["They dance.", "Ships need pilots."]},
]
LONG = " ".join(["The harbour pilot climbs aboard every ship."] * 60)


@pytest.fixture(scope="module")
def model(zoo) -> Any:
    return TSARankModel.from_backbone(str(zoo.folders["llama"]))


@pytest.fixture(scope="module")
def ranking(model, tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("saved") / "ranker"
    model.save_pretrained(folder)
    return pipeline("text-ranking", model=str(folder), trust_remote_code=True, device="cpu")


class _Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(TASKS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return TASKS[range(len(TASKS))[index]]


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 8, "num_workers": 2}, {"truncation": True}])
def test_the_pipeline_gives_what_one_by_one_gives(ranking: Any, options: dict[str, Any]) -> None:
    datasets = pytest.importorskip("datasets")
    expected = [ranking(task) for task in TASKS]
    assert expected == [ranking.model.rank(**task, return_documents=True) for task in TASKS]
    table = datasets.Dataset.from_list(
        [{"query": task["query"], "documents": [str(text) for text in task["documents"]]} for task in TASKS]
    )
    nested = datasets.Dataset.from_list([{"task": row} for row in table])
    for inputs in (TASKS, tuple(TASKS), (task for task in TASKS), iter(TASKS), _Rows()):
        assert list(ranking(inputs, **options)) == expected
    for inputs in (table, KeyDataset(nested, "task"), table.to_iterable_dataset()):
        assert list(ranking(inputs, **options)) == [ranking(row) for row in table]
    assert list(ranking([], **options)) == []
    assert list(ranking((task for task in ()), **options)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 64}, "max_length belongs to the model"),
        ({"truncation": False}, "is not supported: the model always truncates"),
        ({"truncation": "sideways"}, "is not supported: the model always truncates"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"num_workers": -1}, "num_workers must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"padding": True}, "unknown argument padding"),
    ],
)
def test_pipeline_options_without_a_meaning_are_refused(ranking: Any, options: dict[str, Any], message: str) -> None:
    # The pipeline runs the checkpoint's own copy of the code, whose errors are ValueErrors as well.
    with pytest.raises(ValueError, match=message):
        list(ranking(TASKS, **options))


NO_LISTS = ["yeast", b"yeast", {"a": "yeast"}, {"yeast"}, None, 3]


@pytest.mark.parametrize("documents", NO_LISTS, ids=repr)
def test_a_single_text_is_no_list_of_documents(model: Any, ranking: Any, documents: Any) -> None:
    """Its letters, or the keys of a mapping, would be ranked."""
    from modeling_tsarank.hub_cards.app_inputs import named_documents
    from modeling_tsarank.hub_cards.app_limits import Limits

    ways = [
        lambda: model.rank("q", documents),
        lambda: model.index(documents, MemoryStore()),
        lambda: ranking({"query": "q", "documents": documents}),
        lambda: list(ranking([{"query": "q", "documents": documents}], batch_size=2)),
        lambda: named_documents(documents, Limits()),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="documents must be a list of texts, got"):
            way()


def test_a_table_is_no_list_of_documents(model: Any) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="got a single DataFrame"):
        model.rank("q", pandas.DataFrame({"text": ["yeast"]}))
    expected = model.rank("q", ["yeast", "bees"])
    assert (
        model.rank("q", pandas.Series(["yeast", "bees"])) == model.rank("q", np.array(["yeast", "bees"])) == expected
    )


@pytest.mark.parametrize("pair", ["ab", {"query": "q", "text": "d"}, ("q",), ("q", ["d", "e"]), ("", "d"), (1, "d")])
def test_what_is_no_pair_of_texts_is_refused(model: Any, pair: Any) -> None:
    from modeling_tsarank.crossencoder_tsarank import CrossEncoderRanker

    glue = CrossEncoderRanker(model)
    for way in (
        lambda: model.predict([pair]),
        lambda: glue(glue.preprocess([pair])),
        lambda: glue.train()(glue.preprocess([pair])),
    ):
        with pytest.raises(InputError):
            way()
    glue.eval()


@pytest.mark.parametrize("document", [["d"], None, 3, {"title": "no text"}])
def test_explanations_take_the_same_documents(model: Any, zoo: Any, document: Any) -> None:
    twolar = TwolarModel.from_backbone(str(zoo.folders["t5"]))
    for way in (model.token_log_probs, twolar.answer_scores):
        with pytest.raises(InputError):
            way("q", document)
        with pytest.raises(InputError, match="empty"):
            way(" ", "d")


def test_lengths_of_a_cross_encoder_may_be_numpy_integers(zoo: Any) -> None:
    from modeling_tsarank.crossencoder_tsarank import CrossEncoderRanker

    glue = CrossEncoderRanker(TSARankModel.from_backbone(str(zoo.folders["llama"])))
    glue.max_seq_length = np.int64(100)
    assert type(glue.max_seq_length) is int
    for wrong in (True, 64.5, "64", 1):
        with pytest.raises(InputError, match="max_length must be a whole number"):
            glue.max_seq_length = wrong
    for k in (2, np.int64(2)):
        assert len(glue.ranker.rank("q", ["a", "b", "c"], top_k=k, batch_tokens=np.int32(64))) == 2


# ---- documents that are cut --------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["separate_space", "joined"])
def test_cut_documents_are_counted_and_warned_of_once_a_call(zoo: Any, caplog: Any, style: str) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), prompt_style=style)
    with caplog.at_level(logging.WARNING):
        model.predict([("a", LONG), ("b", LONG), ("a", f"Also {LONG}"), ("a", "short")])
    assert model.last_stats["cut_documents"] == 2
    assert [record.getMessage() for record in caplog.records if "were truncated" in record.getMessage()] == [
        "2 of 3 documents were truncated: prompt, query and document have at most 512 tokens together (max_length)"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model.rank("a", ["short", "also short"])
    assert model.last_stats["cut_documents"] == 0
    assert not caplog.records


@pytest.mark.parametrize("style", ["separate_space", "joined", "template"])
def test_cut_queries_are_counted_and_warned_of_in_every_call(zoo: Any, caplog: Any, style: str) -> None:
    if style == "template":
        model = TwolarModel.from_backbone(str(zoo.folders["t5"]), max_query_length=8)
    else:
        model = TSARankModel.from_backbone(str(zoo.folders["llama"]), prompt_style=style, max_query_length=8)
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model.predict([(LONG, "bread"), (LONG, "ships"), ("a", "bread"), (f"Also {LONG}", "bread")])
        assert model.last_stats["cut_queries"] == 2
        assert [record.getMessage() for record in caplog.records] == [
            "2 of 3 queries were truncated: each has at most 8 tokens (max_query_length)"
        ]
    caplog.clear()
    model.rank("a", ["bread"])
    assert model.last_stats["cut_queries"] == 0
    assert not caplog.records


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_a_template_counts_cut_documents_too(zoo: Any, name: str) -> None:
    for template in ("Query: {query} Document: {document} Relevant:", "Document: {document} Query: {query} Relevant:"):
        encoder = TemplateEncoder(AutoTokenizer.from_pretrained(zoo.folders[name]), LogitOptions(template=template))
        assert [bool(pair.cut) for pair in encoder.pairs([("a", LONG), ("a", "short")])] == [True, False]


def test_index_counts_cut_documents(model: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        model.index([LONG, "short"], MemoryStore())
    model.document_store = None
    assert model.last_stats["cut_documents"] == 1
    assert "1 of 2 documents were truncated" in caplog.text


def test_commands_tell_how_many_documents_were_cut(zoo: Any, tmp_path: Any, run_command: Any) -> None:
    documents = tmp_path / "documents.txt"
    documents.write_text(f"{LONG}\nshort\n", encoding="utf-8")
    options = ["--model", str(zoo.folders["llama"]), "--dtype", "float32"]
    done = run_command("rank", "--query", "a", "--documents", str(documents), "--json", *options)
    assert json.loads(done.stdout).items() >= {"cut_documents": 1, "cut_queries": 0}.items()
    assert "1 of 2 documents were truncated" in done.stderr
    done = run_command("index", "--documents", str(documents), "--store", str(tmp_path / "store"), *options)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("truncated") == 1
    assert "1 are truncated to the model's length" in done.stderr
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": "a", "document": text} for text in (LONG, "short", LONG)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for _ in range(2):  # counted again where nothing is left to do
        done = run_command("score", "--pairs", str(pairs), "--output", str(tmp_path / "scores"), *options)
        assert "1 documents were truncated" in done.stdout, done.stderr

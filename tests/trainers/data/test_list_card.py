"""The card of distillation lists: valid metadata, the recorded counts, no secret."""

from __future__ import annotations

import copy

import pytest
from huggingface_hub import DatasetCard

from modeling_tsarank.rankers.chat import ChatEndpoint, ChatSettings
from modeling_tsarank.rankers.listwise import Ordering
from modeling_tsarank.rankers.listwise_answers import read_answer
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.cards import render_card
from modeling_tsarank.trainers.data.list_building import ListTask, SourceQuery
from modeling_tsarank.trainers.data.list_ordering import summarize
from modeling_tsarank.trainers.data.teacher_cache import RequestCache


KEY = "sk-card-secret-42"


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setenv("CARD_KEY", KEY)
    settings = ChatSettings("https://host/v1", "big | model", key_variable="CARD_KEY")
    cache = RequestCache(tmp_path / "c.jsonl")
    with ChatEndpoint(settings, cache) as teacher:
        description, usage = teacher.describe(), teacher.usage.as_dict()
    tasks = [ListTask(SourceQuery(f"q{n}", "x", "cropped"), "bm25", ("a", "b")) for n in range(3)]
    readings = [read_answer(text, 2) for text in ("[2] > [1]", "[1]")]
    orderings = [
        Ordering("clean", [1, 0], ["[2] > [1]"], reading=readings[:1]),
        Ordering("repaired", [0, 1], ["[1]"], reading=readings[1:]),
        Ordering("failed", None, ["no"], "names none"),
    ]
    return {
        "kind": "distillation_lists",
        "title": "Lists of\nbread",
        "list_size": 2,
        "teacher": description,
        "first_stages": [
            {"name": "bm25", "stage": "bm25"},
            {"name": "r", "stage": "rerank:m", "base": "bm25", "rerank_depth": 9},
        ],
        "corpus": {"name": "corpus.jsonl", "documents": 1234},
        "splits": {"train": 2, "validation": 0, "failed": 1},
        "not_asked_by_limit": 0,
        "usage": usage,
        **summarize(tasks, orderings, short=1),
    }


def test_the_card_says_what_was_recorded(record):
    assert DatasetCard(render_card(record, license_id="cc-by-4.0")).data.license == "cc-by-4.0"
    card = DatasetCard(render_card(record))
    data = card.data.to_dict()
    assert data["pretty_name"] == "Lists of bread"
    assert data["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    text = card.text
    for part in (
        "# Lists of bread",
        "1,234 documents",
        "over the first 9 of bm25",
        "big \\| model",
        "https://host/v1",
    ):
        assert part in text
    assert "Of 4 queries (failure rate 33.3 %, repair rate 50.0 %)" in text
    assert "1 of 2 answers in text kept the order" in text
    assert KEY not in card.content
    assert "CARD_KEY" not in card.content


def test_a_record_with_a_part_missing(record):
    for name in ("title", "splits", "teacher", "outcomes", "corpus"):
        broken = copy.deepcopy(record)
        del broken[name]
        with pytest.raises(InputError, match="is incomplete"):
            render_card(broken)

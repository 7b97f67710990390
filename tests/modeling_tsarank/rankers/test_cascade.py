"""Cascades against their definition, and lists given in other orders."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.cli import main
from modeling_tsarank.rankers.arguments import cascade_stages
from modeling_tsarank.rankers.cascade import ORDERS, Cascade, Reordered, parse_cascade
from modeling_tsarank.ranking_errors import InputError


class ByLength:
    """A scorer of pairs: longer documents first."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def predict(self, pairs: list[tuple[str, str]]) -> list[float]:
        self.asked.append([document for _, document in pairs])
        return [float(len(document)) for _, document in pairs]


class Backwards:
    """A ranker of lists: the last document first."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.last_stats: dict[str, int] = {}

    def rank(self, query: str, documents: Sequence[str]) -> list[dict[str, Any]]:
        self.asked.append(list(documents))
        self.last_stats = {"calls": 3, "unusable": 1}
        return [{"corpus_id": i, "score": float(i)} for i in reversed(range(len(documents)))]


def order_of(rows: list[dict[str, Any]]) -> list[int]:
    assert [row["score"] for row in rows] == [float(n) for n in range(len(rows), 0, -1)]
    return [row["corpus_id"] for row in rows]


def test_each_stage_orders_the_head_of_the_one_before() -> None:
    documents = ["a", "bbbb", "cc", "ddd", "eeeee", "f"]
    long, back = ByLength(), Backwards()
    cascade = Cascade([(5, long), (3, back), (2, back)])
    # By length: e b d c a, then f, which no stage sees; the first three turned; the first two turned.
    assert order_of(cascade.rank("q", documents)) == [1, 3, 4, 2, 0, 5]
    assert long.asked == [documents[:5]]
    assert back.asked == [["eeeee", "bbbb", "ddd"], ["ddd", "bbbb"]]
    assert cascade.last_stats == {"calls": 6, "unusable": 2}
    assert cascade.rank("q", iter(documents), top_k=1, return_documents=True) == [
        {"corpus_id": 1, "score": 6.0, "text": "bbbb"}
    ]
    assert cascade.rank("q", []) == []
    assert order_of(cascade.rank("q", ["only"])) == [0]
    assert order_of(Cascade([(9, ByLength())]).rank("q", ["aa", "bb", "c"])) == [0, 1, 2], "a tie keeps the order"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100", "DEPTH:WHAT"),
        ("x:int8", "DEPTH:WHAT"),
        ("100:", "DEPTH:WHAT"),
        ("", "DEPTH:WHAT"),
        ("100:a,,30:b", "DEPTH:WHAT"),
        ("0:int8", "at least one document"),
        ("30:int8,100:float32", "must not grow"),
        ("99999999999:int8", "DEPTH:WHAT"),
    ],
)
def test_what_is_no_cascade(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_cascade(text)


def test_a_cascade_in_words() -> None:
    assert parse_cascade("100:int8, 30:ce:some/model") == [(100, "int8"), (30, "ce:some/model")]
    with pytest.raises(InputError, match="at least one document"):
        Cascade([])


def test_other_orders() -> None:
    documents = [f"document {i}" for i in range(30)]
    seen = {}
    for order in ORDERS:
        inner = Backwards()
        rows = Reordered(inner, order).rank("q", documents)
        (given,) = inner.asked
        assert [documents[row["corpus_id"]] for row in rows] == given[::-1]
        assert sorted(given) == sorted(documents)
        seen[order] = tuple(given)
        again = Backwards()
        Reordered(again, order).rank("q", documents)
        assert again.asked == [given], "the same in every run"
    assert seen["given"] == tuple(documents)
    assert seen["reversed"] == tuple(documents[::-1])
    assert len(set(seen.values())) == len(ORDERS)
    assert Reordered(Backwards(), "given").last_stats == {}


def test_a_stage_of_sentence_transformers_has_its_own_number_formats(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"text": "bees"}\n{"text": "bread"}\n')
    stages = ["--cascade", f"2:ce:{tmp_path},1:float32", "--dtype", "int8"]
    assert main(["rank", "--query", "bees", "--documents", str(documents), *stages]) == 2
    assert "support float32 (auto) and bfloat16, not int8" in capsys.readouterr().err


def test_a_stage_has_only_the_options_of_its_own_model() -> None:
    given = {"cascade": "9:float32,5:ce:a/b,3:http://a/b", "model": "c/d", "revision": "v1", "api_model": "m"}
    shared = {"ranker": "pointwise", "ranker_options": [], "dtype": "auto"}
    stages = cascade_stages(argparse.Namespace(**given, **shared))
    assert [(stage.model, stage.revision, stage.api_model) for _, stage in stages] == [
        ("c/d", "v1", ""),
        ("ce:a/b", None, ""),
        ("http://a/b", None, "m"),
    ]
    with pytest.raises(InputError, match="--api-model has no effect on a cascade without a service"):
        cascade_stages(argparse.Namespace(**{**given, "cascade": "9:float32,5:ce:a/b"}, **shared))

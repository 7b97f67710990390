"""Documents scored by their passages."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, pipeline

from modeling_tsarank import InputError, TSARankModel, load_ranker
from modeling_tsarank.scores.passages import PassageRanker, split_passages
from modeling_tsarank.scores.ranking import rank


QUERY = "why does bread rise"
FILLER = "The harbour pilot climbs aboard every ship before it enters the channel. " * 12
LONG = FILLER + "Bread dough rises because yeast turns sugar into gas. " + FILLER


@pytest.fixture(scope="module")
def model(zoo: Any) -> Any:
    return TSARankModel.from_backbone(str(zoo.folders["llama"]), max_length=120, max_query_length=40)


@pytest.fixture(scope="module")
def tokenizer(zoo: Any) -> Any:
    return AutoTokenizer.from_pretrained(zoo.folders["gpt2"])


def plain_scores(model: Any, text: str, length: int, stride: int) -> np.ndarray:
    parts = split_passages(text, model.tokenizer, length, stride)
    return np.array([float(model.predict((QUERY, text[part.start : part.end]))) for part in parts])


@pytest.mark.parametrize("passages", ["first", "max", "mean", "top-2"])
def test_scores_are_made_of_the_passages_own(model: Any, passages: str) -> None:
    rows = PassageRanker(model, passages, length=50, stride=20).rank(QUERY, ["Bees dance.", LONG])
    found = {row["corpus_id"]: row for row in rows}
    scores = plain_scores(model, LONG, 50, 20)
    expected = {
        "first": scores[0],
        "max": scores.max(),
        "mean": scores.mean(),
        "top-2": np.sort(scores)[-2:].mean(),
    }[passages]
    assert found[1]["score"] == pytest.approx(expected, abs=1e-5)
    assert found[0]["score"] == pytest.approx(float(model.predict((QUERY, "Bees dance."))), abs=1e-5)
    assert found[0]["passage"] == {"start": 0, "end": 11, "text": "Bees dance."}
    passage = found[1]["passage"]
    assert LONG[passage["start"] : passage["end"]] == passage["text"]
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)


def test_the_best_passage_is_the_one_with_the_best_score(model: Any) -> None:
    row = PassageRanker(model, "max", length=50, stride=20).rank(QUERY, [LONG])[0]
    assert float(model.predict((QUERY, row["passage"]["text"]))) == pytest.approx(row["score"], abs=1e-5)


def test_a_title_goes_before_every_passage(model: Any) -> None:
    row = PassageRanker(model, "max", length=50, stride=50).rank(QUERY, [{"title": "Baking", "text": LONG}])[0]
    alone = float(model.predict((QUERY, f"Baking {row['passage']['text']}")))
    assert row["score"] == pytest.approx(alone, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.integers(1, 20), st.integers(1, 20))
def test_passages_cover_the_text(tokenizer: Any, text: str, length: int, stride: int) -> None:
    parts = split_passages(text, tokenizer, length, min(stride, length))
    assert parts[0].start == 0
    assert parts[-1].end == len(text)
    for before, after in itertools.pairwise(parts):
        assert before.start <= after.start
        assert before.end <= after.end
        assert not text[before.end : after.start].strip(), "nothing but white space is left out"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passages": "median"}, "unknown way to score passages 'median'"),
        ({"passages": 1}, "unknown way to score passages 1"),
        ({"length": 10, "stride": 11}, "must not be larger"),
        ({"length": 0}, "at least 1"),
    ],
)
def test_bad_options(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PassageRanker(model, **options)


def test_every_way_to_rank_takes_passages(model: Any, tmp_path: Path) -> None:
    """`rank`, `predict`, the pipeline and CrossEncoder give what `PassageRanker` gives."""
    documents, split = ["Bees dance.", {"title": "Baking", "text": LONG}], {"passage_length": 50, "passage_stride": 20}
    expected = PassageRanker(model, "top-2", 50, 20).rank(QUERY, documents)
    assert model.rank(QUERY, documents, passages="top-2", **split) == expected
    assert model.rank(QUERY, documents, passages="top-2", batch_size=1, num_workers=0, **split) == expected
    scores = [row["score"] for row in sorted(expected, key=lambda row: row["corpus_id"])]
    pairs = [(QUERY, document) for document in documents]
    assert model.predict(pairs, passages="top-2", **split).tolist() == pytest.approx(scores, abs=1e-6)
    assert model.predict(pairs[1], passages="top-2", **split) == pytest.approx(scores[1], abs=1e-6)

    model.save_pretrained(tmp_path / "saved")
    ranker = pipeline("text-ranking", model=str(tmp_path / "saved"), trust_remote_code=True, dtype="float32")
    rows = ranker({"query": QUERY, "documents": documents}, passages="top-2", **split)
    assert [(row["corpus_id"], row["passage"], row["text"]) for row in rows] == [
        (row["corpus_id"], row["passage"], documents[row["corpus_id"]]) for row in expected
    ]
    encoder = CrossEncoder(str(tmp_path / "saved"), trust_remote_code=True)
    given = [(QUERY, documents[0]), (QUERY, LONG)]
    found = encoder.predict(given, passages="max", **split)
    np.testing.assert_allclose(found, model.predict(given, passages="max", **split), atol=1e-5)
    assert abs(found[1] - encoder.predict(given)[1]) > 1e-4


def test_passages_need_a_model_that_scores_pairs_and_a_way_to_score_them(model: Any, zoo: Any) -> None:
    with pytest.raises(InputError, match="need passages, such as max"):
        model.rank(QUERY, [LONG], passage_length=20)
    lists = load_ranker(str(zoo.folders["llama"]), ranker="pairwise", dtype="float32")
    with pytest.raises(InputError, match="for ranking models that score pairs"):
        rank(lists, QUERY, [LONG], passages="max")
    with pytest.raises(InputError, match="pair 1 must be"):
        model.predict([(QUERY, LONG), QUERY], passages="max")

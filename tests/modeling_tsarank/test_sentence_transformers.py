"""A saved ranker as a CrossEncoder of the real sentence-transformers: equal scores, refusal without trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_tsarank import TSARankModel, TwolarModel
from modeling_tsarank.trainers.trainable import disable_dropout


CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder

# Batches are made up differently, and what stands beside a text in a padded batch moves its last bits.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
FAMILIES = [("llama", TSARankModel), ("qwen3", TSARankModel), ("llama", TwolarModel), ("t5", TwolarModel)]


@pytest.fixture(scope="session", params=FAMILIES, ids=lambda pair: f"{pair[0]}-{pair[1].__name__}")
def saved(request: pytest.FixtureRequest, zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A ranker and the folder it was saved to."""
    name, cls = request.param
    model = cls.from_backbone(str(zoo.folders[name]))
    folder = tmp_path_factory.mktemp("saved") / f"{name}-{cls.__name__}"
    model.save_pretrained(folder)
    return model, folder


def test_scores_are_those_of_predict(saved: Any, pairs: Any) -> None:
    model, folder = saved
    encoder = CrossEncoder(str(folder), trust_remote_code=True, device="cpu")
    expected = model.predict(pairs)
    assert np.ptp(expected) > 0.1, "scores this close would hide a wrong order"
    for batch_size in (32, 3):
        scores = encoder.predict(pairs, batch_size=batch_size)
        np.testing.assert_allclose(scores, expected, **CLOSE)
    query, documents = pairs[0][0], [document for _, document in pairs[:4]]
    ranked, own = encoder.rank(query, documents), model.rank(query, documents)
    assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in own]
    assert encoder.predict(pairs[0]).shape == ()


def test_without_trust_it_is_refused(saved: Any) -> None:
    _, folder = saved
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        CrossEncoder(str(folder), device="cpu")


def test_what_sentence_transformers_saves_again_gives_the_same_scores(saved: Any, pairs: Any, tmp_path: Path) -> None:
    _, folder = saved
    encoder = CrossEncoder(str(folder), trust_remote_code=True, device="cpu")
    encoder.save(str(tmp_path / "again"), create_model_card=False)
    assert json.loads((tmp_path / "again" / "modules.json").read_text())[0]["type"].startswith("crossencoder_tsarank.")
    again = CrossEncoder(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(again.predict(pairs), encoder.predict(pairs))


def test_gradients_reach_the_backbone_in_training(saved: Any, pairs: Any) -> None:
    model, folder = saved
    encoder = CrossEncoder(str(folder), trust_remote_code=True, device="cpu")
    encoder.train()
    disable_dropout(encoder)
    scores = encoder(encoder.preprocess(pairs[:4]))["scores"]
    np.testing.assert_allclose(scores.detach()[:, 0].numpy(), model.predict(pairs[:4]), **CLOSE)
    scores.sum().backward()
    gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def test_options_of_cross_encoder_that_have_a_meaning_here(saved: Any, pairs: Any) -> None:
    model, folder = saved
    encoder = CrossEncoder(str(folder), trust_remote_code=True, device="cpu", max_length=64)
    assert encoder.max_seq_length == 64
    long = [(pairs[0][0], "yeast " * 300)]
    shorter = type(model).from_pretrained(folder)
    shorter.set_options(max_length=64, max_query_length=32)
    np.testing.assert_allclose(encoder.predict(long), shorter.predict(long), **CLOSE)
    assert abs(float(encoder.predict(long)[0] - model.predict(long)[0])) > 1e-3
    half = CrossEncoder(str(folder), trust_remote_code=True, device="cpu", model_kwargs={"dtype": torch.float64})
    assert half.dtype == torch.float64


def test_options_without_a_meaning_are_refused(saved: Any, pairs: Any) -> None:
    _, folder = saved
    with pytest.raises(ValueError, match="num_labels must be 1"):
        CrossEncoder(str(folder), trust_remote_code=True, device="cpu", num_labels=3)
    encoder = CrossEncoder(str(folder), trust_remote_code=True, device="cpu")
    with pytest.raises(ValueError, match="own prompt"):
        encoder.predict(pairs, prompt="Judge this: ")


@pytest.mark.slow
def test_langchain_wraps_it(saved: Any, pairs: Any) -> None:
    """LangChain's own class, where `langchain-community` is installed; it takes trust in `model_kwargs`."""
    cross_encoders = pytest.importorskip("langchain_community.cross_encoders")
    model, folder = saved
    options = {"trust_remote_code": True, "device": "cpu"}
    wrapped = cross_encoders.HuggingFaceCrossEncoder(model_name=str(folder), model_kwargs=options)
    np.testing.assert_allclose(wrapped.score(pairs), model.predict(pairs), **CLOSE)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        cross_encoders.HuggingFaceCrossEncoder(model_name=str(folder))

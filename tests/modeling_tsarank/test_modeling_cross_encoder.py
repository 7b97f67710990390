"""Cross-encoders: scores of sentence-transformers' own class and of transformers' own loop, on tiny random models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_classifiers import DECODERS, ENCODERS, save_classifier, word_piece_tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from modeling_tsarank import (
    CrossEncoderModel,
    CrossEncoderOptions,
    InputError,
    MemoryStore,
    ModelError,
    TSARankModel,
    load_ranker,
)
from modeling_tsarank.cli.describe import describe
from modeling_tsarank.modeling_cross_encoder import PairEncoder, longest_first
from modeling_tsarank.models.published import PUBLISHED


LONG = " ".join(["The harbour pilot climbs aboard every ship before it enters the narrow channel."] * 9)
RANKLLAMA = PUBLISHED["cross_encoder"]["castorini/rankllama-*"]
WITH_EOS = {**RANKLLAMA, "document_template": "document: {document}</s>"}


@pytest.fixture
def save(tmp_path: Path, zoo: Any) -> Callable[..., Path]:
    """Saves a random model of an architecture, with the kind of tokenizer that it has."""
    return lambda kind, **changes: save_classifier(kind, tmp_path / kind, zoo.folders.get(kind), **changes)


@pytest.fixture
def long_pairs(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """With texts that are cut: the document, the query, and both."""
    asked = " ".join(["who guides a ship into the harbour"] * 40)
    return [*pairs, ("bees?", LONG), (asked, "Bees dance."), (asked, LONG)]


def by_cross_encoder(folder: Path, pairs: Any, **options: Any) -> np.ndarray:
    package = pytest.importorskip("sentence_transformers")
    encoder = package.CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity(), **options)
    return encoder.predict(pairs)


def by_plain_loop(folder: Path, pairs: Any, texts: Callable[[str, str], tuple[str, str]]) -> np.ndarray:
    """transformers' own tokenizer and model, one pair at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        inputs = (tokenizer(*texts(*pair), return_tensors="pt") for pair in pairs)
        return np.array([model(**{**one}).logits[0, 0].item() for one in inputs])


@pytest.mark.parametrize("kind", [*ENCODERS, *DECODERS])
def test_scores_are_those_of_sentence_transformers(kind: str, save: Any, long_pairs: Any) -> None:
    """Alone, in batches of any size, from the saved folder, and by transformers alone."""
    folder = save(kind)
    unlimited = {"max_length": 2000} if kind == "bloom" else {}  # where neither model nor tokenizer names a limit
    ranker = load_ranker(folder, device="cpu", dtype="float32", **unlimited)
    assert isinstance(ranker, CrossEncoderModel)
    expected = by_cross_encoder(folder, long_pairs)
    assert np.ptp(expected) > 0.01, "scores this close would hide a wrong order"
    np.testing.assert_allclose(ranker.predict(long_pairs), expected, atol=1e-5)
    np.testing.assert_allclose([ranker.predict(pair) for pair in long_pairs], expected, atol=1e-5)
    np.testing.assert_allclose(ranker.predict(long_pairs, batch_tokens=100), expected, atol=1e-5)
    short = [pair for pair in long_pairs if pair[1] != LONG and len(pair[0]) < 100]
    plain = by_plain_loop(folder, short, lambda query, document: (query, document))
    np.testing.assert_allclose(ranker.predict(short), plain, atol=1e-5)
    trained = ranker.scores_to_train(ranker.encoder.pairs(long_pairs))
    np.testing.assert_allclose(trained.detach().numpy(), expected, atol=1e-5)
    trained.sum().backward()
    assert all(part.grad is not None for name, part in ranker.named_parameters() if "score" in name)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "qwen3"])
def test_a_saved_folder_is_an_ordinary_cross_encoder(kind: str, save: Any, long_pairs: Any, tmp_path: Path) -> None:
    """Without this package's code, by sentence-transformers and transformers; with it, by `AutoModel` and pipeline."""
    ranker = load_ranker(save(kind), device="cpu", dtype="float32", max_length=60)
    folder = tmp_path / "saved"
    ranker.save_pretrained(folder)
    expected = ranker.predict(long_pairs)
    package = pytest.importorskip("sentence_transformers")
    np.testing.assert_allclose(
        package.CrossEncoder(str(folder), device="cpu").predict(long_pairs), expected, atol=1e-5
    )
    short = [pair for pair in long_pairs if len(ranker.encoder.pairs([pair])[0].prompt) < 60]
    plain = by_plain_loop(folder, short, lambda query, document: (query, document))
    np.testing.assert_allclose(ranker.predict(short), plain, atol=1e-5)
    assert len(short) > 5
    remote = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(remote).__module__.startswith("transformers_modules")
    np.testing.assert_allclose(remote.predict(long_pairs), expected, atol=1e-5)
    again = load_ranker(folder, device="cpu", dtype="float32")
    assert again.options == ranker.options
    ranking = pipeline("text-ranking", model=str(folder), trust_remote_code=True, device="cpu")
    found = ranking({"query": "bees?", "documents": ["Bees dance.", LONG]})
    assert [row["corpus_id"] for row in found] == [
        row["corpus_id"] for row in ranker.rank("bees?", ["Bees dance.", LONG])
    ]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_without_the_engine_scores_are_the_same(
    kind: str, save: Any, long_pairs: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    ranker = load_ranker(save(kind), device="cpu", dtype="float32")
    expected = ranker.predict(long_pairs)
    ranker.save_pretrained(tmp_path / "saved")
    remote = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    monkeypatch.setitem(sys.modules, "modeling_tsarank.models.installed", None)
    np.testing.assert_allclose(remote.predict(long_pairs), expected, atol=1e-5)
    np.testing.assert_allclose(remote.predict(long_pairs, batch_tokens=64), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_prompts_of_rankllama(kind: str, save: Any, pairs: Any, tmp_path: Path) -> None:
    """Two texts with their prefixes, as published, and with an EOS, which a template may spell and a text may not."""
    folder = save(kind)
    ranker = load_ranker(folder, device="cpu", dtype="float32", **RANKLLAMA)

    def texts(query: str, document: str) -> tuple[str, str]:
        return f"query: {query}", f"document: {document}"

    np.testing.assert_allclose(ranker.predict(pairs), by_plain_loop(folder, pairs, texts), atol=1e-5)
    ranker.set_options(**WITH_EOS)
    expected = by_plain_loop(folder, pairs, lambda *pair: (texts(*pair)[0], f"{texts(*pair)[1]}</s>"))
    np.testing.assert_allclose(ranker.predict(pairs), expected, atol=1e-5)
    ids = ranker.encoder.pairs([("what</s>", "</s> it")])[0].prompt
    assert ids.count(2) == 1
    assert ids[-1] == 2
    ranker.save_pretrained(tmp_path / "saved")
    package = pytest.importorskip("sentence_transformers")
    encoder = package.CrossEncoder(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    np.testing.assert_allclose(encoder.predict(pairs), ranker.predict(pairs), atol=1e-5)
    with pytest.raises(ValueError, match="trust_remote_code"):  # it would add no prefixes
        package.CrossEncoder(str(tmp_path / "saved"), device="cpu")


@pytest.mark.parametrize("pad", [None, 2, 3])
def test_the_head_stands_on_the_last_token_that_is_not_padding(pad: int | None, save: Any, pairs: Any) -> None:
    """Models without a padding token, and those that pad with EOS, whose last EOS transformers passes over."""
    folder = save("llama", pad_token_id=pad)
    ranker = load_ranker(folder, device="cpu", dtype="float32", **WITH_EOS)

    def texts(query: str, document: str) -> tuple[str, str]:
        return f"query: {query}", f"document: {document}</s>"

    np.testing.assert_allclose(ranker.predict(pairs), by_plain_loop(folder, pairs, texts), atol=1e-5)
    trained = ranker.scores_to_train(ranker.encoder.pairs(pairs)).detach().numpy()
    np.testing.assert_allclose(trained, ranker.predict(pairs), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_documents_before_the_query_are_shared_and_kept(kind: str, save: Any, pairs: Any) -> None:
    folder = save(kind)
    ranker = load_ranker(folder, device="cpu", dtype="float32", order="document_first", max_query_length=20)
    expected = by_plain_loop(folder, pairs, lambda query, document: (document, query))
    np.testing.assert_allclose(ranker.predict(pairs), expected, atol=1e-5)
    documents = list(dict.fromkeys(document for _, document in pairs))
    assert ranker.index(documents, MemoryStore()) == len(documents)
    np.testing.assert_allclose(ranker.predict(pairs), expected, atol=1e-5)
    whole = sum(len(pair.prompt) for pair in ranker.encoder.pairs(pairs))
    assert ranker.last_stats["tokens"] < whole / 2


def test_queries_are_shared_by_decoders(save: Any) -> None:
    ranker = load_ranker(save("qwen3"), device="cpu", dtype="float32")
    asked = " ".join(["who guides a ship"] * 10)
    pairs = [(asked, document) for document in ("bees", "ships", "bread", "stones")]
    ranker.predict(pairs)
    assert ranker.last_stats["tokens"] < sum(len(pair.prompt) for pair in ranker.encoder.pairs(pairs)) / 2


@pytest.mark.parametrize(
    ("kind", "reason"), [("bert", "bert is an encoder, which encodes"), ("llama", "puts the query before")]
)
def test_states_that_depend_on_the_query_cannot_be_kept(kind: str, reason: str, save: Any) -> None:
    ranker = load_ranker(save(kind), device="cpu", dtype="float32")
    with pytest.raises(ModelError, match=reason):
        ranker.index(["bees"], MemoryStore())
    ranker.document_store = MemoryStore()
    with pytest.raises(ModelError, match=reason):
        ranker.predict(("bees?", "bees"))


def test_bfloat16_scores_are_not_rounded_to_bfloat16(save: Any, pairs: Any) -> None:
    """The label's logit is a product in float32, of an encoder's head and of a decoder's."""
    for kind in ("bert", "llama"):
        ranker = load_ranker(save(kind), device="cpu", dtype="float32")
        ranker.to(torch.bfloat16)
        scores = torch.from_numpy(ranker.predict(pairs))
        assert not torch.equal(scores, scores.bfloat16().float())


def test_two_labels_are_the_difference_of_their_logits(save: Any, pairs: Any) -> None:
    folder = save("bert", num_labels=2)
    logits = by_cross_encoder(folder, pairs)
    ranker = load_ranker(folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(ranker.predict(pairs), logits[:, 1] - logits[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("contradiction", "entailment", "neutral"), r"has 3 labels \(contradiction, entailment, neutral\)"),
        (("entailment", "not_entailment"), r"has 2 labels \(entailment, not_entailment\)"),
        ([f"LABEL_{i}" for i in range(5)], r"has 5 labels \(label_0, label_1, label_2, …\)"),
    ],
)
def test_labels_that_mean_no_relevance_are_refused(labels: Any, told: str, save: Any) -> None:
    folder = save("bert", id2label=dict(enumerate(labels)), label2id={})
    with pytest.raises(ModelError, match=told) as caught:
        load_ranker(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes"), [("fnet", {}), ("funnel", {"truncate_seq": True}), ("funnel", {"truncate_seq": False})]
)
def test_a_model_that_reads_padding_is_refused(kind: str, changes: Any, save: Any) -> None:
    with pytest.raises(ModelError, match=f"{kind} has other logits with padding: scores depend on the batch"):
        load_ranker(save(kind, num_labels=1, **changes), device="cpu", dtype="float32")


def test_a_head_that_is_missing_is_never_made_up(save: Any, zoo: Any) -> None:
    with pytest.raises(ModelError, match=r"missing weights: score\.weight"):
        load_ranker(zoo.folders["llama"], family="cross_encoder", device="cpu")
    with pytest.raises(InputError, match="new_head is for training"):
        load_ranker(zoo.folders["llama"], family="cross_encoder", device="cpu", new_head=True)
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    with pytest.raises(ModelError, match="LlamaForCausalLM has no sequence-classification head"):
        CrossEncoderModel.from_backbone(zoo.causal("llama"), tokenizer=tokenizer)
    folder = save("llama")
    with pytest.raises(ModelError, match=r"complete LlamaForCausalLM but a LlamaForSequenceClassification"):
        TSARankModel.from_backbone(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    before = dict(vars(model))
    ranker = CrossEncoderModel.from_backbone(model, tokenizer=tokenizer)
    assert ranker.rank("bees?", ["bees", "bread"])
    assert vars(model) == before


def test_longest_first_cuts_as_tokenizers_do() -> None:
    tokenizer = word_piece_tokenizer()
    for first in range(1, 9):
        for second in range(1, 9):
            for room in range(2, 12):
                texts = " ".join(["a"] * first), " ".join(["b"] * second)
                ids = tokenizer(*texts, truncation="longest_first", max_length=room + 3)["input_ids"]
                border = ids.index(tokenizer.sep_token_id)
                assert longest_first(first, second, room) == (border - 1, len(ids) - border - 2)


def test_limits_and_special_tokens(zoo: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folders["llama"])
    with pytest.raises(ModelError, match="leaves no tokens"):
        PairEncoder(tokenizer, CrossEncoderOptions(max_length=2, max_query_length=1))
    plain = PairEncoder(tokenizer, CrossEncoderOptions()).pairs([("a", "b")])[0].prompt
    assert plain[0] == tokenizer.bos_token_id
    bare = PairEncoder(tokenizer, CrossEncoderOptions(add_bos=False)).pairs([("a", "b")])[0].prompt
    assert bare == plain[1:]
    pair = PairEncoder(tokenizer, CrossEncoderOptions(max_query_length=3)).pairs([(LONG, "bees")])[0]
    assert pair.query_cut == len(tokenizer(LONG, add_special_tokens=False)["input_ids"]) - 3
    assert CrossEncoderOptions().override(max_length=64).max_query_length == 63
    for values in ({"query_template": "x"}, {"document_template": "{document}{document}"}, {"order": "both"}):
        with pytest.raises(InputError):
            CrossEncoderOptions(**values)  # type: ignore[arg-type]


def test_a_text_never_becomes_a_separator(save: Any) -> None:
    ranker = load_ranker(save("bert"), device="cpu", dtype="float32")
    ids = ranker.encoder.pairs([("bees [SEP]", "[CLS] bees [SEP]")])[0].prompt
    assert ids.count(3) == 2
    assert ids.count(2) == 1


def test_describe_names_the_family(save: Any) -> None:
    folder = save("bert")
    facts = describe(load_ranker(folder, device="cpu", dtype="float32"), str(folder))
    assert (facts["family"], facts["backbone"], facts["kind"]) == ("cross_encoder", "bert, encoder", "folder")
    assert "an encoder in plain padded batches" in facts["scored_by"]
    assert facts["document_states"].startswith("no document states can be cached: bert is an encoder")
    folder = save("llama")
    facts = describe(load_ranker(folder, device="cpu", dtype="float32", order="document_first"), str(folder))
    assert (facts["backbone"], facts["document_states"]) == ("llama, decoder-only", "can be cached")


def test_repositories_of_sentence_transformers(save: Any, pairs: Any, tmp_path: Path) -> None:
    """A model alone is a ranker; other modules are refused, naming the way that there is."""
    package = pytest.importorskip("sentence_transformers")
    encoder = package.CrossEncoder(str(save("bert")), device="cpu", activation_fn=torch.nn.Identity())
    folder = tmp_path / "by-sentence-transformers"
    encoder.save_pretrained(str(folder))
    assert (folder / "modules.json").is_file()
    ranker = load_ranker(folder, device="cpu", dtype="float32")
    np.testing.assert_allclose(ranker.predict(pairs), encoder.predict(pairs), atol=1e-5)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="accepts ce:M"):
        load_ranker(folder)

"""A true/false ranker exported as a sequence-classification model scores the same in other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_tsarank import TSARankModel, TwolarModel, load_ranker
from modeling_tsarank.cli import main
from modeling_tsarank.models.exporting import to_sequence_classification
from modeling_tsarank.ranking_errors import ModelError


PAIRS = [("why does bread rise", "yeast makes gas"), ("bees", "honey " * 60), ("5 ships?", ""), ("a", "<s> b")]
TEMPLATES = {
    "document first": "Document: {document} Query: {query} Relevant:",
    "query first": "Query: {query} Document: {document} Relevant:",
}


def make(zoo: Any, kind: str, template: str, **options: Any) -> Any:
    options = {"template": template, "max_length": 48, "max_query_length": 20, **options}
    return TwolarModel.from_backbone(zoo.folders[kind], device="cpu", dtype="float32", **options)


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma"])
def test_the_same_scores_everywhere(zoo: Any, kind: str, template: str, tmp_path: Path) -> None:
    if kind not in zoo.folders:
        pytest.skip(f"no tiny {kind} here")
    ranker = make(zoo, kind, template)
    expected = ranker.predict(PAIRS)
    assert np.ptp(expected) > 1e-3
    folder = tmp_path / "classifier"
    to_sequence_classification(ranker).save_pretrained(folder)
    ours = load_ranker(folder, device="cpu", dtype="float32")
    assert ours.config.num_labels == 1
    assert np.abs(ours.predict(PAIRS) - expected).max() < 1e-5
    assert [row["corpus_id"] for row in ours.rank("bees", ["b", "a"])] == [
        row["corpus_id"] for row in ranker.rank("bees", ["b", "a"])
    ]
    theirs = CrossEncoder(str(folder), device="cpu", trust_remote_code=True, activation_fn=torch.nn.Identity())
    assert np.abs(theirs.predict(PAIRS[:2], show_progress_bar=False) - expected[:2]).max() < 1e-5
    # Without any code of ours: a pair of texts, or the chat template's prompt, as vLLM makes it.
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    query, document = PAIRS[0]
    first, second = template.split("} ")[0] + "}", " " + template.split("} ", 1)[1]
    filled = [part.replace("{query}", query).replace("{document}", document) for part in (first, second)]
    pair = tokenizer(*filled, return_tensors="pt")["input_ids"]
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False)
    assert prompt == "".join(filled)
    for ids in (pair, tokenizer(prompt, return_tensors="pt")["input_ids"]):
        with torch.inference_mode():
            assert float(model(input_ids=ids).logits) == pytest.approx(float(expected[0]), abs=1e-5)


def test_the_command(zoo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranker = make(zoo, "llama", TEMPLATES["document first"])
    ranker.save_pretrained(tmp_path / "ranker")
    options = ["export", "--model", str(tmp_path / "ranker"), "--device", "cpu", "--dtype", "float32"]
    assert main([*options, "--output", str(tmp_path / "classifier")]) == 0
    said = capsys.readouterr()
    assert "LlamaForSequenceClassification" in said.out
    assert "documents" not in said.err, "the texts of the comparison are not the user's"
    found = load_ranker(tmp_path / "classifier", device="cpu", dtype="float32").predict(PAIRS)
    assert np.abs(found - ranker.predict(PAIRS)).max() < 1e-5
    assert main([*options, "--output", str(tmp_path / "classifier")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_has_no_such_head_is_refused(zoo: Any) -> None:
    for ranker in (
        TSARankModel.from_backbone(zoo.folders["llama"], device="cpu", dtype="float32"),
        make(zoo, "llama", TEMPLATES["query first"], strategy="softmax"),
        TwolarModel.from_backbone(zoo.folders["t5"], device="cpu", dtype="float32"),
    ):
        with pytest.raises(ModelError, match="only a decoder-only ranker"):
            to_sequence_classification(ranker)
    pieces = make(zoo, "llama", ["Query: {query}", " Document: {document} Relevant:"])
    with pytest.raises(ModelError, match="a pair has only two texts"):
        to_sequence_classification(pieces)


def test_a_head_whose_logits_are_changed_behind_it_is_noticed(zoo: Any) -> None:
    """Gemma 2 caps its logits: no linear head gives the difference of capped ones."""
    ranker = make(zoo, "llama", TEMPLATES["query first"])
    weight = ranker.backbone.get_output_embeddings()
    weight.register_forward_hook(lambda _module, _inputs, output: torch.tanh(output))
    with pytest.raises(ModelError, match="scores differ by"):
        to_sequence_classification(ranker)

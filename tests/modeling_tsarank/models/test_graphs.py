"""Graphs for ONNX Runtime and OpenVINO give the ranker's scores to whoever runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_classifiers import save_classifier
from transformers import AutoTokenizer

from modeling_tsarank import TwolarModel, load_ranker
from modeling_tsarank.cli import main
from modeling_tsarank.models.exporting import INPUTS, load_graph


PAIRS = [("why does bread rise", "yeast makes gas"), ("bees", "honey and more honey"), ("5 ships?", "one")]


def run_graph(folder: Path, kind: str, batch: Any) -> np.ndarray:
    return load_graph(folder, kind)(*(batch[name].astype(np.int64) for name in INPUTS))[:, 0]


def export(source: Path, folder: Path, kind: str) -> int:
    pytest.importorskip("onnxscript" if kind == "onnx" else "openvino")
    return main(["export", "--model", str(source), "--to", kind, "--output", str(folder)])


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_true_false_ranker(zoo: Any, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = "Document: {document} Query: {query} Relevant:"
    ranker = TwolarModel.from_backbone(zoo.folders["llama"], dtype="float32", template=template, max_length=96)
    ranker.save_pretrained(tmp_path / "ranker")
    assert export(tmp_path / "ranker", tmp_path / "graph", kind) == 0
    assert f"{kind} graph: scores differ by at most" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "graph")
    roles = [[{"role": "query", "content": q}, {"role": "document", "content": d}] for q, d in PAIRS]
    prompts = tokenizer.apply_chat_template(roles, tokenize=False)
    batch = tokenizer(prompts, padding=True, return_tensors="np")
    found = run_graph(tmp_path / "graph", kind, batch)
    assert np.abs(found - ranker.predict(PAIRS)).max() < 1e-4
    assert np.ptp(found) > 1e-3


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_cross_encoder_with_token_types(kind: str, tmp_path: Path) -> None:
    source = save_classifier("bert", tmp_path / "bert")
    assert export(source, tmp_path / "graph", kind) == 0
    ranker = load_ranker(tmp_path / "graph", device="cpu", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "graph")
    batch = tokenizer(*map(list, zip(*PAIRS, strict=True)), padding=True, return_tensors="np")
    found = run_graph(tmp_path / "graph", kind, batch)
    assert np.abs(found - ranker.predict(PAIRS)).max() < 1e-4


def test_weights_that_are_no_float32_are_refused_before_any_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--model", str(tmp_path / "none"), "--to", "openvino", "--dtype", "int8"]
    assert main([*words, "--output", str(tmp_path / "graph")]) == 2
    assert "needs float32 weights" in capsys.readouterr().err

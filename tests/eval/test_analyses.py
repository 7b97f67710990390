"""The papers' analyses in benchmarks/analyses.py: agreement of first stages, perplexity of queries."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_tsarank import load_ranker
from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection


RUNS = st.dictionaries(
    st.sampled_from("qrs"),
    st.dictionaries(st.sampled_from("abcdefg"), st.floats(-5, 5, width=32), min_size=1),
    min_size=1,
)


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "analyses.py"
    spec = importlib.util.spec_from_file_location("benchmarks_analyses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS, RUNS, st.integers(1, 6))
def test_agreement_is_equation_3(script: Any, first: dict, second: dict, depth: int) -> None:
    expected = 0.0
    for query_id in first.keys() | second.keys():
        tops = [set(ranked(run.get(query_id, {}))[:depth]) for run in (first, second)]
        expected += len(tops[0] & tops[1]) / depth
    expected /= len(first.keys() | second.keys())
    assert script.agreement(first, second, depth) == script.agreement(second, first, depth) == pytest.approx(expected)


def test_negatives_are_not_relevant(script: Any, small_collection: Collection) -> None:
    positive, negative = script.sample_query_pairs(small_collection, 20, seed=3)
    assert len(positive) == len(negative) == 20
    assert script.sample_query_pairs(small_collection, 20, seed=3) == (positive, negative)
    text_ids = {document.full_text: name for name, document in small_collection.documents.items()}

    def grades(query: str, document: str) -> list[int]:
        names = [name for name, text in small_collection.queries.items() if text == query]
        return [small_collection.qrels.get(name, {}).get(text_ids[document], 0) for name in names]

    for (query, document), (other, same) in zip(positive, negative, strict=True):
        assert same == document
        assert max(grades(query, document)) > 0
        assert min(grades(other, document)) <= 0


def test_perplexity_is_that_of_the_plain_language_model(
    script: Any, tiny_llama: Path, small_collection: Collection, tmp_path: Path
) -> None:
    model = load_ranker(tiny_llama, device="cpu", dtype="float32", max_length=200, max_query_length=40)
    model.save_pretrained(tmp_path)
    pairs, _ = script.sample_query_pairs(small_collection, 6)
    losses = []
    for query, document in pairs:
        prompt = model.tokenizer(f"Document: {document} Query:", add_special_tokens=False)["input_ids"]
        target = model.tokenizer(f" {query}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model.backbone(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(target)))
    expected = torch.stack(losses).mean().exp().item()
    assert script.perplexity(str(tmp_path), pairs, "float32") == pytest.approx(expected, rel=1e-4)

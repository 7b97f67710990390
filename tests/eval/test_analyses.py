"""The papers' analyses: intersection of first stages, perplexity, words of queries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank import TwolarModel, load_ranker
from modeling_tsarank.eval.analyses import intersection_rates, measure_perplexity, sample_query_pairs
from modeling_tsarank.eval.query_words import generate_queries, sample_relevant, word_shares
from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection, Document
from modeling_tsarank.ranking_errors import InputError, ModelError


RUNS = st.dictionaries(
    st.sampled_from("qrs"),
    st.dictionaries(st.sampled_from("abcdefg"), st.floats(-5, 5, width=32), min_size=1),
    min_size=3,
)


@given(RUNS, RUNS, st.integers(1, 6))
def test_intersection_is_equation_3(first: dict, second: dict, depth: int) -> None:
    expected = 0.0
    for query_id in first.keys() | second.keys():
        tops = [set(ranked(run.get(query_id, {}))[:depth]) for run in (first, second)]
        expected += len(tops[0] & tops[1]) / depth
    expected /= len(first.keys() | second.keys())
    rates = intersection_rates([first, second], depth)
    assert rates[0][1] == rates[1][0] == pytest.approx(expected)
    assert 0 <= rates[0][1] <= rates[0][0] <= 1


def test_missing_queries_count_nothing_in_common() -> None:
    full = {"q": {"a": 2.0, "b": 1.0}, "r": {"a": 2.0, "b": 1.0}}
    assert intersection_rates([full, {"q": full["q"]}], 2) == [[1.0, 0.5], [0.5, 0.5]]


def test_senseless_intersections_are_refused() -> None:
    run = {"q": {"a": 1.0}}
    with pytest.raises(InputError, match="at least 2"):
        intersection_rates([run])
    with pytest.raises(InputError, match="at least 1"):
        intersection_rates([run, run], 0)
    with pytest.raises(InputError, match="runs 1 and 2 have no query in common"):
        intersection_rates([run, {"p": {"a": 1.0}}])


def test_negatives_are_not_relevant(small_collection: Collection) -> None:
    text_ids = {document.full_text: name for name, document in small_collection.documents.items()}
    assert len(text_ids) == len(small_collection.documents)
    positive, negative = sample_query_pairs(small_collection, 20, seed=3)
    assert len(positive) == len(negative) == 20
    assert sample_query_pairs(small_collection, 20, seed=3) == (positive, negative)
    assert sample_query_pairs(small_collection, 20, seed=4) != (positive, negative)

    def grades(query: str, document: str) -> list[int]:
        return [
            small_collection.qrels.get(query_id, {}).get(text_ids[document], 0)
            for query_id, text in small_collection.queries.items()
            if text == query
        ]

    for (query, document), (other, same) in zip(positive, negative, strict=True):
        assert same == document
        assert max(grades(query, document)) > 0
        assert min(grades(other, document)) <= 0


def test_hard_negatives_come_from_the_run(small_collection: Collection) -> None:
    relevant = next(iter(small_collection.qrels["q0"]))
    other = next(name for name in small_collection.documents if name not in small_collection.qrels["q0"])
    run = {"q0": {relevant: 9.0, other: 1.0, "not in the corpus": 5.0}}
    positive, negative = sample_query_pairs(small_collection, 50, negatives=run)
    assert {query for query, _ in positive} == {small_collection.queries["q0"]}
    assert set(negative) == {(small_collection.queries["q0"], small_collection.documents[other].full_text)}


def test_a_collection_without_negatives_is_refused() -> None:
    collection = Collection("one", {"d": Document("", "text")}, {"q": "query"}, {"q": {"d": 1}})
    with pytest.raises(InputError, match="no relevant document with a negative"):
        sample_query_pairs(collection)
    with pytest.raises(InputError, match="at least 1"):
        sample_query_pairs(collection, 0)


def test_perplexity_is_that_of_the_plain_language_model(tiny_llama: Path, small_collection: Collection) -> None:
    model = load_ranker(tiny_llama, device="cpu", dtype="float32", max_length=200, max_query_length=40)
    positive, negative = sample_query_pairs(small_collection, 6)
    gap = measure_perplexity(model, positive, negative)
    expected = []
    for query, document in positive + negative:
        prompt = model.tokenizer(f"Document: {document} Query:", add_special_tokens=False)["input_ids"]
        target = model.tokenizer(f" {query}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model.backbone(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        expected.append(torch.nn.functional.cross_entropy(logits, torch.tensor(target)).exp().item())
    assert gap.positive == pytest.approx(expected[:6], rel=1e-4)
    assert gap.negative == pytest.approx(expected[6:], rel=1e-4)
    summary = gap.summary()
    assert summary["mean"][0] == pytest.approx(np.mean(expected[:6]), rel=1e-4)
    assert summary["geometric"][1] == pytest.approx(np.exp(np.mean(np.log(expected[6:]))), rel=1e-4)
    assert summary["median"][2] == pytest.approx(np.median(expected[6:]) - np.median(expected[:6]), abs=1e-3)


def test_perplexity_needs_mean_log_probabilities(tiny_llama: Path) -> None:
    model = load_ranker(tiny_llama, device="cpu", max_length=200, max_query_length=40, aggregation="sum")
    with pytest.raises(ModelError, match="'sum'"):
        measure_perplexity(model, [("q", "d")], [("q", "e")])
    model.set_options(aggregation="mean")
    assert measure_perplexity(model, [("flour", "ice")], [("ice", "flour")]).positive.shape == (1,)


def test_word_shares_by_hand() -> None:
    # how, is, the: stop words; bread, baked: stems in the document; quickly, Mars: neither.
    shares = word_shares(["How is the bread baked quickly", "Mars"], ["We bake breads.", "Jupiter, quickly"])
    assert (shares.words, shares.queries) == (7, 2)
    assert shares.stop == pytest.approx(3 / 7)
    assert shares.document == pytest.approx(2 / 7)


def test_stop_words_are_never_document_words() -> None:
    shares = word_shares(["the of and"], ["the of and"])
    assert (shares.document, shares.stop) == (0.0, 1.0)


def test_uncountable_queries_are_refused() -> None:
    with pytest.raises(InputError, match="no word"):
        word_shares(["", "?!"], ["a", "b"])
    with pytest.raises(InputError, match="do not correspond"):
        word_shares(["a"], [])


def test_samples_are_relevant_and_repeatable(small_collection: Collection) -> None:
    samples = sample_relevant(small_collection, 8, seed=2)
    assert samples == sample_relevant(small_collection, 8, seed=2)
    assert len({document for _, document in samples}) == 8
    text_ids = {document.full_text: name for name, document in small_collection.documents.items()}
    for query, document in samples:
        query_ids = [name for name, text in small_collection.queries.items() if text == query]
        assert any(small_collection.qrels[name].get(text_ids[document], 0) > 0 for name in query_ids)
    with pytest.raises(InputError, match="no relevant document"):
        sample_relevant(Collection("none", small_collection.documents, {"q": "x"}, {"q": {"d0": 0}}))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_generation_is_greedy_whatever_the_batch(
    tiny_llama: Path, small_collection: Collection, batch_size: int
) -> None:
    model = load_ranker(tiny_llama, device="cpu", dtype="float32", max_length=200, max_query_length=40)
    documents = [document.full_text for document in list(small_collection.documents.values())[:5]]
    documents[2] = "ice"  # much shorter, so that the batch is padded
    queries = generate_queries(model, documents, max_new_tokens=5, batch_size=batch_size)
    for document, query in zip(documents, queries, strict=True):
        ids = model.tokenizer(f"Document: {document} Query:", add_special_tokens=False)["input_ids"]
        start = len(ids)
        for _ in range(5):  # greedy decoding, written out
            with torch.no_grad():
                best = int(model.backbone(torch.tensor([ids])).logits[0, -1].argmax())
            if best == model.tokenizer.eos_token_id:
                break
            ids.append(best)
        assert query == model.tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("template", ["Document: {document} Query: {query} Relevant:", None])
def test_a_model_without_a_query_prompt_is_refused(tiny_llama: Path, template: str | None) -> None:
    model = TwolarModel.from_backbone(str(tiny_llama), **({"template": template} if template else {}))
    with pytest.raises(ModelError, match="TwolarModel does not generate queries"):
        generate_queries(model, ["text"])
    with pytest.raises(ModelError, match="does not generate queries"):
        generate_queries(object(), ["text"])

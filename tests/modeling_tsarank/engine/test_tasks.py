"""True/false rerankers that read what the template puts first once: same scores, fewer tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank import TwolarModel
from modeling_tsarank.engine.tasks import SAVED_SHARE, Task, prefix_groups


DOCUMENT_FIRST = "Document: {document} Query: {query} Relevant:"
QUERIES = ["bread", "a ship at night", "bees and violins in the garden", "where does the pilot go on board of it"]
LONG = "the ship enters the narrow channel " * 20


def alone(model: TwolarModel, many: list[tuple[str, str]]) -> np.ndarray:
    """One pair at a time through the plain forward."""
    rows = [torch.tensor([pair.prompt]) for pair in model.encoder.pairs(many)]
    with torch.inference_mode():
        return np.array([model.pool(model.answer_logits(row)).item() for row in rows])


@pytest.mark.parametrize("name", ["llama", "qwen3", "bloom", "gpt2", "opt", "gemma2"])
@pytest.mark.parametrize("template", [DOCUMENT_FIRST, "Query: {query} Document: {document} Relevant:"])
def test_scores_equal_those_of_single_pairs(zoo, pairs, name, template) -> None:
    """Documents that fit, one that is cut to another length for every query, and a pair that comes twice."""
    lengths = {"max_length": 80, "max_query_length": 40}
    model = TwolarModel.from_backbone(str(zoo.folders[name]), dtype=torch.float64, template=template, **lengths)
    documents = list(dict.fromkeys(document for _, document in pairs))[:3]
    many = [(query, document) for query in QUERIES for document in [*documents, LONG]]
    many.append(many[0])
    expected = alone(model, many)
    assert np.ptp(expected) > 0.02
    for batch_tokens in (1, 150, 4096):
        np.testing.assert_allclose(model.predict(many, batch_tokens=batch_tokens), expected, atol=1e-6)


def test_a_document_is_read_once_for_all_its_queries(zoo, count_tokens) -> None:
    model = TwolarModel.from_backbone(
        str(zoo.folders["llama"]), template=DOCUMENT_FIRST, max_length=200, max_query_length=40
    )
    many = [(query, LONG) for query in QUERIES]
    model.predict(many)  # the first time, one token is read to learn the shapes of states
    read = count_tokens(model)
    model.predict(many)
    lengths = [len(pair.prompt) for pair in model.encoder.pairs(many)]
    assert max(lengths) < model.last_stats["tokens"] <= sum(read)
    assert sum(read) < max(lengths) + sum(lengths) / 4
    # Two words of query in front of a long document are not worth a batch of their own.
    model.set_options(template="Query: {query} Document: {document} Relevant:")
    texts = [f"{word} {LONG}" for word in ("bread", "ship", "bees")]
    model.predict([("pilot", text) for text in texts])
    assert model.last_stats["tokens"] == sum(len(p.prompt) for p in model.encoder.pairs([("pilot", t) for t in texts]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), max_size=12))
def test_groups_hold_every_prompt_once_and_share_what_they_say(prompts) -> None:
    tasks = [Task(prompt, (len(prompt) - 1,)) for prompt in prompts]
    groups = [(group.members, group.prefix) for group in prefix_groups(tasks, range(len(tasks)))]
    assert sorted(i for members, _ in groups for i in members) == list(range(len(prompts)))
    for members, prefix in groups:
        assert bool(prefix) == (len(members) > 1)
        for i in members:
            others = [prompts[j] for j in members if j != i]
            shared = [
                next((n for n, (a, b) in enumerate(zip(prompts[i], other, strict=False)) if a != b), None)
                for other in others
            ]
            alike = [min(len(prompts[i]), len(o)) if n is None else n for n, o in zip(shared, others, strict=True)]
            assert not others or max(alike) >= SAVED_SHARE * len(prompts[i]) - 1

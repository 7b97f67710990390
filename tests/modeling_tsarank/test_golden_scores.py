"""The real 135M model: batch scores against one pair at a time through the plain causal LM, in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_tsarank import TSARankModel


# (query, document, whether the document answers it)
PAIRS = [
    ("how long does a flea live", "Without a blood meal an adult flea dies within one or two weeks.", True),
    ("how long does a flea live", "A flea market opens at dawn and closes before noon.", False),
    ("what makes bread rise", "Yeast eats the sugar in the dough and gives off gas, which blows the dough up.", True),
    ("what makes bread rise", "The crust of a loaf gets its colour from the heat of the oven.", False),
    ("capital of Iceland", "Reykjavík, on the bay of Faxaflói, is the seat of Iceland's government.", True),
    ("capital of Iceland", "Most of Iceland's electricity comes from water power and hot springs.", False),
    ("who steers a ship into harbour", "A pilot boards each large ship and guides it through the channel.", True),
    ("who steers a ship into harbour", "Cranes lift the containers from the ship onto lorries.", False),
    ("symptoms of iron deficiency", "Too little iron makes people pale, tired and short of breath.", True),
    ("symptoms of iron deficiency", "Cast iron pans must be dried well, or they rust.", False),
    ("why is the sky blue", "Air scatters short waves of sunlight far more than long ones.", True),
    ("why is the sky blue", "Blue was the most expensive pigment of medieval painters.", False),
    ("how do bees find flowers", "A bee that returns dances in the hive to tell others the way to blossoms.", True),
    ("how do bees find flowers", "Beekeepers wear pale clothing and move slowly.", False),
    ("tuning of a violin", "The four strings are tuned in fifths: G, D, A and E.", True),
    ("tuning of a violin", "Varnish protects the wood of a violin from sweat and dust.", False),
    ("difference between weather and climate", "Weather is today's rain; climate is the average of decades.", True),
    ("difference between weather and climate", "The museum of climbing is closed on Mondays.", False),
    ("when were the first Olympic games of modern times", "Athens held them in April 1896, with 14 nations.", True),
    ("when were the first Olympic games of modern times", "The stadium seats fifty thousand people.", False),
]


@pytest.fixture(scope="module")
def plain_scores(default_folder) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(default_folder)
    model = AutoModelForCausalLM.from_pretrained(default_folder, dtype=torch.float32).eval()
    scores = []
    for query, document, _ in PAIRS:
        prompt = tokenizer(f"Document: {document} Query:", return_tensors="pt")["input_ids"]
        answer = tokenizer(f" {query}", add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.cat([prompt, answer], dim=1)).logits[0]
        log_probs = logits.log_softmax(-1)[prompt.shape[1] - 1 : -1]
        scores.append(log_probs.gather(-1, answer[0][:, None]).mean().item())
    return scores


def test_batch_scores_equal_the_plain_loop(default_folder, plain_scores) -> None:
    model = TSARankModel.from_backbone(str(default_folder), dtype=torch.float32)
    pairs = [(query, document) for query, document, _ in PAIRS]
    np.testing.assert_allclose(model.predict(pairs), plain_scores, atol=1e-4)
    np.testing.assert_allclose(model.predict(pairs, batch_tokens=100), plain_scores, atol=1e-4)
    # Every query with every document: documents are shared, and the same pairs must score the same.
    queries = list(dict.fromkeys(query for query, _ in pairs))[:4]
    crossed = [(query, document) for query in queries for _, document in pairs[:8]]
    scores = dict(zip(crossed, model.predict(crossed), strict=True))
    for pair, expected in list(zip(pairs, plain_scores, strict=True))[:8]:
        assert scores[pair] == pytest.approx(expected, abs=1e-4)


def test_the_model_prefers_the_answers(plain_scores) -> None:
    """Ten pairs of documents: a zero-shot model need not be right on all, but on most."""
    right = sum(plain_scores[i] > plain_scores[i + 1] for i in range(0, len(PAIRS), 2))
    assert right >= 9

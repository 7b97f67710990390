"""What a card says of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.hub_cards.model_cards import render_model_card
from modeling_tsarank.hub_cards.model_facts import read_model
from modeling_tsarank.ranking_errors import ModelError


def test_the_notes_say_what_the_mixture_has_and_what_was_read_in_which_dtype(trained: Any) -> None:
    common = {"devices": ["cpu"], "cpu": "some CPU", "versions": {"tsarank": "0.1.0"}}
    common |= {"split": "test", "first_stage": "bm25", "top_k": 10, "queries": 3}
    measures = {"first_stage": {"ndcg@10": 0.3}, "reranked": {"ndcg@10": 0.4}}
    mixed = measures | {"fused": {"ndcg@10": 0.5}}
    one = {"dataset": "one", "dtypes": ["float32"], "measures": mixed, "fusion": {"weight": 0.05}, **common}
    one |= {"limit_queries": 3, "max_length": 77, "max_query_length": 5}
    other = {"dataset": "other", "dtypes": ["bfloat16"], "measures": measures | {"fused": None}, **common}
    facts = read_model(trained("tsarank"))

    def notes(*evaluations: dict[str, Any]) -> list[str]:
        facts.evaluations = list(evaluations)
        section = render_model_card(facts, "alice/x", "v1", "mit").partition("## Evaluation")[2].partition("\n## ")[0]
        return [line for line in section.splitlines() if line.startswith("- ")]

    assert notes(one, other) == [
        "- one: computed in float32.",
        "- one: only the first 3 judged queries.",
        "- one: nDCG@10 is 0.5000 mixed with the first stage's scores, whose weight is 0.05.",
        "- one: max\\_length 77 and max\\_query\\_length 5, other than the model's own.",
        "- other: computed in bfloat16.",
        "- Measured in bfloat16, float32 on 1 x cpu (some CPU), tsarank 0.1.0.",
    ]
    assert notes(other) == ["- Measured in bfloat16 on 1 x cpu (some CPU), tsarank 0.1.0."]


@pytest.mark.parametrize("named", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_configuration_without_a_model_type_is_refused(named: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, **named}))
    with pytest.raises(ModelError, match="has no model_type"):
        read_model(tmp_path)

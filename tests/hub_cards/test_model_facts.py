"""What a card says of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.hub_cards.model_cards import _evaluation_notes
from modeling_tsarank.hub_cards.model_facts import Evaluation, read_model
from modeling_tsarank.ranking_errors import ModelError


def test_a_mixed_evaluation_speaks_of_the_model_alone() -> None:
    measures = {"first_stage": {"ndcg@10": 0.3}, "reranked": {"ndcg@10": 0.4}, "fused": {"ndcg@10": 0.5}}
    evaluation = Evaluation({"dataset": "tiny", "measures": measures})
    assert evaluation.reranked == {"ndcg@10": 0.4}
    assert evaluation.first_stage == {"ndcg@10": 0.3}


def test_the_notes_say_what_the_mixture_has_and_what_was_read_in_which_dtype() -> None:
    common = {"devices": ["cpu"], "cpu": "some CPU", "versions": {"tsarank": "0.1.0"}}
    measures = {"first_stage": {"ndcg@10": 0.3}, "reranked": {"ndcg@10": 0.4}}
    mixed = measures | {"fused": {"ndcg@10": 0.5}}
    one = {"dataset": "one", "dtypes": ["float32"], "measures": mixed, "fusion": {"weight": 0.05}, **common}
    other = {"dataset": "other", "dtypes": ["bfloat16"], "measures": measures | {"fused": None}, **common}
    assert _evaluation_notes([Evaluation(one), Evaluation(other)]) == [
        "one: read in float32.",
        "one: nDCG@10 is 0.5000 mixed with the first stage's scores, whose weight is 0.05.",
        "other: read in bfloat16.",
        "Measured in bfloat16, float32 on 1 x cpu (some CPU), tsarank 0.1.0.",
    ]
    assert _evaluation_notes([Evaluation(other)]) == ["Measured in bfloat16 on 1 x cpu (some CPU), tsarank 0.1.0."]


@pytest.mark.parametrize("named", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_configuration_without_a_model_type_is_refused(named: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, **named}))
    with pytest.raises(ModelError, match="names no model_type"):
        read_model(tmp_path)

"""Batches under a budget, and failures that say what to change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError, NonFiniteScoreError
from modeling_tsarank.ranking_scoring import (
    align_left,
    check_batch_tokens,
    check_finite,
    gathered_log_probs,
    pad_right,
    plan_batches,
)


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 500))
def test_batches_hold_every_task_once_within_the_budget(lengths, budget) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True), "the longest go first, so that too small a memory shows at once"


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5), st.randoms())
def test_any_padding_is_moved_to_the_right(rows, random) -> None:
    width = 9
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        places = sorted(random.sample(range(width), len(row)))
        ids[i, places] = torch.tensor(row)
        mask[i, places] = 1
    (aligned,) = align_left(mask, ids)
    expected, _ = pad_right(rows, 0, ids.device)
    assert torch.equal(aligned[:, : expected.shape[1]], expected)


def test_gathered_log_probs_equal_log_softmax() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(600, 50, dtype=torch.float64) * 5, torch.randint(0, 50, (600,))
    expected = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(gathered_log_probs(logits, targets).double(), expected, atol=1e-5, rtol=1e-5)
    assert gathered_log_probs(logits[:0], targets[:0]).shape == (0,)


def test_non_finite_scores_are_counted_and_named() -> None:
    check_finite([0.0, -1.0], str)
    with pytest.raises(NonFiniteScoreError, match=r"score nan for number 1 \(2 of 3"):
        check_finite([0.0, math.nan, math.inf], lambda i: f"number {i}")


@pytest.mark.parametrize("value", [0, -5, 2.5, True, "many"])
def test_bad_budgets(value) -> None:
    with pytest.raises(InputError, match="batch_tokens must be a whole number"):
        check_batch_tokens(value, torch.device("cpu"))

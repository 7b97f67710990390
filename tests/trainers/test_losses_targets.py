"""Ranks, labels and the figures of the training log."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses_targets import (
    in_batch_ndcg,
    pairwise_accuracy,
    permutation_to_ranks,
    ranking_accuracy,
    ranks_to_labels,
    scores_to_ranks,
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12).flatmap(lambda n: st.permutations(range(n))))
def test_permutation_and_ranks_are_inverse(permutation: list[int]) -> None:
    (ranks,) = permutation_to_ranks([permutation]).tolist()
    assert [ranks[document] for document in permutation] == list(range(1, len(permutation) + 1))


def test_short_lists_end_in_padding() -> None:
    assert permutation_to_ranks([[2, 0, 1], [1, 0]]).tolist() == [[2, 3, 1], [2, 1, 0]]
    assert permutation_to_ranks([[1, 0]], width=4).tolist() == [[2, 1, 0, 0]]


@pytest.mark.parametrize("permutation", [[0, 0, 1], [0, 1, 3], [1, 2, 3], [0, -2, 1]])
def test_wrong_permutation_is_an_error(permutation: list[int]) -> None:
    with pytest.raises(InputError, match=r"group 1 must name each of 0\.\.2 once"):
        permutation_to_ranks([[0], permutation])


def test_permutation_wider_than_width_is_an_error() -> None:
    with pytest.raises(InputError, match="width"):
        permutation_to_ranks([[0, 1, 2]], width=2)


def test_scores_to_ranks_shares_ranks_and_skips_padding() -> None:
    scores = torch.tensor([[5.0, 7.0, 5.0, 1.0], [9.0, 3.0, float("nan"), 100.0]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert scores_to_ranks(scores, mask).tolist() == [[2, 1, 2, 4], [1, 2, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_scores_to_ranks_counts_better_documents(values: list[int]) -> None:
    (ranks,) = scores_to_ranks(torch.tensor([values])).tolist()
    assert ranks == [1 + sum(other > value for other in values) for value in values]


def test_ranks_to_labels() -> None:
    ranks = torch.tensor([[2, 1, 3], [1, 2, 0]])
    assert ranks_to_labels(ranks).tolist() == [[1, 2, 0], [1, 0, 0]]


def test_ranking_accuracy() -> None:
    scores = torch.tensor([[2.0, 1.0, 9.0], [1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [5.0, 4.0, 3.0]])
    mask = torch.tensor([[True, True, False], [True] * 3, [True] * 3, [True] * 3])
    assert ranking_accuracy(scores, mask).item() == pytest.approx(0.5)  # hit, miss, tie, hit
    assert ranking_accuracy(scores, mask, labels=torch.tensor([[0, 1, 0]] * 4)).item() == pytest.approx(0.25)
    labels = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 0, 2]])
    assert ranking_accuracy(scores, mask, labels=labels).item() == pytest.approx(0.25)


def test_pairwise_accuracy() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [4.0, 4.0, 4.0]])
    ranks = torch.tensor([[1, 3, 2], [1, 2, 2], [1, 1, 1]])
    # 2 of 3 pairs right; one equal pair of two; the last group has no pair
    assert pairwise_accuracy(scores, ranks).item() == pytest.approx((2 / 3 + 0.75) / 2)


def ndcg_by_hand(scores: list[float], labels: list[float], k: int) -> float | None:
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], labels[index]))
    dcg = sum(labels[index] / math.log2(place + 1) for place, index in enumerate(order[:k], start=1))
    ideal = sum(label / math.log2(place + 1) for place, label in enumerate(sorted(labels)[::-1][:k], start=1))
    return dcg / ideal if ideal else None


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=9),
    st.integers(1, 10),
    st.integers(0, 3),
)
def test_ndcg_equals_its_definition(documents: list[tuple[int, int]], k: int, padding: int) -> None:
    scores = [float(score) for score, _ in documents]
    labels = [float(label) for _, label in documents]
    expected = ndcg_by_hand(scores, labels, k)
    padded_scores = torch.tensor([scores + [float("nan")] * padding])
    padded_labels = torch.tensor([labels + [3.0] * padding])
    mask = torch.tensor([[True] * len(scores) + [False] * padding])
    value = in_batch_ndcg(padded_scores, padded_labels, mask, k).item()
    assert value == pytest.approx(0.0 if expected is None else expected, abs=1e-6)


def test_ndcg_agrees_with_trec_eval() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs tsarank[eval]")
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(20, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (20, 12), generator=generator)
    qrels = {str(q): {str(d): int(y) for d, y in enumerate(row)} for q, row in enumerate(labels.tolist())}
    run = {str(q): {str(d): s for d, s in enumerate(row)} for q, row in enumerate(scores.tolist())}
    results = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    expected = sum(result["ndcg_cut_10"] for result in results.values()) / len(results)
    assert in_batch_ndcg(scores, labels).item() == pytest.approx(expected, abs=1e-9)


def test_figures_carry_no_gradient() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    ranks = torch.tensor([[1, 2, 3], [3, 2, 1]])
    figures = (
        ranking_accuracy(scores),
        pairwise_accuracy(scores, ranks),
        in_batch_ndcg(scores, ranks_to_labels(ranks)),
    )
    assert not any(figure.requires_grad for figure in figures)


def test_ndcg_refuses_a_cut_off_of_zero() -> None:
    with pytest.raises(InputError, match="cut-off"):
        in_batch_ndcg(torch.zeros(1, 2), torch.ones(1, 2), k=0)

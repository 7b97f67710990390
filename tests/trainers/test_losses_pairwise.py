"""Pairwise losses against their equations written out in plain loops."""

from __future__ import annotations

import math
from random import Random

import loss_references as ref
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses_pairwise import margin_mse_loss, ranknet_loss, soft_ranknet_loss
from modeling_tsarank.trainers.losses_targets import permutation_to_ranks, scores_to_ranks


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", ref.SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ranknet_equals_equation(shape: tuple[int, int], padded: bool, reduction: str) -> None:
    scores, teacher, mask = ref.random_case(shape, 11, padded)
    ranks = scores_to_ranks(teacher.round(), mask)  # rounding makes ties, which must make no pair

    def reference(values: torch.Tensor) -> float:
        groups = zip(ref.split(values, mask), ref.split(ranks, mask), strict=True)
        return ref.mean([ref.ranknet(group, order, reduction) for group, order in groups])

    ref.assert_same(lambda values: ranknet_loss(values, ranks, mask, reduction), reference, scores)
    ref.assert_padding_is_inert(lambda values: ranknet_loss(values, ranks, mask, reduction), scores, mask)


def test_ranknet_by_hand() -> None:
    loss = ranknet_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[1, 2]]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-200, 200).map(lambda tenths: tenths / 10), min_size=2, max_size=8, unique=True),
    st.randoms(use_true_random=False),
)
def test_ranknet_direction(values: list[float], random: Random) -> None:
    """The right order costs less than any other, and most of all less than the reversed one."""
    permutation = list(range(len(values)))
    random.shuffle(permutation)
    ranks = permutation_to_ranks([permutation])
    best_first = sorted(values, reverse=True)
    right = torch.zeros(1, len(values), dtype=torch.float64)
    reverse = torch.zeros_like(right)
    for place, document in enumerate(permutation):
        right[0, document] = best_first[place]
        reverse[0, document] = best_first[-1 - place]
    given_order = torch.tensor([values], dtype=torch.float64)
    right_cost = ranknet_loss(right, ranks).item()
    assert right_cost < ranknet_loss(reverse, ranks).item()
    assert right_cost <= ranknet_loss(given_order, ranks).item() + 1e-12


def test_ranknet_descent_reaches_the_order() -> None:
    ranks = torch.tensor([[3, 1, 4, 2]])
    scores = torch.tensor([[3.0, 1.0, 4.0, 2.0]], requires_grad=True)  # the exact reverse
    optimizer = torch.optim.SGD([scores], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        ranknet_loss(scores, ranks).backward()
        optimizer.step()
    assert scores_to_ranks(scores).tolist() == ranks.tolist()


def test_ties_make_no_pair() -> None:
    scores = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    loss = ranknet_loss(scores, torch.tensor([[1, 1, 1, 1], [1, 2, 2, 2]]))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert torch.all(gradient[0] == 0)
    expected = [math.log(1 + math.exp(scores[1, j].item() - scores[1, 0].item())) for j in (1, 2, 3)]
    assert loss.item() == pytest.approx(sum(expected) / 3 / 2)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", ref.SHAPES)
def test_soft_ranknet_equals_equation(shape: tuple[int, int], padded: bool) -> None:
    scores, teacher, mask = ref.random_case(shape, 12, padded)

    def reference(values: torch.Tensor) -> float:
        groups = zip(ref.split(values, mask), ref.split(teacher, mask), strict=True)
        return ref.mean([ref.soft_ranknet(*pair) for pair in groups])

    ref.assert_same(lambda values: soft_ranknet_loss(values, teacher, mask), reference, scores)
    ref.assert_padding_is_inert(lambda values: soft_ranknet_loss(values, teacher, mask), scores, mask)


def test_soft_ranknet_is_least_at_the_teacher() -> None:
    teacher = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    scores = (teacher + 3).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_ranknet_loss(scores, teacher), scores)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", ref.SHAPES)
@pytest.mark.parametrize("pairs", ["all", "positive_negative"])
def test_margin_mse_equals_equation(shape: tuple[int, int], padded: bool, pairs: str) -> None:
    scores, teacher, mask = ref.random_case(shape, 13, padded)
    positive = torch.arange(shape[0]) % 2

    def reference(values: torch.Tensor) -> float:
        groups = zip(ref.split(values, mask), ref.split(teacher, mask), positive.tolist(), strict=True)
        return ref.mean([ref.margin_mse(s, t, None if pairs == "all" else [p]) for s, t, p in groups])

    def loss(values: torch.Tensor) -> torch.Tensor:
        labels = None if pairs == "all" else torch.nn.functional.one_hot(positive, shape[1])
        return margin_mse_loss(values, teacher, mask, labels=labels, pairs=pairs)

    ref.assert_same(loss, reference, scores)
    ref.assert_padding_is_inert(loss, scores, mask)


def test_margin_mse_takes_several_positives_from_labels() -> None:
    scores, teacher, _ = ref.random_case((1, 4), 14, padded=False)
    labels = torch.tensor([[0, 2, 0, 1]])
    loss = margin_mse_loss(scores, teacher, labels=labels, pairs="positive_negative")
    expected = ref.margin_mse(scores[0].tolist(), teacher[0].tolist(), [1, 3])
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_extreme_scores_stay_finite() -> None:
    ranks = torch.arange(1, 6).expand(2, 5)
    teacher = torch.linspace(-3, 3, 5).expand(2, 5)
    ref.assert_finite_at_extremes(lambda scores: ranknet_loss(scores, ranks), (2, 5))
    ref.assert_finite_at_extremes(lambda scores: soft_ranknet_loss(scores, teacher), (2, 5))
    ref.assert_finite_at_extremes(lambda scores: margin_mse_loss(scores, teacher), (2, 5))
    ref.assert_finite_at_extremes(lambda scores: soft_ranknet_loss(scores, teacher * 1e6), (2, 5))


def test_teacher_scores_are_constants() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    teacher = torch.randn(2, 3, requires_grad=True)
    (margin_mse_loss(scores, teacher) + soft_ranknet_loss(scores, teacher)).backward()
    assert scores.grad is not None
    assert teacher.grad is None


def test_half_precision_is_raised() -> None:
    scores = torch.tensor([[0.5, 0.25]], dtype=torch.bfloat16, requires_grad=True)
    loss = ranknet_loss(scores, torch.tensor([[1, 2]]))
    assert loss.dtype == torch.float32
    loss.backward()
    assert scores.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranknet_loss(torch.zeros(3), torch.zeros(3)), "shape"),
        (lambda: ranknet_loss(torch.zeros(1, 3), torch.zeros(1, 2)), "ranks must have the shape"),
        (lambda: ranknet_loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(3)), "mask must have the shape"),
        (lambda: ranknet_loss(torch.zeros(1, 3), torch.zeros(1, 3), None, "max"), "reduction"),
        (lambda: margin_mse_loss(torch.zeros(1, 3), torch.zeros(1, 3), pairs="some"), "pairs"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()

"""Listwise losses against their equations written out in plain loops."""

from __future__ import annotations

import math

import loss_references as ref
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses_listwise import (
    dear_loss,
    kl_to_teacher,
    lambdarank_loss,
    listnet_loss,
    listwise_softmax_loss,
)
from modeling_tsarank.trainers.losses_targets import ranks_to_labels, scores_to_ranks


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", ref.SHAPES)
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_softmax_equals_equation(shape: tuple[int, int], padded: bool, tau: float) -> None:
    scores, _, mask = ref.random_case(shape, 21, padded)
    positive = torch.arange(shape[0]) % 2

    def reference(values: torch.Tensor) -> float:
        groups = zip(ref.split(values, mask), positive.tolist(), strict=True)
        return ref.mean([ref.softmax_ce(group, [index], tau) for group, index in groups])

    def loss(values: torch.Tensor) -> torch.Tensor:
        labels = torch.nn.functional.one_hot(positive, shape[1])
        return listwise_softmax_loss(values, labels, mask=mask, temperature=tau)

    ref.assert_same(loss, reference, scores / 4)
    ref.assert_padding_is_inert(loss, scores / 4, mask)


def test_softmax_equals_torch_cross_entropy() -> None:
    scores, _, _ = ref.random_case((5, 6), 22, padded=False)
    expected = torch.nn.functional.cross_entropy(scores / 0.3, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close(listwise_softmax_loss(scores, temperature=0.3), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
def test_softmax_with_several_positives(padded: bool) -> None:
    scores, _, mask = ref.random_case((3, 6), 23, padded)
    labels = torch.tensor([[1, 0, 2, 0, 0, 0], [0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 3]])

    def reference(values: torch.Tensor) -> float:
        groups = zip(ref.split(values, mask), ref.split(labels, mask), strict=True)
        return ref.mean([ref.softmax_ce(g, [i for i, y in enumerate(grades) if y > 0], 0.5) for g, grades in groups])

    ref.assert_same(
        lambda values: listwise_softmax_loss(values, labels=labels, mask=mask, temperature=0.5), reference, scores
    )


def test_softmax_group_without_a_rival_adds_nothing() -> None:
    scores = torch.tensor([[5.0, 1.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    loss = listwise_softmax_loss(scores, mask=mask)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == pytest.approx(math.log(1 + math.e) / 2)
    assert torch.all(gradient[0] == 0)
    assert torch.isfinite(gradient).all()


def test_fully_padded_group_is_no_query() -> None:
    scores, teacher, _ = ref.random_case((2, 3), 24, padded=False)
    mask = torch.tensor([[True, True, True], [False, False, False]])
    for loss in (
        lambda s, t, m: listwise_softmax_loss(s, mask=m),
        listnet_loss,
        kl_to_teacher,
        dear_loss,
        lambda s, t, m: lambdarank_loss(s, ranks_to_labels(scores_to_ranks(t, m), m), m),
    ):
        leaf = scores.clone().requires_grad_()
        value = loss(leaf, teacher, mask)
        torch.testing.assert_close(value, loss(scores[:1], teacher[:1], mask[:1]))
        (gradient,) = torch.autograd.grad(value, leaf)
        assert torch.isfinite(gradient).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-0.4, 0), min_size=2, max_size=8), st.floats(1e-3, 10), st.floats(-5, 5))
def test_softmax_ignores_a_constant_and_order_of_negatives(values: list[float], tau: float, shift: float) -> None:
    scores = torch.tensor([values], dtype=torch.float64)
    swapped = torch.cat([scores[:, :1], scores[:, 1:].flip(1)], dim=1)
    expected = listwise_softmax_loss(scores, temperature=tau)
    torch.testing.assert_close(listwise_softmax_loss(scores + shift, temperature=tau), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(listwise_softmax_loss(swapped, temperature=tau), expected, rtol=1e-12, atol=1e-12)
    assert expected >= 0


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", ref.SHAPES)
def test_listnet_equals_equation(shape: tuple[int, int], padded: bool) -> None:
    scores, teacher, mask = ref.random_case(shape, 25, padded)

    def reference(values: torch.Tensor) -> float:
        groups = zip(ref.split(values, mask), ref.split(teacher, mask), strict=True)
        return ref.mean([ref.listnet(s, t, 1.5, 0.7) for s, t in groups])

    def loss(values: torch.Tensor) -> torch.Tensor:
        return listnet_loss(values, teacher, mask, temperature=1.5, teacher_temperature=0.7)

    ref.assert_same(loss, reference, scores)
    ref.assert_padding_is_inert(loss, scores, mask)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", ref.SHAPES)
def test_kl_equals_equation(shape: tuple[int, int], padded: bool) -> None:
    scores, teacher, mask = ref.random_case(shape, 26, padded)

    def reference(values: torch.Tensor) -> float:
        groups = zip(ref.split(values, mask), ref.split(teacher, mask), strict=True)
        return ref.mean([ref.kl(s, t, 2.0) for s, t in groups])

    ref.assert_same(lambda values: kl_to_teacher(values, teacher, mask, 2.0), reference, scores)
    ref.assert_padding_is_inert(lambda values: kl_to_teacher(values, teacher, mask, 2.0), scores, mask)
    assert kl_to_teacher(teacher + 4, teacher, mask).abs().item() < 1e-12


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("gain", "k", "sigma", "reduction"),
    [("linear", None, 1.0, "sum"), ("exponential", None, 1.0, "mean"), ("linear", 2, 0.5, "sum")],
)
def test_lambdarank_equals_equation(padded: bool, gain: str, k: int | None, sigma: float, reduction: str) -> None:
    for shape in ref.SHAPES:
        scores, teacher, mask = ref.random_case(shape, 27, padded)
        labels = teacher.round().clamp(0, 3)  # ties, and sometimes a group without a relevant document
        options = {"gain": gain, "k": k, "sigma": sigma, "reduction": reduction}

        def reference(values: torch.Tensor, labels=labels, mask=mask, options=options) -> float:
            groups = zip(ref.split(values, mask), ref.split(labels, mask), strict=True)
            return ref.mean([ref.lambdarank(s, y, **options) for s, y in groups])

        def loss(values: torch.Tensor, labels=labels, mask=mask, options=options) -> torch.Tensor:
            return lambdarank_loss(values, labels, mask, **options)

        ref.assert_same(loss, reference, scores)
        ref.assert_padding_is_inert(loss, scores, mask)


def test_lambdarank_weights_the_top_more() -> None:
    """With one relevant document, the pull against the best-placed rival is the stronger one."""
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]], requires_grad=True)
    labels = torch.tensor([[0, 0, 0, 1]])
    (gradient,) = torch.autograd.grad(lambdarank_loss(scores, labels), scores)
    pulls = gradient[0].tolist()
    assert pulls[0] > pulls[1] > pulls[2] > 0 > pulls[3]


@pytest.mark.parametrize("padded", [False, True])
def test_dear_equals_mixture(padded: bool) -> None:
    for shape in ref.SHAPES:
        scores, teacher, mask = ref.random_case(shape, 28, padded)

        def reference(values: torch.Tensor, teacher=teacher, mask=mask) -> float:
            total = []
            for s, t in zip(ref.split(values, mask), ref.split(teacher, mask), strict=True):
                best = t.index(max(t))
                ranknet = ref.soft_ranknet(s, t)
                total.append(0.2 * ref.softmax_ce(s, [best], 1.0) + 0.5 * ranknet + 0.3 * ref.kl(s, t, 3.0))
            return ref.mean(total)

        def loss(values: torch.Tensor, teacher=teacher, mask=mask) -> torch.Tensor:
            return dear_loss(
                values,
                teacher,
                mask,
                cross_entropy_weight=0.2,
                ranknet_weight=0.5,
                kl_weight=0.3,
                temperature=3.0,
            )

        ref.assert_same(loss, reference, scores)
        ref.assert_padding_is_inert(loss, scores, mask)


def test_dear_takes_given_positives() -> None:
    scores, teacher, _ = ref.random_case((2, 4), 29, padded=False)
    options = {"cross_entropy_weight": 1.0, "ranknet_weight": 0.0, "kl_weight": 0.0}
    by_label = dear_loss(scores, teacher, labels=torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]]), **options)
    of_labels = listwise_softmax_loss(scores, torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]]))
    torch.testing.assert_close(by_label, of_labels)


def test_extreme_scores_stay_finite() -> None:
    teacher = torch.linspace(-3, 3, 5).expand(2, 5)
    labels = torch.tensor([[0, 1, 2, 0, 3], [0, 0, 0, 0, 0]])
    for loss in (
        lambda scores: listwise_softmax_loss(scores, temperature=0.001),
        lambda scores: listnet_loss(scores, teacher),
        lambda scores: listnet_loss(scores, teacher * 1e6),
        lambda scores: kl_to_teacher(scores, teacher * 1e6),
        lambda scores: lambdarank_loss(scores, labels),
        lambda scores: lambdarank_loss(scores, labels, gain="exponential"),
        lambda scores: dear_loss(scores, teacher),
    ):
        ref.assert_finite_at_extremes(loss, (2, 5))


ZEROS = torch.zeros(1, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: listwise_softmax_loss(ZEROS, temperature=0.0), "temperature must be a positive number, got 0.0"),
        (lambda: listwise_softmax_loss(ZEROS, temperature=float("nan")), "temperature"),
        (lambda: listnet_loss(ZEROS, ZEROS, teacher_temperature=-1), "teacher_temperature"),
        (lambda: lambdarank_loss(ZEROS, ZEROS - 1), "at least 0"),
        (lambda: lambdarank_loss(ZEROS, ZEROS + 200, gain="exponential"), "overflow"),
        (lambda: lambdarank_loss(ZEROS, ZEROS, k=0), "cut-off"),
        (lambda: dear_loss(ZEROS, ZEROS, kl_weight=-0.1), "at least 0"),
        (lambda: dear_loss(ZEROS, ZEROS, cross_entropy_weight=0, ranknet_weight=0, kl_weight=0), "not all 0"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()

"""The losses written out from their equations in plain Python floats, and the comparison with the torch code.

Nothing here uses torch for a value: a reference is a function of nested lists. Its gradient is taken by central
differences, so that neither a value nor a gradient shares code with what is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


Group = list[float]
SHAPES = [(1, 2), (1, 5), (3, 4), (4, 7)]


def random_case(shape: tuple[int, int], seed: int, padded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, teacher scores and a mask; with `padded`, rows of different length (at least two documents)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    teacher = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    mask = torch.ones(shape, dtype=torch.bool)
    if padded:
        for row in range(shape[0]):
            kept = 2 + (row + seed) % (shape[1] - 1)
            mask[row, kept:] = False
    return scores, teacher, mask


def split(values: Tensor, mask: Tensor) -> list[Group]:
    """The real entries of each row."""
    return [row[keep].tolist() for row, keep in zip(values, mask, strict=True)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def softmax(values: Group) -> Group:
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


def softmax_ce(scores: Group, positives: list[int], tau: float) -> float:
    """Eq. 3 for each positive against the negatives."""
    negatives = [index for index in range(len(scores)) if index not in positives]
    if not negatives:
        return 0.0
    terms = []
    for positive in positives:
        listed = [positive, *negatives]
        total = sum(math.exp(scores[index] / tau) for index in listed)
        terms.append(-math.log(math.exp(scores[positive] / tau) / total))
    return mean(terms)


def ranknet(scores: Group, ranks: list[float], reduction: str) -> float:
    """Eq. 2 of TWOLAR with the sign put right."""
    terms = []
    for i in range(len(scores)):
        for j in range(len(scores)):
            if ranks[i] < ranks[j]:
                terms.append(math.log(1 + math.exp(scores[j] - scores[i])))
    return mean(terms) if reduction == "mean" else sum(terms)


def soft_ranknet(scores: Group, teacher: Group) -> float:
    terms = []
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            target = 1 / (1 + math.exp(-(teacher[i] - teacher[j])))
            student = 1 / (1 + math.exp(-(scores[i] - scores[j])))
            terms.append(-(target * math.log(student) + (1 - target) * math.log(1 - student)))
    return mean(terms)


def margin_mse(scores: Group, teacher: Group, positives: list[int] | None) -> float:
    terms = []
    for i in range(len(scores)):
        for j in range(len(scores)):
            counted = i < j if positives is None else i in positives and j not in positives
            if counted:
                terms.append(((scores[i] - scores[j]) - (teacher[i] - teacher[j])) ** 2)
    return mean(terms)


def listnet(scores: Group, teacher: Group, student_t: float, teacher_t: float) -> float:
    target = softmax([value / teacher_t for value in teacher])
    student = softmax([value / student_t for value in scores])
    return -sum(p * math.log(q) for p, q in zip(target, student, strict=True))


def kl(scores: Group, teacher: Group, t: float) -> float:
    target, student = softmax([value / t for value in teacher]), softmax([value / t for value in scores])
    return t * t * sum(p * math.log(p / q) for p, q in zip(target, student, strict=True))


def lambdarank(scores: Group, labels: Group, gain: str, k: int | None, sigma: float, reduction: str) -> float:
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    position = {document: place for place, document in enumerate(order, start=1)}
    gains = [label if gain == "linear" else 2**label - 1 for label in labels]
    ideal = sum(value / math.log2(1 + place) for place, value in enumerate(sorted(gains, reverse=True)[:k], start=1))
    if ideal == 0:
        return 0.0
    terms = []
    for i in range(len(scores)):
        for j in range(len(scores)):
            if labels[i] <= labels[j] or (k is not None and min(position[i], position[j]) > k):
                continue
            gap = abs(gains[i] - gains[j]) / ideal
            weight = gap * abs(1 / math.log2(1 + position[i]) - 1 / math.log2(1 + position[j]))
            terms.append(weight * math.log2(1 + math.exp(-sigma * (scores[i] - scores[j]))))
    return mean(terms) if reduction == "mean" else sum(terms)


def numeric_gradient(reference: Callable[[Tensor], float], scores: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a reference in float64."""
    gradient = torch.zeros_like(scores)
    for place in range(scores.numel()):
        moved = []
        for sign in (1.0, -1.0):
            shifted = scores.clone()
            shifted.view(-1)[place] += sign * step
            moved.append(reference(shifted))
        gradient.view(-1)[place] = (moved[0] - moved[1]) / (2 * step)
    return gradient


def assert_same(loss: Callable[[Tensor], Tensor], reference: Callable[[Tensor], float], scores: Tensor) -> None:
    """Value to 1e-12 and gradient to 1e-7 of the reference, and torch's own gradcheck."""
    leaf = scores.clone().requires_grad_()
    value = loss(leaf)
    assert value.ndim == 0
    torch.testing.assert_close(
        value.detach(), torch.tensor(reference(scores), dtype=torch.float64), rtol=1e-12, atol=1e-12
    )
    (gradient,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(gradient, numeric_gradient(reference, scores), rtol=1e-6, atol=1e-7)
    assert torch.autograd.gradcheck(loss, (leaf,))


def assert_padding_is_inert(loss: Callable[[Tensor], Tensor], scores: Tensor, mask: Tensor) -> None:
    """Whatever stands at padding, NaN and infinities included, changes neither value nor gradient."""
    results = []
    for filler in (0.0, 1e6, float("nan"), float("inf"), float("-inf")):
        leaf = torch.where(mask, scores, torch.full_like(scores, filler)).requires_grad_()
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert torch.all(gradient[~mask] == 0)
        results.append((value.detach(), gradient))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


def assert_finite_at_extremes(loss: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> None:
    """Finite values and gradients for scores up to 1e6 in float32, in every order and all equal."""
    ladder = torch.linspace(-1e6, 1e6, shape[1]).expand(shape)
    for scores in (ladder, -ladder, torch.zeros(shape), torch.full(shape, 1e6), torch.full(shape, -1e6)):
        leaf = scores.clone().requires_grad_()
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


def with_scores(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a teacher's scores, which are the lengths of the texts, here and there."""
    positives, negatives = ([len(text) % 7 / 5 for text in row[name]] for name in ("positives", "negatives"))
    return {**row, "positive_scores": positives, "negative_scores": negatives}

"""Likelihood losses and the register: against the equations in plain loops, and the exact zero of the penalty."""

from __future__ import annotations

import math

import loss_references as ref
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses import OBJECTIVES, get_objective
from modeling_tsarank.trainers.losses_likelihood import (
    SCORE_FORMS,
    differential_penalty,
    next_token_loss,
    ranking_score,
    token_kl,
)
from modeling_tsarank.trainers.losses_listwise import lambdarank_loss, listwise_softmax_loss
from modeling_tsarank.trainers.losses_pairwise import ranknet_loss
from modeling_tsarank.trainers.losses_targets import permutation_to_ranks, ranks_to_labels, scores_to_ranks


FORMULAS = {
    "geometric_mean": lambda logs: math.prod(math.exp(value) for value in logs) ** (1 / len(logs)),
    "mean_log_prob": lambda logs: sum(logs) / len(logs),
    "sum_log_prob": sum,
    "product": lambda logs: math.prod(math.exp(value) for value in logs),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-8, 0), min_size=1, max_size=12), st.sampled_from(SCORE_FORMS))
def test_ranking_score_equals_formula(logs: list[float], form: str) -> None:
    total = torch.tensor([sum(logs)], dtype=torch.float64)
    score = ranking_score(total, torch.tensor([len(logs)]), form)
    assert score.item() == pytest.approx(FORMULAS[form](logs), rel=1e-9)


@pytest.mark.parametrize("form", SCORE_FORMS)
def test_ranking_score_gradient_and_extremes(form: str) -> None:
    counts = torch.tensor([[3, 7, 0]])
    total = torch.tensor([[-4.0, -9.0, 0.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: ranking_score(values, counts, form), (total,))
    extreme = torch.tensor([[-1e6, 0.0, -1e-6]], requires_grad=True)
    score = ranking_score(extreme, counts, form)
    score.sum().backward()
    assert torch.isfinite(score).all()
    assert torch.isfinite(extreme.grad).all()


def test_ranking_score_keeps_half_precision_apart() -> None:
    """bfloat16 would round exp(-2.00) and exp(-2.005) together, and tau = 0.001 lives on such differences."""
    total = torch.tensor([[-16.0, -16.125]], dtype=torch.bfloat16)
    score = ranking_score(total, torch.tensor([[8, 8]]))
    assert score.dtype == torch.float32
    assert score[0, 0] - score[0, 1] > 1e-3


def test_published_ranking_loss_is_eq3_on_the_geometric_mean() -> None:
    logs = [[-1.0, -2.0, -0.5], [-1.2, -2.4, -0.9], [-3.0, -1.0, -2.0]]
    totals = torch.tensor([[sum(row) for row in logs]], dtype=torch.float64)
    loss = listwise_softmax_loss(ranking_score(totals, torch.full((1, 3), 3)), temperature=0.05)
    scores = [FORMULAS["geometric_mean"](row) for row in logs]
    assert loss.item() == pytest.approx(ref.softmax_ce(scores, [0], 0.05), rel=1e-12)


def test_the_literal_product_has_no_gradient_for_a_real_query() -> None:
    totals = torch.tensor([[-120.0, -150.0]], requires_grad=True)
    loss = listwise_softmax_loss(ranking_score(totals, torch.full((1, 2), 30), "product"), temperature=0.001)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.all(totals.grad == 0)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", ref.SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("positives", [1, 2, 0])
def test_next_token_loss_equals_equation(shape: tuple[int, int], padded: bool, reduction: str, positives: int) -> None:
    """Of none, one or two positives of each group, which add their mean."""
    likelihoods, _, mask = ref.random_case(shape, 31, padded)
    lengths = torch.arange(shape[0] * shape[1]).view(shape) % 5 + 1
    labels = torch.zeros(shape)
    labels[:, 1 : 1 + positives] = 2.0
    given = None if positives == 1 else labels

    def loss(values: torch.Tensor) -> torch.Tensor:
        return next_token_loss(values, lengths, given, mask, reduction)

    def reference(values: torch.Tensor) -> float:
        groups = []
        for row, counts, keep, grades in zip(values, lengths, mask, labels, strict=True):
            places = [0] if given is None else [i for i in range(shape[1]) if keep[i] and grades[i] > 0]
            groups.append(ref.mean([-float(row[i]) / (int(counts[i]) if reduction == "mean" else 1) for i in places]))
        return ref.mean(groups)

    ref.assert_same(loss, reference, likelihoods)
    ref.assert_padding_is_inert(loss, likelihoods, mask)


def token_kls(reference: torch.Tensor, values: torch.Tensor) -> list[float]:
    found = []
    for p_row, q_row in zip(reference.tolist(), values.tolist(), strict=True):
        p, q = ref.softmax(p_row), ref.softmax(q_row)
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return found


@pytest.mark.parametrize("block", [None, 1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 2), (5, 7), (6, 3)])
def test_divergences_equal_the_equation(shape: tuple[int, int], block: int | None) -> None:
    logits, reference, _ = ref.random_case(shape, 32, padded=False)
    weights = torch.linspace(0.5, 2.5, shape[0], dtype=torch.float64)

    def by_loops(values: torch.Tensor) -> float:
        return sum(w * value for w, value in zip(weights.tolist(), token_kls(reference, values), strict=True))

    ref.assert_same(lambda values: (weights * token_kl(reference, values, block)).sum(), by_loops, logits)


@pytest.mark.parametrize("padded", [False, True])
def test_penalty_is_the_mean_over_a_groups_query_tokens(padded: bool) -> None:
    divergences, _, mask = ref.random_case((3, 4), 33, padded)
    lengths = torch.tensor([[1, 2, 3, 4], [5, 5, 5, 5], [2, 1, 2, 1]])

    def by_loops(values: torch.Tensor) -> float:
        rows = zip(ref.split(values, mask), ref.split(lengths, mask), strict=True)
        return ref.mean([sum(row) / sum(counts) for row, counts in rows])

    ref.assert_same(lambda values: differential_penalty(values, lengths, mask), by_loops, divergences)
    ref.assert_padding_is_inert(lambda values: differential_penalty(values, lengths, mask), divergences, mask)


def test_penalty_direction_is_reference_first() -> None:
    """KL(p_cpt || p_sft): an event the reference finds impossible costs nothing, the other way round it would."""
    certain = torch.tensor([[20.0, -20.0]], dtype=torch.float64)
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert token_kl(certain, even).item() == pytest.approx(math.log(2), abs=1e-6)
    assert token_kl(even, certain).item() == pytest.approx(20 - math.log(2), abs=1e-6)


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [None, 1, 3])
def test_penalty_is_exactly_zero_at_the_start(dtype: torch.dtype, block: int | None, device: str) -> None:
    """Identical logits, in memory of different alignment and stride: exactly 0, and so is the gradient."""
    logits = (torch.randn(7, 1001, generator=torch.Generator().manual_seed(5)) * 9).to(device, dtype)
    shifted = torch.empty(logits.numel() + 3, dtype=dtype, device=device)[3:].view_as(logits).copy_(logits)
    transposed = logits.t().contiguous().t()
    for reference in (logits.clone(), shifted, transposed):
        leaf = logits.clone().requires_grad_()
        loss = token_kl(reference, leaf, block).mean()
        loss.backward()
        assert loss.item() == 0
        assert torch.all(leaf.grad == 0)
        assert leaf.grad.dtype == dtype


def test_penalty_at_the_start_leaves_weights_untouched() -> None:
    """Through a real output layer: the gradient that reaches the weights is exactly 0 in float32."""
    torch.manual_seed(0)
    hidden = torch.randn(12, 16)
    head = torch.nn.Linear(16, 503)
    with torch.no_grad():
        reference = head(hidden)
    token_kl(reference, head(hidden)).mean().backward()
    assert torch.all(head.weight.grad == 0)
    assert torch.all(head.bias.grad == 0)
    with torch.no_grad():
        head.weight[7] += 0.1
    head.zero_grad()
    moved = token_kl(reference, head(hidden)).mean()
    moved.backward()
    assert moved.item() > 0
    assert head.weight.grad.abs().sum() > 0


def test_penalty_keeps_no_vocabulary_sized_tensor_but_its_inputs() -> None:
    logits = torch.randn(8, 100, requires_grad=True)
    reference = torch.randn(8, 100)
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_kl(reference, logits, 2)
    large = {tensor.data_ptr() for tensor in kept if tensor.numel() >= 800}
    assert large == {logits.data_ptr(), reference.data_ptr()}


def test_penalty_gives_the_reference_no_gradient() -> None:
    reference = torch.randn(3, 5, requires_grad=True)
    logits = torch.randn(3, 5, requires_grad=True)
    token_kl(reference, logits).sum().backward()
    assert reference.grad is None
    assert logits.grad.abs().sum() > 0


def test_penalty_with_extreme_logits() -> None:
    reference = torch.tensor([[1e4, -1e4, 0.0], [float("-inf"), 0.0, 1.0]])
    logits = torch.tensor([[-1e4, 1e4, 0.0], [float("-inf"), 2.0, 1.0]], requires_grad=True)
    values = token_kl(reference, logits)
    values.sum().backward()
    assert values.tolist() == pytest.approx([2e4, values[1].item()])
    assert 0 < values[1] < 1
    assert torch.isfinite(logits.grad).all()


def test_penalty_of_no_token_is_zero() -> None:
    logits = torch.empty(0, 5, requires_grad=True)
    assert token_kl(torch.empty(0, 5), logits).shape == (0,)
    divergences = torch.zeros(1, 2, requires_grad=True)
    loss = differential_penalty(divergences, torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("name", sorted(name for name, one in OBJECTIVES.items() if one.takes("scores")))
def test_every_registered_loss_prefers_the_right_order(name: str) -> None:
    """By its register entry alone: names what it needs, and descends towards the targets' best document."""
    teacher = torch.tensor([[2.0, 0.5, -1.0, 0.0], [0.0, 3.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    ranks = scores_to_ranks(teacher, mask)
    targets = {"ranks": ranks, "labels": ranks_to_labels(ranks, mask), "teacher_scores": teacher}
    if name == "listwise_softmax":
        targets["labels"] = (ranks == 1).long()
    loss = get_objective(name)
    rest = {**targets, "mask": mask}
    scores = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    assert loss({"scores": teacher, **rest}) < loss({"scores": -teacher, **rest})
    (gradient,) = torch.autograd.grad(loss({"scores": scores, **rest}), scores)
    assert gradient.argmin(dim=1).tolist() == [0, 1]
    assert torch.all(gradient[1, 2:] == 0)
    assert loss.description


def test_register_derives_only_what_follows() -> None:
    teacher = torch.tensor([[2.0, 0.5, -1.0]])
    permutation = permutation_to_ranks([[0, 1, 2]])
    scores = torch.tensor([[0.1, 0.9, 0.4]])
    expected = ranknet_loss(scores, permutation)
    assert torch.equal(OBJECTIVES["ranknet"]({"scores": scores, "teacher_scores": teacher}), expected)
    assert torch.equal(OBJECTIVES["ranknet"]({"scores": scores, "labels": torch.tensor([[3, 2, 0]])}), expected)
    grades = torch.tensor([[2, 1, 0]])
    assert torch.equal(
        OBJECTIVES["lambdarank"]({"scores": scores, "ranks": permutation}), lambdarank_loss(scores, grades)
    )
    for name, targets in (("listnet", {"ranks": permutation}), ("listwise_softmax", {"teacher_scores": teacher})):
        with pytest.raises(InputError, match=f"the loss {name} needs"):
            OBJECTIVES[name]({"scores": scores, **targets})


def test_register_passes_options_on() -> None:
    scores = torch.tensor([[0.1, 0.9]])
    labels = torch.tensor([[1, 0]])
    loss = OBJECTIVES["listwise_softmax"]({"scores": scores, "labels": labels}, temperature=0.1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(8)), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranking_score(torch.zeros(1), torch.ones(1), "mean"), "geometric_mean"),
        (lambda: next_token_loss(torch.zeros(3), torch.ones(3)), r"\(groups, documents\)"),
        (lambda: next_token_loss(torch.zeros(1, 3), torch.ones(1, 2)), r"\(1, 2\)"),
        (lambda: next_token_loss(torch.zeros(1, 3), torch.ones(1, 3), reduction="max"), "reduction"),
        (lambda: differential_penalty(torch.zeros(2, 3), torch.zeros(2, 4)), r"\(2, 4\)"),
        (lambda: token_kl(torch.zeros(2, 3), torch.zeros(2, 4)), r"\(2, 3\) and \(2, 4\)"),
        (lambda: token_kl(torch.zeros(2, 3), torch.zeros(2, 3), 0), "at least 1"),
        (lambda: get_objective("hinge"), "listwise_softmax"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()

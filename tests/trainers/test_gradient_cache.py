"""Gradient caching: chunks cover a batch once, and their gradients are those of the whole."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.gradient_cache import (
    RandomState,
    add_idle_chunks,
    cached_backward,
    plan_chunks,
    run_chunks,
)
from modeling_tsarank.trainers.losses import OBJECTIVES
from modeling_tsarank.trainers.losses_likelihood import SCORE_FORMS


CPU = torch.device("cpu")
FAST_T5 = ("ranknet", "listwise_softmax", "margin_mse")


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """|g - g'| / |g'| over all parameters together."""
    assert found.keys() == expected.keys()
    total = sum(value.double().square().sum() for value in expected.values())
    assert total > 0
    wrong = sum((found[name].double() - expected[name].double()).square().sum() for name in expected)
    return float((wrong / total).sqrt())


def whole_gradients(trainer: Any, batch: Any, gradients: Any) -> dict[str, torch.Tensor]:
    """The gradients of the loss of the whole batch in one graph, in one padded run of all pairs."""
    trainer.args.chunk_tokens = 0
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    return gradients(trainer)


def chunked_gradients(trainer: Any, batch: Any, gradients: Any, chunk_tokens: int) -> dict[str, torch.Tensor]:
    trainer.args.chunk_tokens = chunk_tokens
    assert len(trainer._plan(batch)[0]) >= 3
    trainer.training_step(trainer.model, batch)
    return gradients(trainer)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    budget=st.one_of(st.none(), st.integers(1, 200)),
    data=st.data(),
)
def test_chunks_hold_every_pair_and_value_once(lengths: list[int], budget: int | None, data: Any) -> None:
    counts = data.draw(st.lists(st.integers(1, 5), min_size=len(lengths), max_size=len(lengths)))
    chunks = plan_chunks(lengths, counts, budget)
    assert sorted(pair for chunk in chunks for pair in chunk.pairs) == list(range(len(lengths)))
    assert sorted(torch.cat([chunk.slots for chunk in chunks]).tolist()) == list(range(sum(counts)))
    for chunk in chunks:
        longest = max(lengths[pair] for pair in chunk.pairs)
        assert budget is None or len(chunk.pairs) == 1 or len(chunk.pairs) * longest <= budget
    if budget is None:
        assert len(chunks) == 1
        assert chunks[0].pairs == tuple(range(len(lengths)))


def test_a_batch_without_pairs_is_an_error() -> None:
    with pytest.raises(InputError, match="no \\(query, document\\) pair"):
        plan_chunks([], [], 10)


def test_values_come_back_in_the_order_of_the_batch() -> None:
    lengths, counts = [3, 9, 1, 5], [2, 1, 3, 1]
    values = torch.arange(7.0)
    chunks = plan_chunks(lengths, counts, 9)
    assert len(chunks) > 1
    result = run_chunks(add_idle_chunks(chunks, 6), 7, lambda chunk: {"v": values[chunk.slots]})
    assert torch.equal(result["v"], values)


def check_exactness(make: Any, first_batch: Any, perturb: Any, gradients: Any) -> None:
    """Chunked gradients equal the whole batch's in float64 to 1e-10 and in float32 to 1e-6 (relative).

    Two float32 evaluations of one gradient differ by rounding, and where the whole batch's own gradient is further
    than 0.5e-6 from the float64 one (full fine-tuning, scores magnified by a small temperature), that bounds them.
    """
    whole, chunked = {}, {}
    for dtype in (torch.float64, torch.float32):
        trainer = make(dtype)
        perturb(trainer)
        batch = first_batch(trainer, 3)
        whole[dtype] = whole_gradients(trainer, batch, gradients)
        chunked[dtype] = chunked_gradients(trainer, batch, gradients, chunk_tokens=60)
    truth = whole[torch.float64]
    assert relative_error(chunked[torch.float64], truth) < 1e-10
    rounding = relative_error(whole[torch.float32], truth)
    assert rounding < 1e-4
    assert relative_error(chunked[torch.float32], truth) < 2 * rounding + 1e-7
    assert relative_error(chunked[torch.float32], whole[torch.float32]) < max(1e-6, 2 * rounding)


# T5 is the slowest family: three of its losses in every run of the tests, the others among the slow ones.
CASES = [
    pytest.param(loss, family, marks=pytest.mark.slow if family == "twolar_t5" and loss not in FAST_T5 else ())
    for loss in sorted(name for name, objective in OBJECTIVES.items() if not objective.linear)
    for family in ("tsarank", "twolar", "twolar_t5")
]


@pytest.mark.parametrize("part", ["lora", "top_blocks"])
@pytest.mark.parametrize(("loss", "family"), CASES)
def test_distillation_gradients_are_exact(
    loss: str,
    family: str,
    part: str,
    make_ranker: Any,
    make_trainer: Any,
    first_batch: Any,
    perturb: Any,
    gradients: Any,
) -> None:
    def make(dtype: torch.dtype) -> Any:
        # T5's attention is not scaled: with large weights it saturates, and float32 rounds its gradients by 1e-4.
        options = {"sharpen": False, "initializer_factor": 0.5} if family == "twolar_t5" else {}
        ranker = make_ranker(family, dtype=dtype, **options)
        return make_trainer("distill", ranker=ranker, loss=loss, trainable=part)

    check_exactness(make, first_batch, perturb, gradients)


@pytest.mark.parametrize("part", ["lora", "top_blocks", "full"])
@pytest.mark.parametrize("form", SCORE_FORMS)
def test_fine_tuning_gradients_are_exact(
    form: str, part: str, make_ranker: Any, make_trainer: Any, first_batch: Any, perturb: Any, gradients: Any
) -> None:
    """With the Differential Penalty and next-token prediction in the same second pass."""
    temperature = {"geometric_mean": 0.001, "product": 0.001}.get(form, 0.1)

    def make(dtype: torch.dtype) -> Any:
        ranker = make_ranker(dtype=dtype)
        return make_trainer("sft", ranker=ranker, trainable=part, score_form=form, temperature=temperature)

    check_exactness(make, first_batch, perturb, gradients)


@pytest.mark.parametrize("part", ["lora", "top_blocks"])
@pytest.mark.parametrize("chunk_tokens", [1, 120])
def test_gradients_are_exact_for_any_size_of_chunk(
    chunk_tokens: int, part: str, make_ranker: Any, make_trainer: Any, first_batch: Any, perturb: Any, gradients: Any
) -> None:
    trainer = make_trainer("sft", ranker=make_ranker(dtype=torch.float64), trainable=part)
    perturb(trainer)
    batch = first_batch(trainer, 12)
    expected = whole_gradients(trainer, batch, gradients)
    assert relative_error(chunked_gradients(trainer, batch, gradients, chunk_tokens), expected) < 1e-13


def test_the_loss_is_the_same_in_chunks(make_trainer: Any, first_batch: Any, perturb: Any) -> None:
    trainer = make_trainer("sft", trainable="lora")
    perturb(trainer)
    batch = first_batch(trainer)
    trainer.args.chunk_tokens = 0
    whole = trainer.training_step(trainer.model, batch)
    trainer.args.chunk_tokens = 60
    assert trainer.training_step(trainer.model, batch).item() == pytest.approx(whole.item(), rel=1e-6)


def test_a_reference_of_another_size_of_penalty_does_change_the_gradient(
    make_trainer: Any, first_batch: Any, perturb: Any, gradients: Any
) -> None:
    """The exactness tests would be blind to a penalty that is left out of both sides."""
    found = []
    for dp in (True, False):
        trainer = make_trainer("sft", trainable="top_blocks", dp=dp)
        perturb(trainer)
        found.append(chunked_gradients(trainer, first_batch(trainer), gradients, 60))
    assert relative_error(found[0], found[1]) > 1e-3


def test_idle_chunks_change_no_gradient(
    make_trainer: Any, first_batch: Any, perturb: Any, gradients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("sft", trainable="top_blocks")
    perturb(trainer)
    batch = first_batch(trainer)
    expected = chunked_gradients(trainer, batch, gradients, 60)
    plan = trainer._plan

    def with_idle(batch: Any) -> Any:
        chunks, size = plan(batch)
        return add_idle_chunks(chunks, len(chunks) + 2), size

    monkeypatch.setattr(trainer, "_plan", with_idle)
    found = chunked_gradients(trainer, batch, gradients, 60)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_dropout_masks_are_replayed() -> None:
    """The gradient belongs to the masks that the loss was computed with."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    inputs = torch.randn(10, 6, dtype=torch.float64)
    chunks = plan_chunks([4, 9, 2, 7, 7, 1, 3, 3, 8, 5], [1] * 10, 16)
    assert len(chunks) > 2

    def run(chunk: Any, second_pass: bool = True) -> dict[str, torch.Tensor]:
        return {"scores": network(inputs[list(chunk.pairs)]).squeeze(-1)}

    def objective(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.logsumexp(values["scores"], 0) - values["scores"][3] ** 2

    def synchronizing(last: bool) -> Any:
        return contextlib.nullcontext()

    torch.manual_seed(3)
    values = cached_backward(chunks, 10, run, objective, torch.Tensor.backward, synchronizing, CPU)
    found = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    torch.manual_seed(3)
    one_graph = run_chunks(chunks, 10, run)
    objective(one_graph).backward()
    assert torch.equal(values["scores"], one_graph["scores"])
    for parameter, gradient in zip(network.parameters(), found, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


def test_replaying_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    state = RandomState(CPU)
    first = torch.rand(3)
    after = torch.get_rng_state()
    with state.replayed():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), after)


def test_processes_synchronize_once() -> None:
    weight = nn.Parameter(torch.ones(1))
    entered: list[bool] = []

    @contextlib.contextmanager
    def synchronizing(last: bool) -> Any:
        entered.append(last)
        yield

    def run(chunk: Any, second_pass: bool) -> dict[str, torch.Tensor]:
        return {"scores": weight * torch.ones(len(chunk.pairs))}

    chunks = plan_chunks([5, 5, 5], [1] * 3, 5)
    cached_backward(chunks, 3, run, lambda v: v["scores"].sum(), torch.Tensor.backward, synchronizing, CPU)
    assert entered == [False, False, True]
    assert weight.grad.item() == 3


def test_a_loss_that_ignores_the_scores_is_an_error() -> None:
    weight = nn.Parameter(torch.ones(1))

    def run(chunk: Any, second_pass: bool) -> dict[str, torch.Tensor]:
        return {"scores": weight * torch.ones(len(chunk.pairs))}

    def objective(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.ones((), requires_grad=True) * 2

    chunks = plan_chunks([5, 5], [1, 1], 5)
    with pytest.raises(InputError, match="does not depend"):
        cached_backward(chunks, 2, run, objective, torch.Tensor.backward, lambda last: contextlib.nullcontext(), CPU)

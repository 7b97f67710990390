"""The penalty's reference: equal bit for bit at the start, unmoved by training, and lean."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeling_tsarank.trainers.losses_likelihood import token_kl
from modeling_tsarank.trainers.reference import (
    AdapterReference,
    ModelReference,
    TopBlocksReference,
    make_reference,
)
from modeling_tsarank.trainers.trainable import TrainablePart, disable_dropout, make_trainable, trained_parameters


KINDS = {
    "lora": AdapterReference,
    "lora in top blocks": AdapterReference,
    "top_blocks": TopBlocksReference,
    "full": ModelReference,
}


def make_part(ranker: Any, kind: str, top_blocks: int = 2) -> TrainablePart:
    part, *rest = kind.split()
    return make_trainable(ranker, part, top_blocks=top_blocks, lora_top_blocks=top_blocks if rest else None)


@pytest.fixture
def call() -> Any:
    """Query logits of four right-padded pairs."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (4, 20), generator=generator)
    query = torch.zeros(4, 20, dtype=torch.bool)
    for row, end in enumerate((20, 13, 17, 9)):
        query[row, end - 3 : end] = True
        ids[row, end:] = 3
    return lambda model: model.query_logits(ids, query)


def move(ranker: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in trained_parameters(ranker.backbone):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "bloom"])
@pytest.mark.parametrize("part", sorted(KINDS))
def test_reference_is_the_start_bit_for_bit_before_and_after(
    part: str, architecture: str, make_ranker: Any, call: Any
) -> None:
    ranker = make_ranker(architecture=architecture)
    disable_dropout(ranker.backbone)
    start = call(ranker).detach()
    trained_part = make_part(ranker, part)
    reference = make_reference(ranker, trained_part)
    assert type(reference) is KINDS[part]
    ranker.train()
    found, trained = reference.both(ranker, call)
    assert torch.equal(found, trained)
    assert torch.equal(found, start)
    assert trained.requires_grad
    assert not found.requires_grad
    move(ranker)
    found, trained = reference.both(ranker, call)
    assert torch.equal(found, start)
    assert not torch.equal(trained, start)
    assert ranker.training
    assert all(parameter.requires_grad for _, parameter in trained_parameters(ranker.backbone))


def test_every_block_may_be_trained(make_ranker: Any, call: Any) -> None:
    ranker = make_ranker()
    start = call(ranker).detach()
    reference = make_reference(ranker, make_trainable(ranker, "top_blocks", top_blocks=4))
    move(ranker)
    assert torch.equal(reference.both(ranker, call)[0], start)


@pytest.mark.parametrize(("kind", "top_runs"), [("top_blocks", 1), ("lora in top blocks", 2)])
def test_the_trunk_runs_once_and_the_model_is_left_whole(
    kind: str, top_runs: int, make_ranker: Any, call: Any
) -> None:
    ranker = make_ranker()
    reference = make_reference(ranker, make_part(ranker, kind))
    names = set(dict(ranker.named_parameters()))
    blocks = ranker.backbone.model.layers
    runs = [0] * 4
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
    reference.both(ranker, call)
    assert runs == [1, 1, top_runs, top_runs]
    assert ranker.backbone.model.layers is blocks
    assert set(dict(ranker.named_parameters())) == names


@pytest.mark.parametrize("kind", ["top_blocks", "lora in top blocks"])
def test_a_shared_trunk_changes_no_gradient(kind: str, make_ranker: Any, call: Any) -> None:
    """Against a reference that is a model of its own, in float64."""
    gradients = []
    for shared in (False, True):
        ranker = make_ranker().double()
        part = make_part(ranker, kind)
        reference = make_reference(ranker, part, given=None if shared else make_ranker().double())
        move(ranker)
        found, trained = reference.both(ranker, call)
        token_kl(found, trained).sum().backward()
        gradients.append([parameter.grad for _, parameter in trained_parameters(ranker.backbone)])
    for separate, together in zip(*gradients, strict=True):
        torch.testing.assert_close(together, separate, rtol=1e-12, atol=1e-14)


def test_an_error_leaves_the_model_whole(make_ranker: Any) -> None:
    ranker = make_ranker()
    reference = make_reference(ranker, make_trainable(ranker, "top_blocks", top_blocks=2))
    blocks, calls = ranker.backbone.model.layers, []

    def fail(model: Any) -> torch.Tensor:
        calls.append(model.backbone.model.layers)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="out of memory"):
        reference.both(ranker, fail)
    assert calls[1] is not blocks
    assert ranker.backbone.model.layers is blocks
    assert not blocks[1]._forward_hooks


def test_extra_memory(make_ranker: Any) -> None:
    def size(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    two_blocks = size(make_ranker().backbone.model.layers[:2])
    expected = {"lora": 0, "lora in top blocks": 0, "top_blocks": two_blocks, "full": size(make_ranker())}
    for part, count in expected.items():
        ranker = make_ranker()
        reference = make_reference(ranker, make_part(ranker, part))
        assert size(reference) == count
        assert not any(parameter.requires_grad for parameter in reference.parameters())


def test_reference_does_not_drop_out(make_ranker: Any, call: Any) -> None:
    """Even where the trained model keeps its dropout."""
    for part in KINDS:
        ranker = make_ranker(architecture="gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.0)
        # A trunk of TopBlocksReference would drop out with the trained model, whose hidden states it hands on.
        reference = make_reference(ranker, make_part(ranker, part, 4 if part == "top_blocks" else 2))
        ranker.train()
        reference.train()
        first, trained = reference.both(ranker, call)
        assert torch.equal(first, reference.both(ranker, call)[0])
        assert not torch.equal(first, trained)


def test_a_given_model_is_used(make_ranker: Any, call: Any) -> None:
    ranker, other = make_ranker(), make_ranker(architecture="qwen3")
    expected = call(other).detach()
    reference = make_reference(ranker, make_trainable(ranker, "lora"), given=other)
    assert torch.equal(reference.both(ranker, call)[0], expected)


@pytest.mark.parametrize("part", ["lora", "lora in top blocks", "top_blocks"])
def test_reference_under_activation_checkpointing(part: str, make_ranker: Any, call: Any) -> None:
    gradients = []
    for checkpointing in (False, True):
        ranker = make_ranker()
        reference = make_reference(ranker, make_part(ranker, part))
        if checkpointing:
            ranker.backbone.activation_checkpointing_enable()
        ranker.train()
        move(ranker)
        found, trained = reference.both(ranker, call)
        (found - trained).square().sum().backward()
        gradients.append([parameter.grad for _, parameter in trained_parameters(ranker.backbone)])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-6)

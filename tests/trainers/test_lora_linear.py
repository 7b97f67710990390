"""LoRA as one operation: the same function, gradients and files as PEFT's own layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from torch import nn

from modeling_tsarank.trainers.lora_linear import fuse_lora
from modeling_tsarank.trainers.trainable import make_trainable


WIDTHS = (12, 20, 8)


class Two(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.one = nn.Linear(WIDTHS[0], WIDTHS[1], bias=bias)
        self.two = nn.Linear(WIDTHS[1], WIDTHS[2], bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(x)))


def adapted(dtype: torch.dtype = torch.float64, bias: bool = False, **options: Any) -> Any:
    torch.manual_seed(1)
    model = get_peft_model(
        Two(bias).to(dtype), LoraConfig(r=3, lora_alpha=7, target_modules=["one", "two"], **options)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def outcome(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Output and all gradients, the input's included."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    (y.float() if y.dtype == torch.bfloat16 else y).square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return [y.detach(), x.grad, *(one.clone() for one in gradients)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, WIDTHS[0]), (2, 3, WIDTHS[0])])
def test_values_and_gradients_are_those_of_peft(bias: bool, shape: tuple[int, ...]) -> None:
    plain = adapted(bias=bias)
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == 2
    x = torch.randn(shape, dtype=torch.float64)
    expected, got = outcome(plain, x), outcome(fused, x)
    assert len(got) == 6
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_derivatives() -> None:
    fused = adapted(bias=True)
    fuse_lora(fused)
    x = torch.randn(4, WIDTHS[0], dtype=torch.float64, requires_grad=True)
    trained = [parameter for parameter in fused.parameters() if parameter.requires_grad]
    torch.autograd.gradcheck(lambda *_: fused(x), (x, *trained))


def test_under_autocast_it_computes_in_bfloat16_as_near_to_float64_as_peft() -> None:
    exact, plain = adapted(bias=True), adapted(torch.float32, bias=True)
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    x = torch.randn(64, WIDTHS[0])
    truth = outcome(exact, x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = outcome(plain, x), outcome(fused, x)
    assert ours[0].dtype == torch.bfloat16
    assert all(one.dtype == torch.float32 for one in ours[1:])
    for true, their, our in zip(truth, theirs, ours, strict=True):
        error, reference = ((one.double() - true).norm() / true.norm() for one in (our, their))
        assert 0 < error < max(2 * reference, 0.01)


def test_the_frozen_copy_follows_the_weight() -> None:
    fused = adapted(torch.float32)
    fuse_lora(fused)
    x = torch.randn(4, WIDTHS[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = fused(x)
        with torch.no_grad():
            fused.base_model.model.one.base_layer.weight.mul_(2)
        changed = fused(x)
        fresh = adapted(torch.float32)
        fuse_lora(fresh)
        with torch.no_grad():
            fresh.base_model.model.one.base_layer.weight.mul_(2)
        assert not torch.equal(before, changed)
        assert torch.equal(changed, fresh(x))
    assert not any("frozen_copy" in name for name in fused.state_dict())


def test_training_goes_on_after_an_evaluation_in_inference_mode() -> None:
    fused = adapted(torch.float32)
    fuse_lora(fused)
    x = torch.randn(4, WIDTHS[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.inference_mode():
            fused(x)
        fused(x).float().sum().backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_switched_off_it_is_the_base_layer(autocast: bool) -> None:
    fused = adapted(torch.float32, bias=True)
    base = copy.deepcopy(fused).unload()
    fuse_lora(fused)
    x = torch.randn(2, 4, WIDTHS[0])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), fused.disable_adapter():
        assert torch.equal(fused(x), base(x))


def test_an_untrained_adapter_changes_no_bit() -> None:
    torch.manual_seed(2)
    plain = Two(True)
    fused = get_peft_model(copy.deepcopy(plain), LoraConfig(target_modules=["one", "two"]))
    fuse_lora(fused)
    x = torch.randn(3, 5, WIDTHS[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fused(x), plain(x))
    assert torch.equal(fused(x), plain(x))


def _merged(model: Any) -> None:
    model.merge_adapter()


def _second_adapter(model: Any) -> None:
    model.add_adapter("other", LoraConfig(r=2, target_modules=["one"]))
    model.base_model.set_adapter(["default", "other"])


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "dora": ({"use_dora": True}, None),
    "lora_bias": ({"bias": True, "lora_bias": True}, None),
    "merged": ({}, _merged),
    "two_adapters": ({}, _second_adapter),
}


@pytest.mark.parametrize("case", list(CASES))
def test_other_layers_are_left_to_peft(case: str) -> None:
    options, change = CASES[case]
    plain = adapted(**options)
    if change is not None:
        change(plain)
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    x = torch.randn(4, WIDTHS[0], dtype=torch.float64)
    assert torch.equal(fused(x), plain(x))


def test_dropout_is_left_to_peft_while_training() -> None:
    plain = adapted(lora_dropout=0.5)
    fused = copy.deepcopy(plain)
    fuse_lora(fused)
    x = torch.randn(4, WIDTHS[0], dtype=torch.float64)
    for model in (plain, fused):
        model.train()
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    assert torch.equal(fused(x), expected)
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


def test_the_adapter_is_saved_as_peft_saves_it(tmp_path: Any) -> None:
    fused = adapted(torch.float32)
    fuse_lora(fused)
    x = torch.randn(4, WIDTHS[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused(x)
    fused.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = PeftModel.from_pretrained(Two(False), str(tmp_path))
    torch.testing.assert_close(again(x), fused(x))


def test_trainings_use_it(make_ranker: Any) -> None:
    ranker = make_ranker()
    make_trainable(ranker, "lora", lora_top_blocks=2)
    layers = [layer for layer in ranker.backbone.modules() if isinstance(layer, PeftLinear)]
    assert len(layers) == 14
    assert {type(layer).__name__ for layer in layers} == {"FusedLoraLinear"}

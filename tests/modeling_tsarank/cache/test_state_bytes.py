"""Document states as bytes: exact where they must be, small where they should be, and never taken for another's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.cache.state_bytes import (
    CHANNEL_SCALES_FROM,
    DamagedStatesError,
    Layers,
    check_state_dtype,
    decode_states,
    encode_states,
    encoded_bytes,
    shapes_of,
)
from modeling_tsarank.ranking_errors import InputError, ModelError


def random_layers(tokens: int, sizes: list[tuple[int, int, int]], seed: int = 0) -> Layers:
    """Layers of the given (heads, key dimension, value dimension), with outlying channels as real keys have them."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for heads, key_dim, value_dim in sizes:
        keys = torch.randn(1, heads, tokens, key_dim, generator=generator)
        keys[..., 0] = 12 + keys[..., 0] / 10
        layers.append((keys, torch.randn(1, heads, tokens, value_dim, generator=generator)))
    return layers


UNEVEN = [(2, 8, 8), (2, 8, 8), (1, 3, 5), (4, 16, 8)]


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 130), seed=st.integers(0, 5), dtype=st.sampled_from(["float32", "bfloat16", "float16"]))
def test_unscaled_formats_round_trip_exactly(tokens: int, seed: int, dtype: str) -> None:
    wanted = getattr(torch, dtype)
    layers = [(keys.to(wanted), values.to(wanted)) for keys, values in random_layers(tokens, UNEVEN, seed)]
    found = decode_states("k", encode_states("k", layers, dtype))
    assert len(found) == len(layers)
    for (keys, values), (kept_keys, kept_values) in zip(layers, found, strict=True):
        assert torch.equal(keys, kept_keys)
        assert torch.equal(values, kept_values)


@settings(max_examples=25, deadline=None)
@given(tokens=st.sampled_from([1, 7, CHANNEL_SCALES_FROM - 1, CHANNEL_SCALES_FROM, 200]), power=st.integers(-5, 3))
def test_int8_is_within_half_a_step(tokens: int, power: int) -> None:
    layers = [(keys * 10.0**power, values * 10.0**power) for keys, values in random_layers(tokens, UNEVEN)]
    found = decode_states("k", encode_states("k", layers, "int8"))
    for (keys, values), (kept_keys, kept_values) in zip(layers, found, strict=True):
        if tokens >= CHANNEL_SCALES_FROM:
            span = (keys.amax(2, keepdim=True) - keys.amin(2, keepdim=True)) / 2
        else:
            span = keys.abs().amax(-1, keepdim=True)
        # Half a step, where a step is a 127th of the span, 0.2 % for the rounding of scales, and what a 16-bit offset
        # and the smallest 16-bit scale cannot express.
        slack = 2.0**-11 * keys.abs().max() / 100 + 2.0**-24
        assert bool(((keys - kept_keys).abs() <= span / 254 * 1.01 + slack).all())
        largest = values.abs().amax(-1, keepdim=True)
        assert bool(((values - kept_values).abs() <= largest / 254 * 1.01 + 2.0**-24).all())


def test_per_channel_scales_halve_the_error_of_keys_with_outlying_channels() -> None:
    few, many = (
        random_layers(CHANNEL_SCALES_FROM - 1, [(3, 64, 64)]),
        random_layers(CHANNEL_SCALES_FROM, [(3, 64, 64)]),
    )
    errors = []
    for layers in (few, many):
        kept = decode_states("k", encode_states("k", layers, "int8"))
        errors.append((layers[0][0] - kept[0][0]).pow(2).mean().sqrt().item())
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("tokens", [1, 20, 47, 48, 200, 500])
def test_the_default_models_states_take_at_most_12_kib_a_token(tokens: int) -> None:
    layers = random_layers(tokens, [(3, 64, 64)] * 30)
    size = len(encode_states("k", layers, "int8"))
    header = 8 + 248
    assert size - header <= 12 * 1024 * tokens
    assert 0 <= size - encoded_bytes(shapes_of(layers), "int8") <= header


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    data = encode_states("a", random_layers(3, [(1, 2, 2)]), "int8")
    for place in range(len(data)):
        for bit in (0, 7):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            with pytest.raises(DamagedStatesError):
                decode_states("a", broken)
        with pytest.raises(DamagedStatesError):
            decode_states("a", data[:place])
    with pytest.raises(DamagedStatesError, match="another document"):
        decode_states("b", data)


def test_decoding_leaves_the_bytes_alone_and_takes_a_type() -> None:
    layers = random_layers(100, [(2, 8, 8)])
    for kept in ("float32", "int8"):
        data = bytearray(encode_states("k", layers, kept))
        before = bytes(data)
        found = decode_states("k", data, torch.bfloat16)
        assert found[0][0].dtype == torch.bfloat16
        same = decode_states("k", data)
        assert same[0][0].dtype == torch.float32
        same[0][0].zero_()
        assert bytes(data) == before


def test_values_out_of_range_are_an_error_not_an_infinity() -> None:
    layers = random_layers(4, [(1, 2, 2)])
    layers[0][1][0, 0, 1, 1] = 1e6
    with pytest.raises(ModelError, match="do not fit into float16"):
        encode_states("k", layers, "float16")
    layers[0][1][0, 0, 1, 1] = float("nan")
    for dtype in ("float32", "bfloat16", "int8"):
        with pytest.raises(ModelError, match="not finite"):
            encode_states("k", layers, dtype)


def test_format_names() -> None:
    assert [check_state_dtype(name) for name in ("fp32", "bf16", "fp16", "int8")] == [
        "float32",
        "bfloat16",
        "float16",
        "int8",
    ]
    with pytest.raises(InputError, match="unknown format of document states 'int4'; expected one of float32, "):
        check_state_dtype("int4")

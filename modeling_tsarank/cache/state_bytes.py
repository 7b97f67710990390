"""Document states as bytes: bfloat16, float16 or float32 unchanged, int8 with scales; checked before use."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..engine.state_blocks import Groups, Layers, Shape, shapes_of, split_layers, stack_layers
from ..ranking_errors import InputError, ModelError


STATE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# From this many tokens on, int8 keys get a scale and an offset per channel, which halves their error; on fewer tokens
# these would cost more than 12 KiB a token with the 135M default model, and keys get one scale per token instead.
CHANNEL_SCALES_FROM = 48
_MAGIC = b"TSD2"
_HEAD = struct.Struct("<4sII")  # magic, CRC-32 of what follows this field, length of the JSON header
_ALIGN = 64  # of the first tensor, counted from the first byte
_PART_ALIGN = 16


class DamagedStatesError(ValueError):
    """Stored bytes are not the expected states: truncated, corrupted, or another document's."""


def check_state_dtype(name: str) -> str:
    """The full name of a number format for states. Raises `InputError` for an unknown one."""
    full = SHORT_NAMES.get(name, name)
    if full not in STATE_DTYPES:
        raise InputError(f"unknown format of document states {name!r}; expected one of {', '.join(STATE_DTYPES)}")
    return full


def shape_parts(shape: Shape, dtype: str) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Types and shapes of the tensors that hold such layers, in order: keys, values, then the scales of int8."""
    stem = (shape.layers, shape.heads)
    found: list[tuple[torch.dtype, tuple[int, ...]]] = [
        (STATE_DTYPES[dtype], (*stem, shape.tokens, shape.key_dim)),
        (STATE_DTYPES[dtype], (*stem, shape.tokens, shape.value_dim)),
    ]
    if dtype == "int8":
        if shape.tokens >= CHANNEL_SCALES_FROM:
            found += [(torch.float16, (*stem, 1, shape.key_dim))] * 2
        else:
            found.append((torch.float16, (*stem, shape.tokens, 1)))
        found.append((torch.float16, (*stem, shape.tokens, 1)))
    return found


def _filled(kind: torch.dtype, shape: Sequence[int]) -> int:
    """Bytes of a tensor, padded to a multiple of 16."""
    size = kind.itemsize * int(np.prod(shape))
    return size + -size % _PART_ALIGN


def _to_int8(values: torch.Tensor, axis: int) -> tuple[torch.Tensor, torch.Tensor]:
    # The largest value is at most 127 steps of float16: round the scale up, or it would be clipped.
    step = (values.abs().amax(axis, keepdim=True) / 127 * 1.001 + 2.0**-24).half()
    return (values / step.float()).round_().clamp_(-127, 127).to(torch.int8), step


def _encode_group(keys: torch.Tensor, values: torch.Tensor, dtype: str) -> list[torch.Tensor]:
    """Tensors as `shape_parts` lists them, of keys and values `(layers, heads, tokens, dimension)`."""
    if dtype != "int8":
        return [keys.to(STATE_DTYPES[dtype]), values.to(STATE_DTYPES[dtype])]
    keys, values = keys.float(), values.float()
    low_values, value_step = _to_int8(values, -1)
    if keys.shape[2] < CHANNEL_SCALES_FROM:
        low_keys, key_step = _to_int8(keys, -1)
        return [low_keys, low_values, key_step, value_step]
    # Key channels differ in magnitude and many are far from zero in every token: each gets an offset and a scale.
    offset = ((keys.amax(2, keepdim=True) + keys.amin(2, keepdim=True)) / 2).half()
    low_keys, key_step = _to_int8(keys - offset.float(), 2)
    return [low_keys, low_values, key_step, offset, value_step]


def _fill_group(parts: Sequence[torch.Tensor], dtype: str, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Copies the first tokens of `parts` (see `shape_parts`) into `keys` and `values`, as many as fit."""
    count = keys.shape[2]
    if dtype == "int8" and keys.dtype != torch.float32:
        exact = torch.empty_like(keys, dtype=torch.float32), torch.empty_like(values, dtype=torch.float32)
        _fill_group(parts, dtype, *exact)
        keys.copy_(exact[0])
        values.copy_(exact[1])
        return
    parts = [part.to(keys.device) for part in parts]
    # Convert first: multiplying int8 by float32 directly is thirty times slower on a CPU.
    keys.copy_(parts[0][:, :, :count])
    values.copy_(parts[1][:, :, :count])
    if dtype != "int8":
        return
    values.mul_(parts[-1].float()[:, :, :count])
    if len(parts) == 5:
        torch.addcmul(parts[3].float(), keys, parts[2].float(), out=keys)
    else:
        keys.mul_(parts[2].float()[:, :, :count])


def encode_states(key: str, layers: Layers, dtype: str) -> bytes:
    """States as self-contained bytes: a checksum over everything else, a JSON header (key, format, shapes), tensors.

    `int8` stores values with one scale per token and head, keys with a scale and an offset per channel and head (from
    80 tokens on) or one scale per token and head. Raises `ModelError` if states exceed the format's range.
    """
    shapes = shapes_of(layers)
    header = json.dumps({"key": key, "dtype": dtype, "shapes": [list(vars(s).values()) for s in shapes]}).encode()
    header += b" " * (-(_HEAD.size + len(header)) % _ALIGN)
    pieces = []
    for stacked in stack_layers(layers):
        parts = _encode_group(*stacked, dtype)
        if any(part.is_floating_point() and not bool(torch.isfinite(part).all()) for part in parts):
            raise ModelError(
                f"these document states do not fit into {dtype}: a value is not finite; use bfloat16 or float32"
            )
        for part in parts:
            piece = part.cpu().contiguous().view(torch.uint8).numpy().tobytes()
            pieces.append(piece + bytes(-len(piece) % _PART_ALIGN))
    # Padded, so that consecutive entries all have the alignment of the first.
    pieces.append(bytes(-sum(map(len, pieces)) % _ALIGN))
    rest = b"".join([struct.pack("<I", len(header)), header, *pieces])
    return _MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def encoded_bytes(shapes: Sequence[Shape], dtype: str) -> int:
    """Bytes of states of these shapes in a store, without their header (some 200 bytes)."""
    size = sum(_filled(*part) for shape in shapes for part in shape_parts(shape, dtype))
    return size + -size % _ALIGN


def decode_states(
    key: str, data: memoryview | bytes | bytearray, dtype: torch.dtype | None = None, device: Any = None
) -> Layers:
    """The states of `encode_states`, in `dtype` (`None`: the stored one, float32 for int8) and on `device`.

    Raises `DamagedStatesError` if a bit is wrong, bytes are missing, or these are the states of another key.
    """
    kept, shapes, groups = _open_states(key, data)
    if dtype is None:
        dtype = torch.float32 if kept == "int8" else STATE_DTYPES[kept]
    made = []
    for shape, parts in zip(shapes, groups, strict=True):
        sizes = shape.layers, shape.heads, shape.tokens
        # Copy: the data may be pages of a mapped file.
        keys = torch.empty((*sizes, shape.key_dim), dtype=dtype, device=device)
        values = torch.empty((*sizes, shape.value_dim), dtype=dtype, device=device)
        _fill_group(parts, kept, keys, values)
        made.append((keys, values))
    return split_layers(made)


def fill_states(key: str, data: memoryview | bytes | bytearray, targets: Groups, checked: bool = False) -> None:
    """Copies the first tokens of encoded states directly into tensors, without an intermediate copy.

    Parameters:
        key, data: as in `decode_states`.
        targets: for each run of layers of one shape, in order, keys and values `(layers, heads, tokens, dimension)`:
            any views, of any floating-point type. They may have fewer tokens than are stored.
        checked: the bytes are known to be intact, so that their checksum is not computed again.

    Raises `DamagedStatesError` like `decode_states`, and if the states do not have the shapes of the targets, which
    are then unchanged.
    """
    kept, shapes, groups = _open_states(key, data, checked)
    stored = [(shape.layers, shape.heads, shape.key_dim, shape.value_dim) for shape in shapes]
    wanted = [(len(keys), keys.shape[1], keys.shape[3], values.shape[3]) for keys, values in targets]
    if stored != wanted or any(keys.shape[2] > shape.tokens for shape, (keys, _) in zip(shapes, targets, strict=True)):
        raise DamagedStatesError("their shapes are not this model's")
    for parts, (keys, values) in zip(groups, targets, strict=True):
        _fill_group(parts, kept, keys, values)


def _open_states(
    key: str, data: memoryview | bytes | bytearray, checked: bool = False
) -> tuple[str, list[Shape], list[list[torch.Tensor]]]:
    """The stored format, the shapes and, for each, the tensors that `shape_parts` lists: views of the bytes."""
    data = memoryview(data)
    if len(data) < _HEAD.size:
        raise DamagedStatesError(f"only {len(data)} bytes")
    magic, crc, header_size = _HEAD.unpack(data[: _HEAD.size])
    if magic != _MAGIC or (not checked and zlib.crc32(data[8:]) != crc):
        raise DamagedStatesError("the checksum does not match")
    header = json.loads(bytes(data[_HEAD.size : _HEAD.size + header_size]))
    if header["key"] != key:
        raise DamagedStatesError("they belong to another document")
    kept, shapes = header["dtype"], [Shape(*numbers) for numbers in header["shapes"]]
    if len(data) != _HEAD.size + header_size + encoded_bytes(shapes, kept):
        raise DamagedStatesError("they have the wrong size")
    array = np.frombuffer(data, dtype=np.uint8)
    # torch warns about read-only memory.
    raw = torch.from_numpy(array if array.flags.writeable else array.copy())
    at, groups = _HEAD.size + header_size, []
    for shape in shapes:
        parts = []
        for kind, sizes in shape_parts(shape, kept):
            count = kind.itemsize * int(np.prod(sizes))
            parts.append(raw[at : at + count].view(kind).view(sizes))
            at += _filled(kind, sizes)
        groups.append(parts)
    return kept, shapes, groups

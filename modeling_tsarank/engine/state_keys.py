"""The keys of document states in a store: the identity of a model, and the token ids.

A document-first prompt has the same ids at the same positions every time, so its states can be reused as they are.
They are keyed by the model's identity (configuration, number format, every byte of its weights) and by the token ids
themselves.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from ..ranking_options import CONFIG_KEY
from .rope_regimes import derived_buffers


# Configuration fields on a model's origin or use, which do not affect what it computes.
_NO_MATTER = {
    "_name_or_path", "transformers_version", "auto_map", "custom_pipelines", "architectures", "use_cache", "dtype",
    "torch_dtype", CONFIG_KEY,
}  # fmt: skip


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors inside a weight: torchao's subclasses and torch's packed weights hold several."""
    if isinstance(value, torch.Tensor):
        if value.is_quantized:
            yield f"{name}.int", value.int_repr()
            yield f"{name}.scheme", torch.frombuffer(bytearray(repr(value.qscheme()).encode()), dtype=torch.uint8)
            yield f"{name}.scale", torch.dequantize(value).float()
        elif hasattr(value, "__tensor_flatten__"):
            for inner in value.__tensor_flatten__()[0]:
                yield from _tensors(getattr(value, inner), f"{name}.{inner}")
        else:
            yield name, value.detach()
    elif isinstance(value, tuple | list):
        for i, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{i}")


def _weights(backbone: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    items: dict[str, Any] = dict(backbone.named_buffers())  # includes non-persistent ones: rotary frequencies
    items.update(backbone.state_dict())
    derived = derived_buffers(backbone)
    return [found for name, value in items.items() if name not in derived for found in _tensors(value, name)]


def _adapters(backbone: torch.nn.Module) -> list[str]:
    """The active adapters, if any (PEFT): they change states without changing a weight."""
    return [
        f"{name}:{getattr(module, key)!r}"
        for name, module in backbone.named_modules()
        for key in ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
        if key in vars(module)
    ]


def _quick_look(backbone: torch.nn.Module, weights: Sequence[tuple[str, torch.Tensor]]) -> str:
    """A digest of the weights' addresses, write counters, and eight values of each; takes milliseconds."""
    digest = hashlib.blake2b(digest_size=16)
    samples: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in weights:
        # Tensors created in inference mode have no write counter.
        version = -1 if tensor.is_inference() else tensor._version
        digest.update(f"{name}:{tensor.data_ptr()}:{version}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        if tensor.numel():
            flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
            samples.setdefault(tensor.device, []).append(flat[:: max(len(flat) // 8, 1)][:8].float())
    for device in samples:
        digest.update(torch.cat(samples[device]).cpu().numpy().tobytes())
    digest.update("".join(_adapters(backbone)).encode())
    return digest.hexdigest()


def _checksum(tensor: torch.Tensor) -> int:
    """CRC-32 of a tensor's bytes, 64 MiB at a time: an accelerator's weights need not fit in memory twice."""
    flat = tensor.contiguous().reshape(-1)
    step = (64 << 20) // max(flat.element_size(), 1)
    crc = 0
    for start in range(0, len(flat), step):
        piece = flat[start : start + step].cpu().view(torch.uint8).numpy()
        crc = zlib.crc32(piece.data, crc)
    return crc


_identities: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()


def model_identity(backbone: PreTrainedModel) -> str:
    """32 hexadecimal digits, equal only for models that compute the same states.

    Covers the backbone's class and configuration, the number format it computes in, which adapters are active, and
    every byte of every weight and buffer (CRC-32 each). The result is cached while a quick look (addresses, write
    counters and samples of all weights) finds nothing changed, so training steps, merged adapters and conversions are
    noticed. The ranking options are not part of it: prompts are keyed by their token ids.
    """
    weights = _weights(backbone)
    look = f"{_quick_look(backbone, weights)}:{backbone.dtype}"
    known = _identities.get(backbone)
    if known is not None and known[0] == look:
        return known[1]
    settings = {key: value for key, value in backbone.config.to_dict().items() if key not in _NO_MATTER}
    parts = [type(backbone).__name__, str(backbone.dtype), json.dumps(settings, sort_keys=True, default=repr)]
    with ThreadPoolExecutor(max(os.cpu_count() or 1, 1)) as pool:  # zlib releases the GIL
        sums = list(pool.map(_checksum, [tensor for _, tensor in weights]))
    for (name, tensor), crc in zip(weights, sums, strict=True):
        parts.append(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:{crc:08x}")
    parts += _adapters(backbone)
    identity = hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
    _identities[backbone] = (look, identity)
    return identity


def state_key(identity: str, ids: Sequence[int], regime: int = 0) -> str:
    """The key of the states of `ids` in a store: the model's identity, a hyphen, a digest of the ids.

    Args:
        identity: `model_identity` of the model.
            regime: Of the tasks that use them (`rope_regimes`): it decides the angles their keys are rotated by.
    """
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16)
    if regime:
        digest.update(f"regime {regime}".encode())
    return f"{identity}-{digest.hexdigest()}"

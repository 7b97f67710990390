"""`load_ranker`: from a name to a model that ranks, whatever the name stands for."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..batch_invariance import cpu_has_bfloat16
from ..int8_weights import use_int8_weights
from ..modeling_ranker import RankerModel
from ..modeling_tsarank import TSARankModel
from ..modeling_twolar import TwolarModel
from ..ranking_checkpoints import known_checkpoint, load_errors, refuse_shell_of_a_folder
from ..ranking_errors import InputError, ModelError, ResourceError
from ..ranking_options import CONFIG_KEY
from .embedded_models import embedded_ranker, embedded_source, load_without_room


logger = logging.getLogger(__name__)

FAMILIES: dict[str, type[RankerModel]] = {cls.options_class.family: cls for cls in (TSARankModel, TwolarModel)}
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
# Not a torch dtype that a model is loaded in, but a way of ranking: see `int8_weights`.
INT8 = "int8"


def resolve_device(device: Any = None) -> torch.device:
    """The given device or the best there is. Raises `InputError` for one this machine does not have."""
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}; expected for example cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no device {device!r} here: torch sees {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("there is no device 'mps' here")
    if chosen.type not in ("cpu", "cuda", "mps"):
        try:
            torch.zeros(1, device=chosen).item()  # the device meta holds no numbers
        except (RuntimeError, AssertionError, ImportError) as error:
            raise InputError(f"there is no device {str(device)!r} here to compute on") from error
    return chosen


def resolve_dtype(dtype: Any, device: torch.device) -> torch.dtype:
    """The dtype to rank in: `auto` is bfloat16 where the device has it in hardware, else float32.

    Raises `InputError` for an unknown name and for one the device cannot use: bfloat16 on a CPU without its
    instructions, float16 on any CPU.
    """
    if isinstance(dtype, str):
        if dtype == INT8:
            raise InputError("int8 is for ranking only; use another dtype here")
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}, int8")
        dtype = DTYPES[dtype]
    if dtype is None:
        bfloat16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if bfloat16 and device.type in ("cuda", "cpu") else torch.float32
    if device.type == "cpu" and dtype == torch.float16:
        raise InputError("float16 is slow and imprecise on a CPU; use --dtype float32")
    if device.type == "cpu" and dtype == torch.bfloat16 and not cpu_has_bfloat16():
        raise InputError(
            "this CPU has no bfloat16 instructions (AVX512_BF16, AMX or ARM BF16), so bfloat16 would be several times "
            "slower than float32 here; use --dtype float32"
        )
    return dtype


def number_format(dtype: Any, device: torch.device) -> str:
    """The name of what `load_ranker` will compute in: `int8` or a dtype's. Raises `InputError` as `resolve_dtype`."""
    if isinstance(dtype, str) and dtype == INT8:
        if device.type != "cpu":
            raise InputError(f"int8 weights are for the CPU, not for {device}; use another dtype there")
        return INT8
    return str(resolve_dtype(dtype, device)).removeprefix("torch.")


def _family_of(name: str, config: Any) -> type[RankerModel]:
    saved = getattr(config, CONFIG_KEY, None) or known_checkpoint(name)
    if saved:
        family = saved.get("family")
        if family not in FAMILIES:
            raise ModelError(f"{name} is of an unknown family {family!r}; known: {', '.join(FAMILIES)}")
        return FAMILIES[family]
    return TwolarModel if getattr(config, "is_encoder_decoder", False) else TSARankModel


def load_ranker(
    name_or_path: str | os.PathLike | None = None,
    *,
    device: Any = None,
    dtype: Any = None,
    family: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> RankerModel:
    """Loads a reranker, or makes one of a plain language model.

    Parameters:
        name_or_path: a ranking checkpoint (its saved choices hold), a published one by name, any other Hub id or
            folder, a GGUF file; `None` or `default` for the released ranker, `zero-shot` for the language model that
            it was made from.
        device: `None` for the best there is.
        dtype: torch dtype or its name; `None` or `auto` is bfloat16 where the device has it in hardware, else float32.
            `int8`, on a CPU, computes in int8 with rounded weights: faster than float32, scores less exact
            (`int8_weights`).
        family: `query_likelihood` or `true_false_logits`, to overrule what the model's kind suggests.
        options: ranking options to change.

    Raises `InputError`, `ModelError` or `ResourceError`, each one line.
    """
    if isinstance(dtype, str) and dtype == INT8:
        number_format(dtype, resolve_device(device or "cpu"))
        exact = load_ranker(
            name_or_path,
            device="cpu",
            dtype="float32",
            family=family,
            gguf_file=gguf_file,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **options,
        )
        return use_int8_weights(exact)
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    if family is not None and family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; expected one of {', '.join(FAMILIES)}")
    embedded = embedded_ranker(name_or_path)
    try:
        source = name_or_path if embedded is None else embedded_source(embedded)
    except ResourceError as error:
        merged: RankerModel = load_without_room(str(embedded), error, family, options)
        merged.to(device=device, dtype=dtype)  # type: ignore[call-arg]
        return merged
    assert source is not None
    name = os.fspath(source)
    if gguf_file is not None or Path(name).suffix.lower() == ".gguf":
        cls = FAMILIES[family] if family else TSARankModel
        return cls.from_backbone(source, gguf_file=gguf_file, dtype=dtype, device=device, revision=revision, **options)
    refuse_shell_of_a_folder(name)
    with load_errors(name):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    cls = FAMILIES[family] if family else _family_of(name, config)
    ranker = cls.from_backbone(
        name if isinstance(source, str) else source,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        **options,
    )
    if embedded is None and not getattr(config, CONFIG_KEY, None) and known_checkpoint(name) is None:
        logger.warning(
            "%s is a plain %s model, not a known reranker: it is scored by %s with the default prompt",
            name,
            config.model_type,
            cls.__name__,
        )
    return ranker

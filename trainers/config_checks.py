"""Checks and defaults shared by all configurations, so that mistakes are found before anything is loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch._inductor
from accelerate.utils import DynamoBackend

from modeling_tsarank.cli.command_line import Number
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers.options import check_choices, documented
from modeling_tsarank.trainers.trainable import ALL_LINEAR, Part


_AT_LEAST_1 = Number(int, 1)

_NUMBERS: dict[Number, tuple[str, ...]] = {
    _AT_LEAST_1: (
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("torch_empty_cache_steps", "eval_accumulation_steps", "save_total_limit", "dataloader_prefetch_factor"),
        *("ddp_bucket_cap_mb", "ddp_timeout", "top_blocks", "lora_alpha", "lora_top_blocks", "max_length"),
        *("max_query_length", "num_negatives", "dataset_num_proc"),
    ),
    Number(int, 0): ("dataloader_num_workers", "chunk_tokens", "num_documents"),
    # A rank beyond the width of any model only costs memory.
    Number(int, 1, 2**16): ("lora_r",),
    # NumPy's generator takes 32-bit seeds.
    Number(int, 0, 2**32 - 1): ("seed", "data_seed"),
    Number(float, 0, below=1): ("adam_beta1", "adam_beta2", "label_smoothing_factor", "lora_dropout"),
    Number(float, above=0): (
        *("num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps", "save_steps", "temperature"),
        "teacher_temperature",
    ),
    Number(float, 0): (
        *("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha", "eval_delay"),
    ),
}
BOUNDS = {name: bounds for bounds, names in _NUMBERS.items() for name in names}
"""Every number that affects a training, of `TrainingArguments` and of the trainers' own; `None` is not checked."""


def check_numbers(args: Any) -> None:
    """Raises `InputError` for the first number out of its bounds; converts NumPy numbers to Python's."""
    for name, bounds in {**BOUNDS, "max_steps": _AT_LEAST_1}.items():
        if isinstance(value := getattr(args, name, None), np.generic):
            value = value.item()
            setattr(args, name, value)  # arguments are saved as JSON
        if (value is not None or name == "max_steps") and (name, value) != ("max_steps", -1):
            check_number(name, value, bounds, ", or -1 for num_train_epochs" if name == "max_steps" else "")


def check_number(name: str, value: Any, bounds: Number, more: str = "") -> None:
    """Raises `InputError` for a value that is not a number within the bounds."""
    kinds = int if bounds.kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not bounds.allows(value):
        raise InputError(f"{name} must be {bounds}{more}, got {value!r}")


def _check_together(args: Any) -> None:
    """Checks for combinations that would fail only at the first batch, or when the model is compiled."""
    if args.dataloader_num_workers == 0 and (
        args.dataloader_persistent_workers or args.dataloader_multiprocessing_context
    ):
        name = "persistent_workers" if args.dataloader_persistent_workers else "multiprocessing_context"
        raise InputError(f"dataloader_{name} needs dataloader_num_workers of at least 1, got 0")
    if args.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        raise ResourceError("use_liger_kernel needs the package liger-kernel: pip install liger-kernel")
    backend, mode = args.torch_compile_backend, args.torch_compile_mode
    backends = [one.value.lower() for one in DynamoBackend if one is not DynamoBackend.NO]
    if backend is not None and backend.lower() not in backends:
        raise InputError(f"unknown torch_compile_backend {backend!r}; expected one of {', '.join(backends)}")
    if mode is not None and mode not in (modes := torch._inductor.list_mode_options()):
        raise InputError(f"unknown torch_compile_mode {mode!r}; expected one of {', '.join(modes)}")


def settle_configuration(args: Any) -> None:
    """Checks and defaults of every configuration, before `TrainingArguments` is initialized.

    Without an accelerator, transformers has to be configured for the CPU: otherwise it rejects bfloat16, and treats
    each of several processes as a separate run.

    Raises:
        InputError: a number out of its bounds, an unknown part, backend or mode, or incompatible options.
        ResourceError: a package is not installed.
    """
    check_numbers(args)
    check_choices(args)
    _check_together(args)
    if isinstance(args.lora_target_modules, str):
        args.lora_target_modules = [args.lora_target_modules]
    if args.lora_target_modules == [ALL_LINEAR]:
        # PEFT's keyword for its behaviour without any names.
        args.lora_target_modules = None
    if not torch.accelerator.is_available():
        args.use_cpu = True


# ---- the trained part ----------------------------------------------------------------------------------


@documented
@dataclass
class PartConfig:
    r"""
    Which part of the model is trained.

    Parameters:
        trainable (`str`, *optional*, defaults to `"top_blocks"`):
            What is trained: `"top_blocks"` the last `top_blocks` transformer blocks (TSARankLLM, section 4.1; the
            final norm stays frozen), `"lora"` a LoRA adapter of the backbone, `"full"` all weights.
        top_blocks (`int`, *optional*, defaults to `16`):
            Number of blocks; for an encoder-decoder, in each of its two stacks.
        lora_r (`int`, *optional*, defaults to `16`):
            Rank of the LoRA matrices.
        lora_alpha (`int`, *optional*, defaults to `32`):
            LoRA scaling: the update is multiplied by `lora_alpha / lora_r`.
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout before the LoRA matrices.
        lora_target_modules (`list[str]`, *optional*):
            Names of the linear layers that get LoRA; by default all but the output head.
        merge_adapter (`bool`, *optional*, defaults to `True`):
            Whether `save_model` writes the model with LoRA merged, next to the folder `adapter`; otherwise it writes
            only the adapter.
    """

    trainable: Part = "top_blocks"
    top_blocks: int = 16
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: list[str] | None = None
    merge_adapter: bool = True

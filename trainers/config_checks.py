"""Checks and defaults that all configurations share, so that a mistake is found before anything is loaded."""

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


_AT_LEAST_1, _AT_LEAST_0 = Number(int, 1), Number(int, 0)
_SHARE = Number(float, 0, below=1)
_SOME = Number(float, above=0)
_SOME_OR_NONE = Number(float, 0)
# A rank beyond the width of any model adds nothing but memory.
_RANK = Number(int, 1, 2**16)
# NumPy's generator takes seeds of 32 bits.
_SEED = Number(int, 0, 2**32 - 1)

BOUNDS = {
    "per_device_train_batch_size": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "num_train_epochs": _SOME,
    "learning_rate": _SOME_OR_NONE,
    "warmup_steps": _SOME_OR_NONE,
    "weight_decay": _SOME_OR_NONE,
    "max_grad_norm": _SOME_OR_NONE,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _SOME,
    "label_smoothing_factor": _SHARE,
    "neftune_noise_alpha": _SOME_OR_NONE,
    "torch_empty_cache_steps": _AT_LEAST_1,
    "logging_steps": _SOME,
    "eval_steps": _SOME,
    "eval_delay": _SOME_OR_NONE,
    "eval_accumulation_steps": _AT_LEAST_1,
    "save_steps": _SOME,
    "save_total_limit": _AT_LEAST_1,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _AT_LEAST_0,
    "dataloader_prefetch_factor": _AT_LEAST_1,
    "ddp_bucket_cap_mb": _AT_LEAST_1,
    "ddp_timeout": _AT_LEAST_1,
    "top_blocks": _AT_LEAST_1,
    "lora_r": _RANK,
    "lora_alpha": _AT_LEAST_1,
    "lora_dropout": _SHARE,
    "lora_top_blocks": _AT_LEAST_1,
    "max_length": _AT_LEAST_1,
    "max_query_length": _AT_LEAST_1,
    "chunk_tokens": _AT_LEAST_0,
    "num_negatives": _AT_LEAST_1,
    "num_documents": _AT_LEAST_0,
    "temperature": _SOME,
    "teacher_temperature": _SOME,
    "dataset_num_proc": _AT_LEAST_1,
}
"""Every number that shapes a training, of `TrainingArguments` and of the trainers' own; `None` is left alone."""


def check_numbers(args: Any) -> None:
    """Raises `InputError` for the first number of a configuration out of its bounds; NumPy's become Python's."""
    for name in (*BOUNDS, "max_steps"):
        if isinstance(value := getattr(args, name, None), np.generic):
            setattr(args, name, value.item())  # arguments are saved as JSON
    for name, bounds in BOUNDS.items():
        value = getattr(args, name, None)
        if value is not None:
            check_number(name, value, bounds)
    if args.max_steps != -1:
        check_number("max_steps", args.max_steps, _AT_LEAST_1, ", or -1 for num_train_epochs")


def check_number(name: str, value: Any, bounds: Number, more: str = "") -> None:
    """Raises `InputError` for a value that is no such number."""
    kinds = int if bounds.kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not bounds.allows(value):
        raise InputError(f"{name} must be {bounds}{more}, got {value!r}")


def _check_together(args: Any) -> None:
    """What goes wrong only when the first batch is drawn, or the model is compiled."""
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
    """What every configuration does before `TrainingArguments` looks at it.

    Without an accelerator, transformers must be told: it refuses bfloat16, and takes each of several processes for a
    run of its own.

    Raises:
        InputError: a number out of its bounds, an unknown part, backend or mode, or options that do not go together.
        ResourceError: a package is not installed.
    """
    check_numbers(args)
    check_choices(args)
    _check_together(args)
    if isinstance(args.lora_target_modules, str):
        args.lora_target_modules = [args.lora_target_modules]
    if args.lora_target_modules == [ALL_LINEAR]:
        # PEFT's word for what is done without any names.
        args.lora_target_modules = None
    if not torch.accelerator.is_available():
        args.use_cpu = True


# ---- what is trained -----------------------------------------------------------------------------------


@documented
@dataclass
class PartConfig:
    r"""
    What is trained of a model.

    Parameters:
        trainable (`str`, *optional*, defaults to `"top_blocks"`):
            What is trained: `"top_blocks"` the last `top_blocks` transformer blocks (TSARankLLM, section 4.1; the
            final norm stays frozen), `"lora"` a LoRA adapter of the backbone, `"full"` everything.
        top_blocks (`int`, *optional*, defaults to `16`):
            How many blocks; of an encoder-decoder, that many of each of its two stacks.
        lora_r (`int`, *optional*, defaults to `16`):
            Rank of the LoRA matrices.
        lora_alpha (`int`, *optional*, defaults to `32`):
            LoRA's scaling: the update is multiplied by `lora_alpha / lora_r`.
        lora_dropout (`float`, *optional*, defaults to `0.0`):
            Dropout in front of the LoRA matrices.
        lora_target_modules (`list[str]`, *optional*):
            Names of the linear layers that get LoRA; all but the output head if not given.
        merge_adapter (`bool`, *optional*, defaults to `True`):
            Whether `save_model` writes the model with LoRA merged in, beside the folder `adapter`. If not, only
            the adapter is written.
    """

    trainable: Part = "top_blocks"
    top_blocks: int = 16
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    lora_target_modules: list[str] | None = None
    merge_adapter: bool = True

"""Which part of a model is trained, and how: the options that all configurations share."""

from __future__ import annotations

from dataclasses import dataclass

from modeling_tsarank.trainers.options import documented
from modeling_tsarank.trainers.trainable import Part


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

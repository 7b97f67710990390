"""Which part of a model is trained, and how: the options that all configurations share."""

from __future__ import annotations

from dataclasses import dataclass, field

from modeling_tsarank.trainers.trainable import TRAINABLE_PARTS


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

    trainable: str = field(
        default="top_blocks",
        metadata={
            "help": "What is trained: 'top_blocks' the last `top_blocks` transformer blocks, 'lora' a LoRA adapter of "
            "the backbone, 'full' everything.",
            "choices": list(TRAINABLE_PARTS),
        },
    )
    top_blocks: int = field(
        default=16, metadata={"help": "How many blocks 'top_blocks' trains (of each stack of an encoder-decoder)."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(
        default=32, metadata={"help": "LoRA's scaling: the update is multiplied by lora_alpha / lora_r."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the LoRA matrices."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the linear layers that get LoRA; all but the output head if not given."},
    )
    merge_adapter: bool = field(
        default=True,
        metadata={
            "help": "Whether `save_model` writes the model with LoRA merged in, beside the folder `adapter`. "
            "If not, only the adapter is written."
        },
    )

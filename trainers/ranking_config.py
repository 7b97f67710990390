"""The fields that both ranking trainers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.config_checks import settle_configuration
from modeling_tsarank.trainers.trainable import TRAINABLE_PARTS


FROZEN_DTYPES = ("bfloat16", "float16", "float32")


@dataclass
class RankingConfig(TrainingArguments):
    r"""
    What [`RankingSFTConfig`] and [`RankingDistillConfig`] have in common.

    This class includes only the parameters that are specific to training rankers. For a full list of training
    arguments, please refer to the [`~transformers.TrainingArguments`] documentation. Using
    [`~transformers.HfArgumentParser`] it can be turned into command line arguments.

    Parameters:
        > Parameters that control the model

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
        lora_top_blocks (`int`, *optional*):
            Put LoRA into the last so many blocks only (of each stack of an encoder-decoder). The lower ones are then
            run once, forwards, also where the Differential Penalty needs the reference's logits.
        frozen_dtype (`str`, *optional*):
            Keep frozen weights in this dtype (`bfloat16` halves their memory); trained weights keep their own, and a
            saved model has the original dtype throughout.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to switch the backbone's dropout off. `lora_dropout` is not affected.

        > Parameters that control the data preprocessing

        max_length (`int`, *optional*):
            Longest training sequence in tokens, query included; only the document is cut. The model's own limit if not
            given. A saved model keeps its own limit.
        max_query_length (`int`, *optional*):
            Longest query in training, in tokens.

        > Parameters that control the training

        chunk_tokens (`int`, *optional*, defaults to `4096`):
            Padded tokens that are run at once, with activations kept for the backward pass. A batch with more is
            worked on in chunks, with gradients that are exactly those of the whole (gradient caching), so that groups
            of any size fit. `0` never cuts a batch.

        > Parameters that control the saving

        merge_adapter (`bool`, *optional*, defaults to `True`):
            Whether `save_model` writes a ranking folder with LoRA merged in, beside the folder `adapter`. If not, only
            the adapter is written.
        checkpoint_ranker (`bool`, *optional*, defaults to `True`):
            Whether every checkpoint also holds a ranking folder that loads at once (not with LoRA, whose checkpoints
            hold the adapter). Switched off, a checkpoint is smaller and serves to resume only.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `num_train_epochs`: Defaults to `1` instead of `3`.
    > - `per_device_train_batch_size`: Defaults to `32` instead of `8`; it counts queries, each with its documents.
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `remove_unused_columns`: Defaults to `False` instead of `True`.
    """

    # Parameters whose default values are overridden from TrainingArguments
    num_train_epochs: float = field(default=1.0, metadata={"help": "Total number of training epochs to perform."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Queries, each with all its documents, per device and backward pass."}
    )
    logging_steps: float = field(
        default=10,
        metadata={
            "help": "Log every X updates steps. Should be an integer or a float in range `[0,1)`. If smaller than 1, "
            "will be interpreted as ratio of total training steps."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Ranking trainers read the columns they need; leave this off."}
    )

    # Parameters that control the model
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
    lora_top_blocks: int | None = field(
        default=None,
        metadata={
            "help": "Put LoRA into the last so many blocks only; the lower ones are then run once, forwards, for the "
            "trained model and the penalty's reference together."
        },
    )
    frozen_dtype: str | None = field(
        default=None,
        metadata={
            "help": "Keep frozen weights in this dtype; 'bfloat16' halves their memory. Trained weights keep their "
            "own, and a saved model has the original dtype throughout."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Whether to switch the backbone's dropout off (lora_dropout stays)."}
    )

    # Parameters that control the data preprocessing
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Longest training sequence in tokens, query included; only the document is cut. The model's own "
            "limit if not given."
        },
    )
    max_query_length: int | None = field(
        default=None, metadata={"help": "Longest query in training, in tokens. The model's own limit if not given."}
    )

    # Parameters that control the training
    chunk_tokens: int = field(
        default=4096,
        metadata={
            "help": "Padded tokens that are run at once. A batch with more is worked on in chunks with exact "
            "gradients (gradient caching), so that groups of any size fit. 0 never cuts a batch."
        },
    )

    # Parameters that control the saving
    merge_adapter: bool = field(
        default=True,
        metadata={
            "help": "Whether `save_model` writes a ranking folder with LoRA merged in, beside the folder `adapter`. "
            "If not, only the adapter is written."
        },
    )
    checkpoint_ranker: bool = field(
        default=True,
        metadata={
            "help": "Whether every checkpoint also holds a ranking folder that loads at once (not with LoRA, whose "
            "checkpoints hold the adapter)."
        },
    )

    def __post_init__(self) -> None:
        settle_configuration(self)
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            # Every trained parameter takes part in every forward pass, and looking for others costs a traversal.
            self.ddp_find_unused_parameters = False
        if self.data_seed is None:
            # Without it the order of the rows follows torch's global seed at the time `train` is called, and whoever
            # reseeds in between would resume with other batches.
            self.data_seed = self.seed
        self._check_choice("train_sampling_strategy", ("random", "sequential"))
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns is on; ranking trainers read the columns they need, leave it out")
        if self.neftune_noise_alpha is not None:
            raise InputError("neftune_noise_alpha is for language modelling; leave it out for a ranking training")
        if self.frozen_dtype is not None:
            self._check_choice("frozen_dtype", FROZEN_DTYPES)

    @property
    def frozen_torch_dtype(self) -> torch.dtype | None:
        """`frozen_dtype` as torch's."""
        return None if self.frozen_dtype is None else getattr(torch, self.frozen_dtype)

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value: Any = getattr(self, name)
        if value not in choices:
            raise InputError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}")

"""Configuration of distillation from a teacher's orders or scores (TWOLAR and relatives)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses import LOSSES
from modeling_tsarank.trainers.ranking_config import RankingConfig


SAMPLING = ("first", "random")


@dataclass
class RankingDistillConfig(RankingConfig):
    r"""
    Configuration class for the [`RankingDistillTrainer`]. The defaults are TWOLAR's.

    This class includes only the parameters that are specific to this training; [`RankingConfig`] has those shared with
    fine-tuning and [`~transformers.TrainingArguments`] the rest.

    Parameters:
        > Parameters that control the data

        num_documents (`int`, *optional*, defaults to `30`):
            M, documents of each query; a longer list is cut. `0` takes all.
        document_sampling (`str`, *optional*, defaults to `"first"`):
            How a longer list is cut: `"first"` in the given (first-stage) order, `"random"` anew in every epoch.

        > Parameters that control the loss

        loss (`str`, *optional*, defaults to `"ranknet"`):
            Name of a ranking loss in `modeling_tsarank.trainers.losses.LOSSES`.
        loss_options (`dict` or `str`, *optional*):
            Options of that loss, such as `{"reduction": "sum"}`.
        score_temperature (`float`, *optional*, defaults to `1.0`):
            The model's scores are divided by it before the loss. Query likelihoods differ by tenths where TWOLAR's
            logits differ by whole numbers: about 0.1 suits `TSARankModel`.

    > [!NOTE]
    > These parameters have default values different from [`RankingConfig`]:
    > - `trainable`: Defaults to `"full"` instead of `"top_blocks"`.
    > - `lr_scheduler_type`: Defaults to `"constant"` instead of `"linear"`.
    """

    # TrainingArguments annotates it like a field of the instance, though it is none.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*RankingConfig._VALID_DICT_FIELDS, "loss_options"]  # type: ignore[misc]

    # Parameters whose default values are overridden
    trainable: str = field(
        default="full",
        metadata={
            "help": "What is trained: 'top_blocks' the last `top_blocks` transformer blocks, 'lora' a LoRA adapter of "
            "the backbone, 'full' everything.",
            "choices": ["top_blocks", "lora", "full"],
        },
    )
    lr_scheduler_type: str = field(default="constant", metadata={"help": "The scheduler type to use."})

    # Parameters that control the data
    num_documents: int = field(
        default=30, metadata={"help": "M, documents of each query; a longer list is cut. 0 takes all."}
    )
    document_sampling: str = field(
        default="first",
        metadata={
            "help": "How a longer list is cut: 'first' in the given order, 'random' anew in every epoch.",
            "choices": list(SAMPLING),
        },
    )

    # Parameters that control the loss
    loss: str = field(
        default="ranknet",
        metadata={
            "help": "The ranking loss: " + "; ".join(f"{name} ({loss.description})" for name, loss in LOSSES.items()),
            "choices": list(LOSSES),
        },
    )
    loss_options: dict[str, Any] | str | None = field(
        default=None, metadata={"help": 'Options of the loss as JSON, such as \'{"reduction": "sum"}\'.'}
    )
    score_temperature: float = field(
        default=1.0,
        metadata={"help": "The model's scores are divided by it before the loss; about 0.1 suits query likelihood."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("loss", tuple(LOSSES))
        self._check_choice("document_sampling", SAMPLING)
        if self.num_documents == 1:
            raise InputError("num_documents is 1; a ranking loss needs at least 2 documents of a query (0 takes all)")
        if self.loss_options is not None and not isinstance(self.loss_options, dict):
            raise InputError(f"loss_options must be a JSON object, got {self.loss_options!r}")

    def evaluation_figures(self) -> list[str]:
        """What an evaluation measures beside the loss."""
        return ["pairwise_accuracy", "in_batch_ndcg"]

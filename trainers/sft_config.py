"""Configuration of mixed-loss fine-tuning (TSARankLLM)."""

from __future__ import annotations

from dataclasses import dataclass, field

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses import SCORE_FORMS
from modeling_tsarank.trainers.ranking_config import RankingConfig


@dataclass
class RankingSFTConfig(RankingConfig):
    r"""
    Configuration class for the [`RankingSFTTrainer`]: the mixture of TSARankLLM's Eq. 5.

    This class includes only the parameters that are specific to this training; [`RankingConfig`] has those shared with
    distillation and [`~transformers.TrainingArguments`] the rest. The defaults are the paper's.

    Parameters:
        > Parameters that control the data

        num_negatives (`int`, *optional*, defaults to `48`):
            m, the negatives drawn for each query and epoch (the published code takes 47).
        allow_fewer_negatives (`bool`, *optional*, defaults to `False`):
            Whether a row may have fewer than `num_negatives`; its group is then smaller.

        > Parameters that control the loss

        alpha (`float`, *optional*, defaults to `0.6`):
            Eq. 5: `alpha * rank + (1 - alpha) * (ntp + dp)`. The published code has no alpha.
        score_form (`str`, *optional*, defaults to `"geometric_mean"`):
            S in Eq. 3: `"geometric_mean"` exp of the mean log-probability, as the published code; `"mean_log_prob"`,
            `"sum_log_prob"`, `"product"` (Eq. 1 taken literally, whose gradient vanishes).
        temperature (`float`, *optional*, defaults to `0.001`):
            tau in Eq. 3. It belongs to the score form: with `"mean_log_prob"` something like 0.1 is right.
        ntp (`bool`, *optional*, defaults to `True`):
            Whether next-token prediction of the positives' queries (Eq. 2) is in the mixture.
        ntp_reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"sum"` over the query's tokens (the paper prints a sum).
        teacher_weight (`float`, *optional*, defaults to `0.0`):
            Share, 0 to 1, of a teacher's scores in the ranking term: `(1 - w) * L_rank + w * L_teacher`, where
            `L_teacher` is ListNet's cross-entropy from the softmax of the teacher's scores to that of S / tau. Ours,
            not the paper's; the rows need `positive_scores` and `negative_scores` (`tsarank data scores`).
        teacher_temperature (`float`, *optional*, defaults to `1.0`):
            The teacher's scores are divided by it before their softmax; cosines of a bi-encoder want about 0.05, the
            z-scores of several teachers about 1.
        dp (`bool`, *optional*, defaults to `True`):
            Whether the Differential Penalty (Eq. 4), KL from the starting checkpoint over the full vocabulary, is in
            the mixture.
        ref_model (`str`, *optional*):
            Folder or Hub id of the penalty's reference, loaded as a whole second model. By default it is the model
            that training started from; for it LoRA needs no copy, and `top_blocks` only copies of the trained blocks.

    > [!NOTE]
    > These parameters have default values different from [`RankingConfig`]:
    > - `learning_rate`: Defaults to `3e-5` instead of `5e-5`. LoRA wants more: 1e-4 to 2e-4.
    > - `lr_scheduler_type`: Defaults to `"cosine"` instead of `"linear"`.
    > - `warmup_steps`: Defaults to `0.03` (of all steps) instead of `0`.
    > - `max_length`: Defaults to `160` (document and prompt 128, query 32).
    > - `max_query_length`: Defaults to `32`.
    """

    # Parameters whose default values are overridden
    learning_rate: float = field(
        default=3e-5, metadata={"help": "The initial learning rate for AdamW. LoRA wants more: 1e-4 to 2e-4."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type to use."})
    warmup_steps: float = field(
        default=0.03,
        metadata={"help": "Steps of linear warm-up: an integer, or a float in [0, 1) as a share of all steps."},
    )
    max_length: int | None = field(
        default=160,
        metadata={"help": "Longest training sequence in tokens, query included; only the document is cut."},
    )
    max_query_length: int | None = field(default=32, metadata={"help": "Longest query in training, in tokens."})

    # Parameters that control the data
    num_negatives: int = field(default=48, metadata={"help": "m, the negatives drawn for each query and epoch."})
    allow_fewer_negatives: bool = field(
        default=False, metadata={"help": "Whether a row may have fewer than num_negatives; its group is smaller then."}
    )

    # Parameters that control the loss
    alpha: float = field(default=0.6, metadata={"help": "Eq. 5: alpha * rank + (1 - alpha) * (ntp + dp)."})
    score_form: str = field(
        default="geometric_mean",
        metadata={"help": "S in the ranking loss (Eq. 3).", "choices": list(SCORE_FORMS)},
    )
    temperature: float = field(
        default=0.001,
        metadata={"help": "tau in the ranking loss; 0.001 suits 'geometric_mean', about 0.1 'mean_log_prob'."},
    )
    ntp: bool = field(
        default=True, metadata={"help": "Whether next-token prediction of the positives' queries is in the mixture."}
    )
    ntp_reduction: str = field(
        default="mean",
        metadata={"help": "Mean or sum over the query's tokens in next-token prediction.", "choices": ["mean", "sum"]},
    )
    teacher_weight: float = field(
        default=0.0, metadata={"help": "Share, 0 to 1, of a teacher's scores in the ranking term; the rows need them."}
    )
    teacher_temperature: float = field(
        default=1.0,
        metadata={"help": "The teacher's scores are divided by it; 0.05 suits a bi-encoder's cosines, 1 z-scores."},
    )
    dp: bool = field(
        default=True,
        metadata={"help": "Whether the Differential Penalty, KL from the starting checkpoint, is in the mixture."},
    )
    ref_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of the penalty's reference; the model training started from if not given."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("score_form", SCORE_FORMS)
        self._check_choice("ntp_reduction", ("mean", "sum"))
        for name in ("alpha", "teacher_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)!r}")
        if self.alpha == 0 and not self.ntp:
            raise InputError("alpha is 0 and ntp is off: nothing is left to learn from; raise alpha or switch ntp on")
        if self.ref_model is not None and not self.dp:
            raise InputError("ref_model was given but dp is off; leave ref_model out or switch dp on")

    def evaluation_figures(self) -> list[str]:
        """What an evaluation measures beside the loss."""
        parts = {"ntp_loss": self.uses_ntp, "dp_loss": self.uses_dp, "teacher_loss": self.teacher_weight > 0}
        return ["rank_loss", "ranking_accuracy", "in_batch_ndcg", *(name for name, used in parts.items() if used)]

    @property
    def uses_ntp(self) -> bool:
        """Whether next-token prediction has a weight above 0."""
        return self.ntp and self.alpha < 1

    @property
    def uses_dp(self) -> bool:
        """Whether the Differential Penalty has a weight above 0."""
        return self.dp and self.alpha < 1

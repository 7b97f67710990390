"""Preset for mixed-loss fine-tuning (TSARankLLM)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.collators import ONE_POSITIVE, Sampling
from modeling_tsarank.trainers.options import documented
from modeling_tsarank.trainers.ranking_config import RankingConfig, Score


@documented
@dataclass
class RankingSFTConfig(RankingConfig):
    r"""
    Configuration class for the [`RankingSFTTrainer`]: the weighted sum of TSARankLLM's Eq. 5, with the paper's values.

        alpha * ((1 - teacher_weight) * loss + teacher_weight * listnet) + (1 - alpha) * (next_token + penalty)

    It is a [`RankingConfig`] with other defaults and this loss; `objectives`, if given, replaces it.

    Parameters:
        alpha (`float`, *optional*, defaults to `0.6`):
            Eq. 5: `alpha * rank + (1 - alpha) * (ntp + dp)`. The published code has no alpha.
        ntp (`bool`, *optional*, defaults to `True`):
            Whether to include next-token prediction of the positives' queries (Eq. 2).
        ntp_reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` or `"sum"` over the query's tokens (the paper prints a sum).
        dp (`bool`, *optional*, defaults to `True`):
            Whether to include the Differential Penalty (Eq. 4), KL from the starting checkpoint over the full
            vocabulary.
        teacher_weight (`float`, *optional*, defaults to `0.0`):
            Weight, 0 to 1, of a teacher's scores in the ranking term: ListNet's cross-entropy from the softmax of the
            teacher's scores to that of S / tau. Not from the paper; the rows need teacher scores
            (`tsarank data scores`).

    > [!NOTE]
    > These parameters have default values different from [`RankingConfig`]:
    > - `document_sampling`: Defaults to `"one_positive"` instead of `"first"`. The published code samples 47
    negatives.
    > - `loss`: Defaults to `"listwise_softmax"` (Eq. 3) instead of `"ranknet"`.
    > - `score_form`: Defaults to `"geometric_mean"` instead of `"model"`, as in the published code; `"product"` is
    >   Eq. 1 literally, whose gradient vanishes.
    > - `temperature`: Defaults to `0.001` instead of `1.0`. It depends on the score form: with `"mean_log_prob"`, use
    >   about 0.1.
    > - `learning_rate`: Defaults to `3e-5` instead of `5e-5`. LoRA needs a higher one: 1e-4 to 2e-4.
    > - `lr_scheduler_type`: Defaults to `"cosine"` instead of `"linear"`.
    > - `warmup_steps`: Defaults to `0.03` (of all steps) instead of `0`.
    > - `max_length`: Defaults to `160` (document and prompt 128, query 32).
    > - `max_query_length`: Defaults to `32`.
    """

    # Parameters whose default values are overridden
    learning_rate: float = 3e-5
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0.03
    max_length: int | None = 160
    max_query_length: int | None = 32
    document_sampling: Sampling = ONE_POSITIVE
    loss: str = "listwise_softmax"
    score_form: Score = "geometric_mean"
    temperature: float = 0.001

    # Parameters that control the loss
    alpha: float = 0.6
    ntp: bool = True
    ntp_reduction: Literal["mean", "sum"] = "mean"
    dp: bool = True
    teacher_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "teacher_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {getattr(self, name)!r}")
        if self.alpha == 0 and not self.ntp:
            raise InputError("alpha is 0 and ntp is off: nothing is left to train on; raise alpha or turn ntp on")
        changed = [
            name
            for name in ("alpha", "ntp", "dp", "teacher_weight")
            if getattr(self, name) != getattr(RankingSFTConfig, name)
        ]
        if self.objectives is not None and changed:
            raise InputError(f"objectives replace {', '.join(changed)}, and both were given; give one of them")
        super().__post_init__()

    def preset_weights(self) -> dict[str, float]:
        """The weighted sum of Eq. 5, without terms of weight 0."""
        terms = [
            (self.loss, self.alpha * (1 - self.teacher_weight)),
            ("listnet", self.alpha * self.teacher_weight),
            ("next_token", (1 - self.alpha) * self.ntp),
            ("penalty", (1 - self.alpha) * self.dp),
        ]
        weights: defaultdict[str, float] = defaultdict(float)
        for name, weight in terms:
            weights[name] += weight
        return {name: weight for name, weight in weights.items() if weight > 0}

    def idle_settings(self) -> set[str]:
        idle = super().idle_settings() | (set() if "next_token" in self.weights() else {"ntp_reduction"})
        return idle if self.objectives is None else idle | {"alpha", "ntp", "dp", "teacher_weight"}

    def options_of(self, name: str) -> dict[str, Any]:
        """The options of one objective."""
        own = {"reduction": self.ntp_reduction} if name == "next_token" else {}
        return {**own, **super().options_of(name)}

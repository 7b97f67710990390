"""Preset for distillation from a teacher's orders or scores (TWOLAR and relatives)."""

from __future__ import annotations

from dataclasses import dataclass

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.options import documented
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.trainable import Part


@documented
@dataclass
class RankingDistillConfig(RankingConfig):
    r"""
    Configuration class for the [`RankingDistillTrainer`]: RankNet over the first 30 documents, as in TWOLAR.

    It is a [`RankingConfig`] with other defaults; every objective of that can be named.

    Parameters:
        score_temperature (`float`, *optional*, defaults to `1.0`):
            Another name of `temperature`. Query likelihoods differ by tenths where TWOLAR's logits differ by whole
            numbers: about 0.1 suits `TSARankModel`.

    > [!NOTE]
    > These parameters have default values different from [`RankingConfig`]:
    > - `trainable`: Defaults to `"full"` instead of `"top_blocks"`.
    > - `lr_scheduler_type`: Defaults to `"constant"` instead of `"linear"`.
    """

    # Parameters whose default values are overridden
    trainable: Part = "full"
    lr_scheduler_type: str = "constant"

    # Parameters that control the loss
    score_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature not in (1.0, self.score_temperature) and self.score_temperature != 1.0:
            raise InputError("temperature and score_temperature are two names of one option; give one of them")
        self.temperature = self.score_temperature = max(
            (self.temperature, self.score_temperature), key=lambda given: given != 1.0
        )

    def idle_settings(self) -> set[str]:
        return super().idle_settings() | {"temperature"}

"""Preset for distillation from a teacher's rankings or scores (TWOLAR and related methods)."""

from __future__ import annotations

from dataclasses import dataclass

from modeling_tsarank.trainers.options import documented
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.trainable import Part


@documented
@dataclass
class RankingDistillConfig(RankingConfig):
    r"""
    Configuration class for the [`RankingDistillTrainer`]: RankNet on the first 30 documents, as in TWOLAR.

    It is a [`RankingConfig`] with other defaults; all of its objectives are available.

    Query likelihoods differ by tenths where TWOLAR's logits differ by whole numbers: for `TSARankModel`, use a
    `temperature` of about 0.1.

    > [!NOTE]
    > These parameters have default values different from [`RankingConfig`]:
    > - `trainable`: Defaults to `"full"` instead of `"top_blocks"`.
    > - `lr_scheduler_type`: Defaults to `"constant"` instead of `"linear"`.
    """

    # Parameters whose default values are overridden
    trainable: Part = "full"
    lr_scheduler_type: str = "constant"

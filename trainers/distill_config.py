"""Preset for distillation from a teacher's orders or scores (TWOLAR and relatives)."""

from __future__ import annotations

from dataclasses import dataclass

from modeling_tsarank.trainers.options import documented
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.trainable import Part


@documented
@dataclass
class RankingDistillConfig(RankingConfig):
    r"""
    Configuration class for the [`RankingDistillTrainer`]: RankNet over the first 30 documents, as in TWOLAR.

    It is a [`RankingConfig`] with other defaults; every objective of that can be named.

    Query likelihoods differ by tenths where TWOLAR's logits differ by whole numbers: a `temperature` of about 0.1
    suits `TSARankModel`.

    > [!NOTE]
    > These parameters have default values different from [`RankingConfig`]:
    > - `trainable`: Defaults to `"full"` instead of `"top_blocks"`.
    > - `lr_scheduler_type`: Defaults to `"constant"` instead of `"linear"`.
    """

    # Parameters whose default values are overridden
    trainable: Part = "full"
    lr_scheduler_type: str = "constant"

"""Preset for mixed-loss fine-tuning of a query-likelihood ranker (TSARankLLM, section 3.3)."""

from __future__ import annotations

from modeling_tsarank.trainers.ranking_trainer import RankingTrainer
from modeling_tsarank.trainers.sft_config import RankingSFTConfig


class RankingSFTTrainer(RankingTrainer):
    """Trainer for the weighted sum of TSARankLLM's Eq. 5.

        L = alpha * L_rank + (1 - alpha) * (L_ntp + L_dp)

    Each step uses, for every query, one positive and m negatives, sampled anew in every epoch. L_rank (Eq. 3) is a
    softmax cross-entropy over them, L_ntp (Eq. 2) the next-token loss of the query given the positive, L_dp (Eq. 4)
    the divergence from the starting checkpoint at the query tokens of all of the group's documents. With
    `teacher_weight` above 0, part of L_rank is cross-entropy with a teacher's scores instead.

    Args:
        model: a [`TSARankModel`], or the name or folder of one or of a plain decoder-only language model.
        args: a [`RankingSFTConfig`].
        train_dataset: rows with positives and negatives, in any layout of `load_training_rows`.
        eval_dataset, callbacks, optimizers: as in [`RankingTrainer`].

    Example:

        ```python
        from modeling_tsarank.modeling_tsarank import TSARankModel
        from modeling_tsarank.trainers.sft_config import RankingSFTConfig
        from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

        trainer = RankingSFTTrainer(
            model=TSARankModel.from_backbone("HuggingFaceTB/SmolLM2-135M"),
            args=RankingSFTConfig("my-ranker", trainable="lora", learning_rate=2e-4, num_negatives=7),
            train_dataset="train.jsonl",
        )
        trainer.train()
        trainer.save_model()
        ```
    """

    args: RankingSFTConfig

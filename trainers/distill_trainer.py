"""Preset for distillation of a teacher's rankings or scores into a ranking model of either family (TWOLAR)."""

from __future__ import annotations

from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.ranking_trainer import RankingTrainer


class RankingDistillTrainer(RankingTrainer):
    """Trainer for ranking losses on lists that a teacher has ranked, scored or graded.

    Each step uses up to M documents of every query; the loss is the configured one, on the model's ranking scores.
    For a `TSARankModel` these are query log-likelihoods.

    Args:
        model: a ranking model, or the name or folder of one; a plain model becomes a [`TwolarModel`].
        args: a [`RankingDistillConfig`].
        train_dataset: rows with a permutation, teacher scores or labels, in any layout of `load_training_rows`.
        eval_dataset, callbacks, optimizers: as in [`RankingTrainer`].

    Example:

        ```python
        from modeling_tsarank.modeling_twolar import TwolarModel
        from modeling_tsarank.trainers.distill_config import RankingDistillConfig
        from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer

        trainer = RankingDistillTrainer(
            model=TwolarModel.from_backbone("google/flan-t5-small"),
            args=RankingDistillConfig("my-twolar", loss="ranknet"),
            train_dataset="permutations.jsonl",
        )
        trainer.train()
        trainer.save_model()
        ```
    """

    args: RankingDistillConfig

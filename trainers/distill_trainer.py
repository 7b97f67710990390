"""Distillation of a teacher's orders or scores into a ranking model of either family (TWOLAR, section 3.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.modeling_twolar import TwolarModel
from modeling_tsarank.ranking_checkpoints import load_errors
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import CONFIG_KEY, QueryLikelihoodOptions
from modeling_tsarank.trainers.collators import Batch, DistillGroups, SampledGroups, group_mask, to_grid
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.gradient_cache import Values
from modeling_tsarank.trainers.losses import (
    get_ranking_loss,
    in_batch_ndcg,
    pairwise_accuracy,
    ranks_to_labels,
    scores_to_ranks,
)
from modeling_tsarank.trainers.ranking_trainer import Metrics, RankingTrainer
from modeling_tsarank.trainers.training_data import check_rows


TARGETS = ("ranks", "teacher_scores", "labels")


class RankingDistillTrainer(RankingTrainer):
    """Trainer for ranking losses over lists that a teacher has put in order, scored or graded.

    Each step takes up to M documents of every query; the loss is the one named in the configuration, on the scores
    that the model ranks by. With a `TSARankModel` those are query log-likelihoods.

    Logged: `pairwise_accuracy` (share of pairs in the teacher's order) and `in_batch_ndcg` (at 10, with the grades of
    the labels, else of the teacher's order).

    Args:
        model: a ranking model, or the name or folder of one; a plain model becomes a [`TwolarModel`].
        args: a [`RankingDistillConfig`].
        train_dataset: rows {"query", "documents"} with "permutation", "teacher_scores" or "labels", or any layout that
            `load_training_rows` knows.
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

    data_kind: ClassVar[str] = "distill"

    args: RankingDistillConfig

    def load_model(self, name: str | Path) -> RankerModel:
        with load_errors(str(name)):
            saved = getattr(AutoConfig.from_pretrained(name), CONFIG_KEY, None) or {}
        family = TSARankModel if saved.get("family") == QueryLikelihoodOptions.family else TwolarModel
        return family.from_backbone(name)

    def check_rows(self, rows: Any, minimum_rows: int) -> None:
        check_rows(rows, "distill", minimum_rows=minimum_rows, loss=self.args.loss)
        self._check_options()

    def _check_options(self) -> None:
        """Tries the loss once on made-up scores, so that a wrong option is an error before the training."""
        grid = torch.tensor([[0.0, 1.0]])
        targets = {"ranks": torch.tensor([[1, 2]]), "teacher_scores": grid, "labels": torch.tensor([[1.0, 0.0]])}
        try:
            get_ranking_loss(self.args.loss)(grid, targets, grid >= 0, **self._loss_options)
        except TypeError as error:
            options = self.args.loss_options
            raise InputError(f"the loss {self.args.loss} does not take the options {options}: {error}") from error

    @property
    def _loss_options(self) -> dict[str, Any]:
        # JSON on the command line, which the config has parsed by now.
        return self.args.loss_options if isinstance(self.args.loss_options, dict) else {}

    def make_groups(self, rows: Any, seed: int | None = None) -> SampledGroups:
        args = self.args
        seed = args.seed if seed is None else seed
        return DistillGroups(rows, seed, args.num_documents or None, args.document_sampling)

    def losses(self, values: Values, batch: Batch) -> tuple[Tensor, Metrics]:
        """The named loss of the batch's scores."""
        mask = group_mask(batch["group_sizes"])
        scores = to_grid(self.pair_scores(values, batch), mask) / self.args.score_temperature
        targets = {name: batch[name] for name in TARGETS if name in batch}
        loss = get_ranking_loss(self.args.loss)(scores, targets, mask, **self._loss_options)
        with torch.no_grad():
            labels = targets.get("labels")
            ranks = targets.get("ranks")
            if ranks is None:
                given = "teacher_scores" if "teacher_scores" in targets else "labels"
                ranks = scores_to_ranks(targets[given], mask)
            metrics = {
                "pairwise_accuracy": pairwise_accuracy(scores, ranks, mask),
                "in_batch_ndcg": in_batch_ndcg(
                    scores, ranks_to_labels(ranks, mask) if labels is None else labels, mask
                ),
            }
        return loss, metrics

"""Mixed-loss fine-tuning of a query-likelihood ranker (TSARankLLM, section 3.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.collators import Batch, SampledGroups, SFTGroups, group_mask, to_grid
from modeling_tsarank.trainers.gradient_cache import Values
from modeling_tsarank.trainers.losses import (
    ScoreForm,
    in_batch_ndcg,
    listnet_loss,
    listwise_softmax_loss,
    mixed_sft_loss,
    next_token_loss,
    ranking_accuracy,
    ranking_score,
)
from modeling_tsarank.trainers.ranking_trainer import Metrics, RankingTrainer
from modeling_tsarank.trainers.reference import Reference, make_reference
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.trainable import TrainablePart
from modeling_tsarank.trainers.training_data import check_rows


class RankingSFTTrainer(RankingTrainer):
    """Trainer for the mixture of TSARankLLM's Eq. 5.

        L = alpha * L_rank + (1 - alpha) * (L_ntp + L_dp)

    Each step takes, for every query, one positive and m negatives, drawn anew in every epoch. L_rank (Eq. 3) is a
    softmax cross-entropy over them, L_ntp (Eq. 2) the next-token loss of the query given the positive, L_dp (Eq. 4)
    the divergence from the starting checkpoint at the query tokens of all of the group's documents. Every term is a
    mean within its group first and then over the groups. With `teacher_weight` above 0, a share of L_rank is
    cross-entropy with a teacher's scores instead.

    Logged: `rank_loss`, `teacher_loss` (with a teacher), `ntp_loss`, `dp_loss`, `ranking_accuracy` (share of groups
    whose positive is first) and `in_batch_ndcg` (at 10, over the group).

    Args:
        model: a [`TSARankModel`], or the name or folder of one or of a plain decoder-only language model.
        args: a [`RankingSFTConfig`].
        train_dataset: rows {"query", "positives", "negatives"} or any layout that `load_training_rows` knows.
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

    data_kind: ClassVar[str] = "sft"

    args: RankingSFTConfig

    def load_model(self, name: str | Path) -> RankerModel:
        return TSARankModel.from_backbone(name)

    def check_model(self, ranker: Any) -> None:
        super().check_model(ranker)
        if not isinstance(ranker, TSARankModel):
            raise ModelError(
                f"mixed-loss fine-tuning needs a query-likelihood ranker (TSARankModel), got {type(ranker).__name__}; "
                "train that one by distillation"
            )

    def check_rows(self, rows: Any, minimum_rows: int) -> None:
        check_rows(
            rows,
            "sft",
            negatives=self.args.num_negatives,
            allow_fewer=self.args.allow_fewer_negatives,
            minimum_rows=minimum_rows,
        )
        if self.args.teacher_weight and any(scores is None for scores in _teacher_scores(rows)):
            raise InputError(
                f"teacher_weight is {self.args.teacher_weight:g}, and there are rows without positive_scores and "
                "negative_scores; `tsarank data scores` adds them"
            )

    def make_groups(self, rows: Any, seed: int | None = None) -> SampledGroups:
        return SFTGroups(rows, self.args.seed if seed is None else seed, self.args.num_negatives)

    def make_reference(self, ranker: RankerModel, part: TrainablePart) -> Reference | None:
        if not self.args.uses_dp:
            return None
        given = None if self.args.ref_model is None else self.load_model(self.args.ref_model)
        return make_reference(ranker, part, given)

    def losses(self, values: Values, batch: Batch) -> tuple[Tensor, Metrics]:
        """Eq. 5 of a batch whose groups have their positive first."""
        log_probs, counts = values["token_log_probs"], batch["query_lengths"]
        mask = group_mask(batch["group_sizes"])
        rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        sums = log_probs.new_zeros(len(counts)).index_add(0, rows, log_probs)
        scores = to_grid(ranking_score(sums, counts, cast(ScoreForm, self.args.score_form)), mask)
        rank = listwise_softmax_loss(scores, positive_index=0, mask=mask, temperature=self.args.temperature)
        metrics = {"rank_loss": rank}
        weight = self.args.teacher_weight
        if weight:
            temperatures = {"temperature": self.args.temperature, "teacher_temperature": self.args.teacher_temperature}
            metrics["teacher_loss"] = listnet_loss(scores, batch["teacher_scores"], mask, **temperatures)
            rank = (1 - weight) * rank + weight * metrics["teacher_loss"]
        ntp = dp = None
        if self.args.uses_ntp:
            ntp = metrics["ntp_loss"] = self._next_token(log_probs, batch, rows)
        if "divergences" in values:
            dp = metrics["dp_loss"] = _group_means(values["divergences"], batch, rows)
        loss = mixed_sft_loss(rank, ntp, dp, self.args.alpha)
        with torch.no_grad():
            labels = torch.zeros_like(scores)
            labels[:, 0] = 1
            metrics["ranking_accuracy"] = ranking_accuracy(scores, mask, 0)
            metrics["in_batch_ndcg"] = in_batch_ndcg(scores, labels, mask)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def _next_token(self, log_probs: Tensor, batch: Batch, rows: Tensor) -> Tensor:
        """Eq. 2, of the groups' first documents, the positives."""
        sizes, counts = batch["group_sizes"], batch["query_lengths"]
        positives = sizes.cumsum(0) - sizes
        is_positive = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
        is_positive[positives] = True
        mask = group_mask(counts[positives])
        reduction = cast(Literal["mean", "sum"], self.args.ntp_reduction)
        return next_token_loss(to_grid(log_probs[is_positive[rows]], mask), mask, reduction)


def _teacher_scores(rows: Any) -> list[Any]:
    """What each row has under `positive_scores`, `None` where nothing."""
    columns = getattr(rows, "column_names", None)
    if columns is None:
        return [row.get("positive_scores") for row in rows]
    return list(rows["positive_scores"]) if "positive_scores" in columns else [None]


def _group_means(token_values: Tensor, batch: Batch, rows: Tensor) -> Tensor:
    """Values of query tokens averaged over each group's tokens, then over the groups (Eq. 4)."""
    sizes = batch["group_sizes"]
    groups = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)[rows]
    totals = token_values.new_zeros(len(sizes)).index_add(0, groups, token_values)
    counts = token_values.new_zeros(len(sizes)).index_add(0, groups, torch.ones_like(token_values))
    return (totals / counts).mean()

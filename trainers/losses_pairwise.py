"""Pairwise losses over the documents of a query: RankNet on ranks or on teacher probabilities, MarginMSE."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from modeling_tsarank.ranking_options import check_choice
from modeling_tsarank.trainers.losses_targets import mean_over_groups, positive_mask, prepare_scores
from modeling_tsarank.trainers.objectives import objective


def log1p_exp(values: Tensor) -> Tensor:
    """log(1 + exp(x)) without overflow; unlike `softplus`, exact for large x in float64 as well."""
    return torch.logaddexp(values, torch.zeros_like(values))


def reduce_pairs(pair_losses: Tensor, pairs: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """Sum or mean over each group's pairs, then the mean over groups.

    Args:
        pair_losses: `(groups, documents, documents)`.
        pairs: boolean, the same shape: the pairs that count.
        mask: `(groups, documents)`.
        reduction: "mean" or "sum".
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    sums = torch.where(pairs, pair_losses, torch.zeros_like(pair_losses)).sum(dim=(1, 2))
    if reduction == "mean":
        sums = sums / pairs.sum(dim=(1, 2)).clamp(min=1)
    return mean_over_groups(sums, mask)


@objective("ranknet", "RankNet over every pair of ranked documents", needs=("ranks",))
def ranknet_loss(
    scores: Tensor, ranks: Tensor, mask: Tensor | None = None, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """RankNet on ranked documents (TWOLAR, Eq. 2, with the sign corrected).

        L = sum over i, j with r_i < r_j of log(1 + exp(s_j - s_i))

    where rank 1 is the best. The sources differ in two points:

    - The paper prints exp(s_i - s_j), which rewards the wrong order; its published code has the sign used here.
    - The paper sums over pairs; the published code averages over them, as is the default here. With several queries
      the mean is taken within each query first, which is what the published code does at batch size 1.

    Documents of equal rank form no pair. A query without a pair adds 0 to the mean over queries.

    Args:
        scores: `(groups, documents)`.
        ranks: `(groups, documents)`, lower is better; values at padding are ignored.
        mask: `(groups, documents)`, true for real documents; `None` if all are.
        reduction: "mean" or "sum" over the pairs of a query.

    Returns:
        A scalar.

    Raises:
        InputError: shapes differ, or the reduction is unknown.

    References:
        Burges et al. 2005, Learning to rank using gradient descent; Baldelli et al. 2024, TWOLAR, Eq. 2.
    """
    scores, mask = prepare_scores(scores, mask, ranks=ranks)
    pairs = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    return reduce_pairs(log1p_exp(scores[:, None, :] - scores[:, :, None]), pairs, mask, reduction)


@objective("soft_ranknet", "RankNet with the teacher's pair probabilities", needs=("teacher_scores",))
def soft_ranknet_loss(scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """RankNet with the teacher's pair probabilities as soft targets, averaged over every pair i < j.

        P_ij = sigmoid(t_i - t_j)
        L = mean of -[P_ij log sigmoid(s_i - s_j) + (1 - P_ij) log sigmoid(s_j - s_i)]

    This is the 2005 paper's cross-entropy with P from a teacher, as in DeAR's released `rank_net`. Unlike
    `ranknet_loss` it is not 0 in the limit of a perfect ranking, and it pulls together documents with equal teacher
    scores.

    Args:
        scores: `(groups, documents)`.
        teacher_scores: `(groups, documents)`; constants.
        mask: `(groups, documents)`, true for real documents.

    Returns:
        A scalar.
    """
    scores, mask = prepare_scores(scores, mask, teacher_scores=teacher_scores)
    teacher, _ = prepare_scores(teacher_scores.detach(), mask)
    pairs = _unordered_pairs(mask)
    margins = scores[:, :, None] - scores[:, None, :]
    targets = torch.sigmoid(teacher[:, :, None] - teacher[:, None, :]).to(scores.dtype)
    losses = targets * log1p_exp(-margins) + (1 - targets) * log1p_exp(margins)
    return reduce_pairs(losses, pairs, mask, "mean")


@objective("margin_mse", "squared error of score margins", needs=("teacher_scores",))
def margin_mse_loss(
    scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    pairs: Literal["all", "positive_negative"] = "all",
) -> Tensor:
    """Mean squared error between the student's and the teacher's score margins.

        L = mean over pairs (i, j) of ((s_i - s_j) - (t_i - t_j))^2

    Args:
        scores: `(groups, documents)`.
        teacher_scores: `(groups, documents)`; constants, in the student's scale (a margin has no temperature).
        mask: `(groups, documents)`, true for real documents.
        labels: `(groups, documents)`, above 0 for positives; used only with `pairs="positive_negative"`.
        pairs: "all" uses every pair i < j (a list without labels); "positive_negative" pairs each positive with each
            negative, the original form.

    Returns:
        A scalar: the mean over a query's pairs, then over queries.

    References:
        Hofstätter et al. 2020, Improving efficient neural ranking models with cross-architecture knowledge
        distillation (arXiv 2010.02666).
    """
    check_choice("pairs", pairs, ("all", "positive_negative"))
    scores, mask = prepare_scores(scores, mask, teacher_scores=teacher_scores, labels=labels)
    teacher, _ = prepare_scores(teacher_scores.detach(), mask)
    if pairs == "all":
        counted = _unordered_pairs(mask)
    else:
        positives = positive_mask(mask, labels)
        counted = positives[:, :, None] & (mask & ~positives)[:, None, :]
    errors = scores - teacher.to(scores.dtype)
    return reduce_pairs((errors[:, :, None] - errors[:, None, :]).square(), counted, mask, "mean")


def _unordered_pairs(mask: Tensor) -> Tensor:
    """Each pair i < j of real documents once, boolean `(groups, documents, documents)`."""
    upper = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).triu(diagonal=1)
    return upper & mask[:, :, None] & mask[:, None, :]

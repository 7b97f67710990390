"""Listwise losses over the documents of a query: softmax cross-entropy, ListNet, LambdaRank and DeAR's sum."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import check_choice, whole_number
from modeling_tsarank.trainers.losses_pairwise import log1p_exp, reduce_pairs, soft_ranknet_loss
from modeling_tsarank.trainers.losses_targets import (
    check_temperature,
    mean_over_groups,
    positive_mask,
    prepare_scores,
    ranks_to_labels,
)
from modeling_tsarank.trainers.objectives import objective


MAX_EXPONENTIAL_LABEL = 60


def _fill_padding(scores: Tensor, keep: Tensor) -> Tensor:
    """Very low but finite scores where `keep` is false: minus infinity makes the softmax of an empty group NaN."""
    return scores.masked_fill(~keep, torch.finfo(scores.dtype).min / 4)


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """log softmax over the real documents of each group, 0 at padding. `scores` must be prepared."""
    values = torch.log_softmax(_fill_padding(scores, mask), dim=1)
    return torch.where(mask, values, torch.zeros_like(values))


@objective("listwise_softmax", "softmax cross-entropy of the positive", needs=("labels",), positives=True)
def listwise_softmax_loss(
    scores: Tensor,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Softmax cross-entropy of one positive against its negatives (TSARankLLM, Eq. 3).

        L = -log( exp(S(q, d+) / tau) / sum over d in D of exp(S(q, d) / tau) ),  D = {d+, d1-, ..., dm-}

    With several positives in `labels`, the mean over them, each with its own list D: itself and the negatives (the
    other positives are left out, as the equation has one positive). The paper's tau is 0.001 and its S a product
    of probabilities; the published code uses the geometric mean, see `ranking_score`.

    Args:
        scores: `(groups, documents)`, S before the temperature.
        labels: `(groups, documents)`, above 0 for positives; without them the first document is the positive.
        mask: `(groups, documents)`, true for real documents.
        temperature: tau, above 0.

    Returns:
        A scalar, the mean over groups; a group without a negative (or without a positive) adds 0.

    Raises:
        InputError: tau is not positive, or shapes differ.
    """
    check_temperature(temperature)
    scores, mask = prepare_scores(scores, mask, labels=labels)
    scores = scores / temperature
    positives = positive_mask(mask, labels)
    negatives = mask & ~positives
    rivals = torch.logsumexp(_fill_padding(scores, negatives), dim=1, keepdim=True)
    losses = log1p_exp(rivals - scores)
    counted = positives & negatives.any(dim=1, keepdim=True)
    sums = torch.where(counted, losses, torch.zeros_like(losses)).sum(dim=1)
    return mean_over_groups(sums / counted.sum(dim=1).clamp(min=1), mask)


@objective("listnet", "cross-entropy to the teacher's distribution", needs=("teacher_scores",))
def listnet_loss(
    scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
) -> Tensor:
    """ListNet with top-one probabilities: cross-entropy from the teacher's softmax to the student's.

        L = -sum over d of softmax(t / T_t)_d * log softmax(s / T_s)_d

    The teacher's entropy, a constant, is not subtracted (`kl_to_teacher` does), and no epsilon is added inside the
    logarithm as in published implementations: log softmax is always finite.

    Args:
        scores: `(groups, documents)`.
        teacher_scores: `(groups, documents)`; constants. Graded labels work as well.
        mask: `(groups, documents)`, true for real documents.
        temperature: the student's.
        teacher_temperature: the teacher's.

    Returns:
        A scalar, the mean over groups.

    References:
        Cao et al. 2007, Learning to rank: from pairwise approach to listwise approach.
    """
    check_temperature(temperature)
    check_temperature(teacher_temperature, "teacher_temperature")
    scores, mask = prepare_scores(scores, mask, teacher_scores=teacher_scores)
    teacher, _ = prepare_scores(teacher_scores.detach(), mask)
    targets = masked_log_softmax(teacher / teacher_temperature, mask).exp().to(scores.dtype) * mask
    return mean_over_groups(-(targets * masked_log_softmax(scores / temperature, mask)).sum(dim=1), mask)


def kl_to_teacher(
    scores: Tensor, teacher_scores: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """T^2 * KL( softmax(t / T) || softmax(s / T) ) over the documents of a group, the mean over groups.

    T^2 keeps the gradient's size independent of the temperature (Hinton et al. 2015). 0 where student and teacher
    agree up to a constant. Shapes as in `listnet_loss`.
    """
    check_temperature(temperature)
    scores, mask = prepare_scores(scores, mask, teacher_scores=teacher_scores)
    teacher, _ = prepare_scores(teacher_scores.detach(), mask)
    log_targets = masked_log_softmax(teacher / temperature, mask).to(scores.dtype)
    log_student = masked_log_softmax(scores / temperature, mask)
    divergences = (log_targets.exp() * mask * (log_targets - log_student)).sum(dim=1)
    return temperature**2 * mean_over_groups(divergences, mask)


@objective(
    "lambdarank", "RankNet's pairs weighted by their nDCG", needs=("labels",), labels_from_ranks=ranks_to_labels
)
def lambdarank_loss(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    gain: Literal["linear", "exponential"] = "linear",
    k: int | None = None,
    sigma: float = 1.0,
    reduction: Literal["mean", "sum"] = "sum",
) -> Tensor:
    """LambdaRank as a loss: RankNet's pairs, each weighted by the nDCG change of a swap (the LambdaLoss framework).

        L = sum over i, j with y_i > y_j of |G_i - G_j| |1/D(p_i) - 1/D(p_j)| log2(1 + exp(-sigma (s_i - s_j)))

    with p the position by the current scores (ties: by index; the weights carry no gradient), D(p) = log2(1 + p) and G
    the gain divided by the ideal DCG. The default is trec_eval's linear gain, the nDCG that the evaluation reports;
    the LambdaLoss paper and published implementations use 2^y - 1 (`gain="exponential"`). The paper sums over pairs,
    as is the default here; published implementations average.

    Args:
        scores: `(groups, documents)`.
        labels: `(groups, documents)`, grades of at least 0; from ranks: `ranks_to_labels`; from a teacher's scores:
            `ranks_to_labels(scores_to_ranks(teacher_scores))`.
        mask: `(groups, documents)`, true for real documents.
        gain: "linear" (y) or "exponential" (2^y - 1).
        k: nDCG cutoff: a pair counts if at least one of the two is among the k best-scored; `None` counts all.
        sigma: slope of the sigmoid.
        reduction: "sum" or "mean" over the pairs of a query.

    Returns:
        A scalar, the mean over groups.

    Raises:
        InputError: unknown option, shapes differ, k below 1, or a label below 0.

    References:
        Burges 2010, From RankNet to LambdaRank to LambdaMART; Wang et al. 2018, The LambdaLoss framework for ranking
        metric optimization.
    """
    check_choice("gain", gain, ("linear", "exponential"))
    check_temperature(sigma, "sigma")
    k = None if k is None else whole_number(k, "the cut-off k")
    scores, mask = prepare_scores(scores, mask, labels=labels)
    with torch.no_grad():
        labels = torch.where(mask, labels.to(scores.dtype), torch.zeros_like(scores))
        if bool((labels < 0).any()):
            raise InputError("labels must be at least 0 for a gain; turn scores into grades with ranks_to_labels")
        if gain == "exponential" and bool((labels > MAX_EXPONENTIAL_LABEL).any()):
            raise InputError(
                f"labels above {MAX_EXPONENTIAL_LABEL} overflow the gain 2^y - 1, got {labels.max().item():g}; "
                'use gain="linear"'
            )
        positions = _positions(scores, mask)
        gains = _normalized_gains(labels, gain, k)
        discounts = 1 / torch.log2(1 + positions.to(gains.dtype))
        weights = (gains[:, :, None] - gains[:, None, :]).abs() * (discounts[:, :, None] - discounts[:, None, :]).abs()
        pairs = (labels[:, :, None] > labels[:, None, :]) & mask[:, :, None] & mask[:, None, :]
        if k is not None:
            pairs &= (positions[:, :, None] <= k) | (positions[:, None, :] <= k)
    losses = weights * log1p_exp(-sigma * (scores[:, :, None] - scores[:, None, :])) / math.log(2)
    return reduce_pairs(losses, pairs, mask, reduction)


def _positions(scores: Tensor, mask: Tensor) -> Tensor:
    """1-based positions by descending score, ties by index, padding last."""
    order = scores.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    columns = torch.arange(1, scores.shape[1] + 1, device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, columns)


def _normalized_gains(labels: Tensor, gain: str, k: int | None) -> Tensor:
    """Gains divided by the ideal DCG@k of the group; 0 if no document is relevant."""
    gains = labels if gain == "linear" else torch.exp2(labels) - 1
    ideal = gains.sort(dim=1, descending=True).values[:, :k]
    discounts = torch.log2(torch.arange(2, ideal.shape[1] + 2, device=gains.device, dtype=gains.dtype))
    best = (ideal / discounts).sum(dim=1, keepdim=True)
    return torch.where(best > 0, gains / torch.where(best > 0, best, torch.ones_like(best)), torch.zeros_like(gains))


@objective("dear", "cross-entropy, RankNet and KL to a teacher", needs=("teacher_scores",))
def dear_loss(
    scores: Tensor,
    teacher_scores: Tensor,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    cross_entropy_weight: float = 0.45,
    ranknet_weight: float = 0.45,
    kl_weight: float = 0.1,
    temperature: float = 2.0,
) -> Tensor:
    """DeAR's first stage: a weighted sum of cross-entropy, RankNet and KL to the teacher's distribution.

        L = w_ce * L_ce + w_rn * L_ranknet + w_kl * T^2 * KL( softmax(t / T) || softmax(s / T) )

    with L_ce the softmax cross-entropy of the positive at temperature 1. The released code
    (DataScienceUIBK/DeAR-Reranking, `pointwise_reranker/modeling.py`) is (1 - alpha) * L_main + alpha * T^2 * KL,
    where L_main is chosen by name, among them 0.5 * RankNet + 0.5 * cross-entropy, with T = 2 and, in its training
    script, alpha = 0.1: the default weights are derived from these. Its RankNet has soft targets
    (`soft_ranknet_loss`), on the teacher's scores or, in the weighted sum, on 0/1 relevance; here it is on the
    teacher's scores. The paper's text names the three terms; whether its weights are the same is not known.

    Args:
        scores: `(groups, documents)`.
        teacher_scores: `(groups, documents)`; constants.
        mask: `(groups, documents)`, true for real documents.
        labels: `(groups, documents)`, above 0 for positives; by default the teacher's best document is the positive.
        cross_entropy_weight: w_ce, at least 0.
        ranknet_weight: w_rn, at least 0.
        kl_weight: w_kl, at least 0.
        temperature: T, of the KL term only.

    Returns:
        A scalar.

    Raises:
        InputError: a negative weight, all weights 0, or shapes differ.

    References:
        Abdallah et al. 2025, DeAR: dual-stage document reranking with reasoning agents via LLM distillation
        (arXiv 2508.16998).
    """
    weights = (cross_entropy_weight, ranknet_weight, kl_weight)
    if min(weights) < 0 or max(weights) == 0:
        raise InputError(f"the three weights must be at least 0 and not all 0, got {weights}")
    prepared, real = prepare_scores(scores, mask, teacher_scores=teacher_scores, labels=labels)
    if labels is None:
        best = _fill_padding(prepare_scores(teacher_scores.detach(), real)[0], real).argmax(dim=1, keepdim=True)
        labels = torch.zeros_like(prepared).scatter_(1, best, 1.0)
    cross_entropy = listwise_softmax_loss(prepared, labels, real)
    ranknet = soft_ranknet_loss(prepared, teacher_scores, real)
    divergence = kl_to_teacher(prepared, teacher_scores, real, temperature)
    return cross_entropy_weight * cross_entropy + ranknet_weight * ranknet + kl_weight * divergence

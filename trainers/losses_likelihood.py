"""Losses of query likelihood: the score in Eq. 3, next-token prediction and the Differential Penalty (TSARankLLM)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import check_choice, whole_number
from modeling_tsarank.trainers.losses_targets import (
    full_precision,
    mean_over_groups,
    positive_mask,
    prepare_scores,
)
from modeling_tsarank.trainers.objectives import best_as_positive, objective


ScoreForm = Literal["geometric_mean", "mean_log_prob", "sum_log_prob", "product"]
SCORE_FORMS: tuple[ScoreForm, ...] = get_args(ScoreForm)

# Elements per float32 block of logits in the Differential Penalty (64 MiB).
PENALTY_BLOCK = 2**24


def ranking_score(
    token_log_prob_sum: Tensor,
    token_count: Tensor,
    form: ScoreForm = "geometric_mean",
) -> Tensor:
    """S of Eq. 3: a document's score in the ranking loss, from the log-probabilities of the query's tokens.

        geometric_mean  exp( (1/n) sum_j log p_j )   the published code; used with tau = 0.001
        mean_log_prob   (1/n) sum_j log p_j          the score used for ranking; use a tau around 0.1
        sum_log_prob    sum_j log p_j                log of Eq. 1
        product         exp( sum_j log p_j )         Eq. 1, literally

    The paper writes the product. For a real query of ten tokens that is around 1e-15, so that S/0.001 is the same ~0
    for every document and the loss has no gradient (below about exp(-103) it is exactly 0 in float32); it is included
    only for comparison. All forms rank the documents of one query identically.

    Args:
        token_log_prob_sum: any shape, sum over the query's tokens of log p, at most 0.
        token_count: the same shape or one that broadcasts to it, the number of query tokens. A count of 0 (a padding
            document) is treated as 1, which keeps the padding finite.
        form: one of `SCORE_FORMS`.

    Returns:
        Scores in the shape of `token_log_prob_sum`; half precision is converted to float32, because a temperature of
        0.001 would magnify bfloat16's rounding errors beyond the differences between documents.

    Raises:
        InputError: unknown form.
    """
    check_choice("form of the ranking score", form, SCORE_FORMS)
    total = full_precision(token_log_prob_sum)
    if form in ("sum_log_prob", "product"):
        return total if form == "sum_log_prob" else total.exp()
    mean = total / token_count.to(total.dtype).clamp(min=1)
    return mean.exp() if form == "geometric_mean" else mean


@objective(
    "next_token",
    "next-token prediction of the positives' queries (query likelihood only)",
    needs=("labels",),
    positives=True,
    labels_from_ranks=best_as_positive,
    linear=True,
)
def next_token_loss(
    log_likelihoods: Tensor,
    query_lengths: Tensor,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """Next-token prediction of the query given a positive document (TSARankLLM, Eq. 2).

        L = - sum_j log p(q_j | P(d), q_<j)

    The paper sums over the query's tokens and then adds that sum to means (Eq. 5); the default here is the mean
    over them. The published code also trains on the document's and the prompt's tokens. The equation has no term that
    makes a negative's query likely: only positives count; several are averaged. For rows with an order and no labels,
    the best document is the positive.

    Args:
        log_likelihoods: `(groups, documents)`, sum of log p over the query's tokens.
        query_lengths: `(groups, documents)`, the number of those tokens.
        labels: `(groups, documents)`, above 0 for positives; by default the first document is the only one.
        mask: `(groups, documents)`, true for real documents.
        reduction: "mean" or "sum" over the query's tokens.

    Returns:
        A scalar, the mean over groups; a group without a positive adds 0.

    Raises:
        InputError: shapes differ, or the reduction is unknown.
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    values, mask = prepare_scores(log_likelihoods, mask, query_lengths=query_lengths, labels=labels)
    positives = positive_mask(mask, labels) & (query_lengths > 0)
    if reduction == "mean":
        values = values / query_lengths.clamp(min=1)
    sums = -torch.where(positives, values, torch.zeros_like(values)).sum(dim=1)
    return mean_over_groups(sums / positives.sum(dim=1).clamp(min=1), mask)


class _TokenKL(torch.autograd.Function):
    """KL(p_reference || p) of every token, block by block; see `token_kl`.

    Nothing of the vocabulary's size is saved between the passes except the two inputs: the backward pass recomputes
    the gradient p - p_reference. Rows with identical logits are set to 0 in both passes, because a softmax kernel may
    round two equal rows differently if their memory alignment differs.
    """

    @staticmethod
    def forward(ctx: Any, reference: Tensor, logits: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(reference, logits)
        ctx.block = block
        values = []
        for start in range(0, len(logits), block):
            reference_part, part, same = _rows(reference, logits, start, block)
            log_target = torch.log_softmax(reference_part, dim=1)
            gap = log_target - torch.log_softmax(part, dim=1)
            target = log_target.exp()
            # Where p_reference is 0 the term is 0 by definition, even if a logit is minus infinity.
            terms = torch.where(target > 0, target * gap, torch.zeros_like(gap))
            values.append(terms.sum(dim=1).masked_fill(same, 0.0))
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        reference, logits = ctx.saved_tensors
        result = torch.empty_like(logits)
        for start in range(0, len(logits), ctx.block):
            reference_part, part, same = _rows(reference, logits, start, ctx.block)
            difference = torch.softmax(part, dim=1).sub_(torch.softmax(reference_part, dim=1))
            difference.masked_fill_(same[:, None], 0.0).mul_(grad[start : start + ctx.block, None])
            result[start : start + ctx.block] = difference
        return None, result, None


def _rows(reference: Tensor, logits: Tensor, start: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """One block of both logits in full precision, and a mask of its identical rows."""
    reference_part = full_precision(reference[start : start + block])
    part = full_precision(logits[start : start + block])
    reference_part = reference_part.to(part.dtype)
    return reference_part, part, (reference_part == part).all(dim=1)


def token_kl(reference_logits: Tensor, logits: Tensor, block_tokens: int | None = None) -> Tensor:
    """KL( softmax(reference) || softmax(logits) ) of every token over the full vocabulary.

    Exactly 0 with an exactly zero gradient, p - p_reference, at tokens where the two rows of logits are identical.

    Args:
        reference_logits: `(tokens, vocabulary)`; constants, without gradient.
        logits: `(tokens, vocabulary)`.
        block_tokens: tokens per block; by default as many as fill 64 MiB in float32. Extra memory is about four such
            blocks, plus the gradient itself in the backward pass.

    Returns:
        `(tokens,)`, in nats, float32 or float64. First derivatives only.

    Raises:
        InputError: shapes differ, or the block size is below one token.
    """
    if logits.ndim != 2 or reference_logits.shape != logits.shape:
        raise InputError(
            "reference_logits and logits must both have the shape (tokens, vocabulary), "
            f"got {tuple(reference_logits.shape)} and {tuple(logits.shape)}"
        )
    if block_tokens is None:
        block_tokens = max(1, PENALTY_BLOCK // max(1, logits.shape[1]))
    block_tokens = whole_number(block_tokens, "block_tokens")
    if not len(logits):
        return full_precision(logits).sum(dim=1)
    return _TokenKL.apply(reference_logits.detach(), logits, block_tokens)


@objective("penalty", "Differential Penalty: KL from the starting checkpoint (query likelihood only)", linear=True)
def differential_penalty(divergences: Tensor, query_lengths: Tensor, mask: Tensor | None = None) -> Tensor:
    """The Differential Penalty: divergence of the model from its starting point (TSARankLLM, Eq. 4).

        L = (1 / |T|) sum over query tokens of KL(p_cpt || p_sft)

    over the full vocabulary at temperature 1 (`token_kl`), T being the query tokens of every document in the group.
    The printed equation has factors |T| |V| / |V| that cancel or make no sense; there is no 1/|V| here. The published
    code averages over all positions of the batch, padding included.

    Args:
        divergences: `(groups, documents)`, sum over the query's tokens.
        query_lengths: `(groups, documents)`, the number of those tokens.
        mask: `(groups, documents)`, true for real documents.

    Returns:
        A scalar, the mean over groups.

    Raises:
        InputError: shapes differ.
    """
    values, mask = prepare_scores(divergences, mask, query_lengths=query_lengths)
    return mean_over_groups(values.sum(dim=1) / (query_lengths * mask).sum(dim=1).clamp(min=1), mask)

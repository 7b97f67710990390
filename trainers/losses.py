"""The losses of both papers and their relatives, one function each, and the register of ranking losses by name.

Everything here is pure torch on tensors: no model, no tokenizer, no trainer. Ranking losses take `scores` of shape
`(groups, documents)`, one row per query, and a boolean `mask` that is false at padding documents; every loss is the
mean over the groups of a loss of one group, so that splitting a batch into equal parts and averaging gives the same
value. Half precision is raised to float32, float32 and float64 are kept.

| name in `LOSSES` | needs | also reads | function |
|---|---|---|---|
| listwise_softmax | labels | | `listwise_softmax_loss` (TSARankLLM, Eq. 3) |
| ranknet | ranks | | `ranknet_loss` (TWOLAR, Eq. 2) |
| soft_ranknet | teacher_scores | | `soft_ranknet_loss` |
| listnet | teacher_scores | | `listnet_loss` |
| lambdarank | labels | | `lambdarank_loss` |
| margin_mse | teacher_scores | labels | `margin_mse_loss` |
| dear | teacher_scores | labels | `dear_loss` |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number
from modeling_tsarank.trainers.losses_listwise import (
    dear_loss,
    kl_to_teacher,
    lambdarank_loss,
    listnet_loss,
    listwise_softmax_loss,
)
from modeling_tsarank.trainers.losses_pairwise import margin_mse_loss, ranknet_loss, soft_ranknet_loss
from modeling_tsarank.trainers.losses_targets import (
    check_choice,
    full_precision,
    in_batch_ndcg,
    pairwise_accuracy,
    permutation_to_ranks,
    ranking_accuracy,
    ranks_to_labels,
    scores_to_ranks,
)


__all__ = [
    "LOSSES",
    "SCORE_FORMS",
    "RankingLoss",
    "ScoreForm",
    "dear_loss",
    "differential_penalty",
    "get_ranking_loss",
    "in_batch_ndcg",
    "kl_to_teacher",
    "lambdarank_loss",
    "listnet_loss",
    "listwise_softmax_loss",
    "margin_mse_loss",
    "mixed_sft_loss",
    "next_token_loss",
    "pairwise_accuracy",
    "permutation_to_ranks",
    "ranking_accuracy",
    "ranking_score",
    "ranknet_loss",
    "ranks_to_labels",
    "scores_to_ranks",
    "soft_ranknet_loss",
    "token_kl",
]

ScoreForm = Literal["geometric_mean", "mean_log_prob", "sum_log_prob", "product"]
SCORE_FORMS: tuple[ScoreForm, ...] = get_args(ScoreForm)

# Targets that ranks can be read off, the first that is there.
_RANK_SOURCES = ("ranks", "teacher_scores", "labels")

# Elements of one float32 block of logits that the Differential Penalty works on at once (64 MiB).
PENALTY_BLOCK = 2**24


def ranking_score(
    token_log_prob_sum: Tensor,
    token_count: Tensor,
    form: ScoreForm = "geometric_mean",
) -> Tensor:
    """S of Eq. 3: a document's score in the ranking loss, from the log-probabilities of the query's tokens.

        geometric_mean  exp( (1/n) sum_j log p_j )   the published code; goes with tau = 0.001
        mean_log_prob   (1/n) sum_j log p_j          the score used for ranking; a tau around 0.1 suits it
        sum_log_prob    sum_j log p_j                log of Eq. 1
        product         exp( sum_j log p_j )         Eq. 1 taken literally

    The paper writes the product. For a real query of ten tokens that is around 1e-15, so that S/0.001 is the same ~0
    for every document and the loss has no gradient (below about exp(-103) it is exactly 0 in float32); it is offered
    for comparison only. All forms order the documents of one query alike.

    Args:
        token_log_prob_sum: any shape, sum over the query's tokens of log p, at most 0.
        token_count: the same shape or one that broadcasts to it, the number of query tokens. A count of 0 (a padding
            document) is read as 1, which keeps the padding finite.
        form: one of `SCORE_FORMS`.

    Returns:
        Scores in the shape of `token_log_prob_sum`; half precision is raised to float32, as a temperature of 0.001
        would magnify bfloat16's rounding beyond every difference between documents.

    Raises:
        InputError: unknown form.
    """
    check_choice("form of the ranking score", form, SCORE_FORMS)
    total = full_precision(token_log_prob_sum)
    if form in ("sum_log_prob", "product"):
        return total if form == "sum_log_prob" else total.exp()
    mean = total / token_count.to(total.dtype).clamp(min=1)
    return mean.exp() if form == "geometric_mean" else mean


def next_token_loss(
    token_log_probs: Tensor, query_mask: Tensor | None = None, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Next-token prediction of the query given a positive document (TSARankLLM, Eq. 2).

        L = - sum_j log p(q_j | P(d), q_<j)

    The paper sums over the query's tokens and then mixes that sum with means (Eq. 5); the default here is the mean
    over them. The published code also trains on the document's and the prompt's tokens; here only what is passed
    counts. Pass the rows of *positive* documents only: nothing in the equation makes a negative's query likely.

    Args:
        token_log_probs: `(pairs, tokens)`, log p of each query token.
        query_mask: `(pairs, tokens)`, true at query tokens; `None` where every token is one. Values elsewhere enter
            neither the loss nor the gradient.
        reduction: "mean" or "sum" over a pair's tokens; the result is the mean over the pairs in both cases.

    Returns:
        A scalar; 0, still attached to the graph, where there is no query token at all.

    Raises:
        InputError: shapes differ, or the reduction is unknown.
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    if query_mask is None:
        query_mask = torch.ones_like(token_log_probs, dtype=torch.bool)
    if token_log_probs.ndim != 2 or query_mask.shape != token_log_probs.shape:
        raise InputError(
            "token_log_probs and query_mask must both have the shape (pairs, tokens), "
            f"got {tuple(token_log_probs.shape)} and {tuple(query_mask.shape)}"
        )
    query_mask = query_mask.bool()
    values = full_precision(token_log_probs)
    sums = -torch.where(query_mask, values, torch.zeros_like(values)).sum(dim=1)
    counts = query_mask.sum(dim=1)
    if reduction == "mean":
        sums = sums / counts.clamp(min=1)
    return sums.sum() / (counts > 0).sum().clamp(min=1)


class _TokenKL(torch.autograd.Function):
    """KL(p_reference || p) of every token, block by block; see `token_kl`.

    Nothing of the vocabulary's size is kept between the passes but the two inputs: the backward pass computes the
    gradient p - p_reference anew. Rows whose logits are identical are set to 0 in both passes, because a softmax
    kernel may round two equal rows differently when they are aligned differently in memory.
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
    """One block of both logits in full precision, and which of its rows are identical."""
    reference_part = full_precision(reference[start : start + block])
    part = full_precision(logits[start : start + block])
    reference_part = reference_part.to(part.dtype)
    return reference_part, part, (reference_part == part).all(dim=1)


def token_kl(reference_logits: Tensor, logits: Tensor, block_tokens: int | None = None) -> Tensor:
    """KL( softmax(reference) || softmax(logits) ) of every token over the full vocabulary.

    Exactly 0 with an exactly zero gradient, p - p_reference, at tokens where the two rows of logits are identical.

    Args:
        reference_logits: `(tokens, vocabulary)`; constants: no gradient goes there.
        logits: `(tokens, vocabulary)`.
        block_tokens: tokens worked on at once; by default as many as fill 64 MiB in float32. Extra memory is about
            four such blocks, and in the backward pass the gradient itself.

    Returns:
        `(tokens,)`, in nats, float32 or float64. First derivatives only.

    Raises:
        InputError: shapes differ, or a block of less than one token.
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


def differential_penalty(
    reference_logits: Tensor,
    logits: Tensor,
    token_weights: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    block_tokens: int | None = None,
) -> Tensor:
    """The Differential Penalty: how far the model has moved from its starting point (TSARankLLM, Eq. 4).

        L = (1 / |T|) sum over query tokens of KL(p_cpt || p_sft)

    over the full vocabulary at temperature 1, T being the query tokens of every document in the group. The printed
    equation has factors |T| |V| / |V| that cancel or make no sense; there is no 1/|V| here. The published code
    averages over all positions of the batch, padding included.

    Args:
        reference_logits: `(tokens, vocabulary)`, of the checkpoint that fine-tuning started from; constants.
        logits: `(tokens, vocabulary)`, of the model in training, at the same query positions.
        token_weights: `(tokens,)`, at least 0: by default 1 each. Give `1 / (query's tokens)` to count queries of
            different length alike.
        reduction: "mean" divides by the sum of weights. For a group worked on in chunks take "sum" of every chunk and
            divide by the group's total once: both the value and the gradient are then those of the whole.
        block_tokens: see `token_kl`.

    Returns:
        A scalar; exactly 0 with exactly zero gradient while the two logits are identical. 0 for no token at all.

    Raises:
        InputError: shapes differ, or an unknown reduction.
    """
    check_choice("reduction", reduction, ("mean", "sum"))
    divergences = token_kl(reference_logits, logits, block_tokens)
    if token_weights is None:
        total = divergences.sum()
        return total / max(1, len(divergences)) if reduction == "mean" else total
    if token_weights.shape != divergences.shape:
        raise InputError(
            f"token_weights must hold one weight for each of {len(divergences)} tokens, "
            f"got the shape {tuple(token_weights.shape)}"
        )
    weights = token_weights.to(divergences.dtype)
    total = (weights * divergences).sum()
    if reduction == "sum":
        return total
    norm = weights.sum()
    return total / torch.where(norm > 0, norm, torch.ones_like(norm))


def mixed_sft_loss(
    ranking: Tensor, next_token: Tensor | None = None, penalty: Tensor | None = None, alpha: float = 0.6
) -> Tensor:
    """The mixture that fine-tuning minimizes (TSARankLLM, Eq. 5).

        L = alpha * L_rank + (1 - alpha) * (L_ntp + L_dp)

    The published code has no alpha. A term that is `None` is left out without changing the others' weights.

    Args:
        ranking: L_rank, a scalar.
        next_token: L_ntp, a scalar.
        penalty: L_dp, a scalar.
        alpha: between 0 and 1.

    Raises:
        InputError: alpha is outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie between 0 and 1, got {alpha!r}")
    total = alpha * ranking
    for auxiliary in (next_token, penalty):
        if auxiliary is not None:
            total = total + (1 - alpha) * auxiliary
    return total


@dataclass(frozen=True)
class RankingLoss:
    """A ranking loss and what it needs beside the scores.

    Parameters:
        name (`str`): its name in `LOSSES` and in a training config.
        function (`Callable`): takes `scores`, the targets named below, `mask`, and its own options.
        needs (`tuple[str, ...]`): targets without which it cannot work: "labels", "ranks" or "teacher_scores".
        reads (`tuple[str, ...]`): targets it uses where they are given.
        description (`str`): one line for help texts.
    """

    name: str
    function: Callable[..., Tensor]
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    description: str

    def __call__(
        self, scores: Tensor, targets: Mapping[str, Tensor], mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """The loss of `scores`, with the targets it needs picked out of `targets`.

        Two targets are derived where they are missing: ranks from teacher scores (else from labels), and labels for
        LambdaRank from ranks, given or derived (`ranks_to_labels`, linear). Labels for `listwise_softmax` and teacher
        scores are never made up.

        Raises:
            InputError: a needed target is missing, or what the loss itself raises.
        """
        given = {name: values for name, values in targets.items() if values is not None}
        missing = self.missing_targets(given)
        if missing:
            raise InputError(
                f"the loss {self.name} needs {', '.join(missing)} and the data has {', '.join(given) or 'nothing'}; "
                "take another loss or another dataset"
            )
        found = {name: given[name] for name in (*self.needs, *self.reads) if name in given}
        if "ranks" in self.needs:
            found["ranks"] = _derived_ranks(given, mask)
        if self.name == "lambdarank" and "labels" not in given:
            found["labels"] = ranks_to_labels(_derived_ranks(given, mask), mask)
        return self.function(scores, **found, mask=mask, **options)

    def missing_targets(self, given: Collection[str]) -> list[str]:
        """Which needed targets are neither among the names in `given` nor derivable from them."""
        derivable = {"ranks"} if set(given) & set(_RANK_SOURCES) else set()
        if self.name == "lambdarank" and derivable:
            derivable.add("labels")
        return [name for name in self.needs if name not in given and name not in derivable]


def _derived_ranks(given: Mapping[str, Tensor], mask: Tensor | None) -> Tensor:
    """The given ranks, else those of the teacher's scores, else those of the labels."""
    if "ranks" in given:
        return given["ranks"]
    return scores_to_ranks(given["teacher_scores" if "teacher_scores" in given else "labels"], mask)


LOSSES: dict[str, RankingLoss] = {
    loss.name: loss
    for loss in (
        RankingLoss(
            "listwise_softmax", listwise_softmax_loss, ("labels",), (), "softmax cross-entropy of the positive"
        ),
        RankingLoss("ranknet", ranknet_loss, ("ranks",), (), "RankNet over every pair of an order"),
        RankingLoss(
            "soft_ranknet", soft_ranknet_loss, ("teacher_scores",), (), "RankNet with the teacher's pair probabilities"
        ),
        RankingLoss("listnet", listnet_loss, ("teacher_scores",), (), "cross-entropy to the teacher's distribution"),
        RankingLoss("lambdarank", lambdarank_loss, ("labels",), (), "RankNet's pairs weighted by their nDCG"),
        RankingLoss("margin_mse", margin_mse_loss, ("teacher_scores",), ("labels",), "squared error of score margins"),
        RankingLoss("dear", dear_loss, ("teacher_scores",), ("labels",), "cross-entropy, RankNet and KL to a teacher"),
    )
}


def get_ranking_loss(name: str) -> RankingLoss:
    """The ranking loss of that name. Raises `InputError`, listing the names, for an unknown one."""
    check_choice("loss", name, tuple(LOSSES))
    return LOSSES[name]

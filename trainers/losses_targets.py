"""Targets of the losses: ranks, labels, masks; and metrics for the training log.

Shapes throughout the loss modules: `scores` is `(groups, documents)`, one row per query; `mask` is a boolean tensor of
the same shape, true for real documents and false for padding. Padding affects neither a value nor a gradient, whatever
its score is, NaN included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number


PADDING_RANK = 0


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Raises `InputError` unless the temperature is a positive finite number."""
    if not 0 < temperature < float("inf"):
        raise InputError(f"{name} must be a positive number, got {temperature!r}")


def full_precision(values: Tensor) -> Tensor:
    """Half-precision and integer values as float32; float32 and float64 unchanged."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def prepare_scores(scores: Tensor, mask: Tensor | None, **targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in full precision with padding replaced by 0, and the boolean mask, after a check of all shapes.

    Padding is replaced before any arithmetic: a NaN multiplied by 0 later would still give a NaN gradient.

    Args:
        scores: `(groups, documents)`.
        mask: `(groups, documents)`, or `None` if every document is real.
        targets: tensors that must have the shape of `scores`, by their parameter's name.

    Raises:
        InputError: a tensor has another shape.
    """
    if scores.ndim != 2:
        raise InputError(f"scores must have the shape (groups, documents), got {tuple(scores.shape)}")
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    for name, values in {"mask": mask, **targets}.items():
        if values is not None and values.shape != scores.shape:
            raise InputError(f"{name} must have the shape of scores {tuple(scores.shape)}, got {tuple(values.shape)}")
    mask = mask.bool()
    scores = full_precision(scores)
    return torch.where(mask, scores, torch.zeros_like(scores)), mask


def mean_over_groups(group_losses: Tensor, mask: Tensor) -> Tensor:
    """The mean over the groups that have a document; a group without a pair to learn from counts as 0.

    The denominator depends only on the number of queries, so that splitting a batch over processes or over gradient
    accumulation gives the same mean.
    """
    return group_losses.sum() / mask.any(dim=1).sum().clamp(min=1)


def positive_mask(mask: Tensor, labels: Tensor | None = None) -> Tensor:
    """Boolean mask of the positives, `(groups, documents)`.

    Args:
        mask: real documents.
        labels: `(groups, documents)`; a label above 0 marks a positive. `None`: the first document is the positive,
            where the collators put it.
    """
    if labels is not None:
        return (labels > 0) & mask
    return (torch.arange(mask.shape[1], device=mask.device) == 0) & mask


def permutation_to_ranks(permutation: Sequence[Sequence[int]], width: int | None = None) -> Tensor:
    """Ranks of the documents from lists of document indices, best first.

    Args:
        permutation: one list per group.
        width: columns of the result; by default the longest list's length.

    Returns:
        `(groups, width)` of int64: 1 for the best document, `PADDING_RANK` (0) for padding.

    Raises:
        InputError: an index is repeated or out of range.

    Example:
        >>> permutation_to_ranks([[2, 0, 1], [1, 0]])
        tensor([[2, 3, 1],
                [2, 1, 0]])
    """
    rows = [list(row) for row in permutation]
    longest = max((len(row) for row in rows), default=0)
    width = longest if width is None else width
    if width < longest:
        raise InputError(f"width must be at least the longest permutation's length {longest}, got {width}")
    ranks = torch.full((len(rows), width), PADDING_RANK, dtype=torch.int64)
    for group, row in enumerate(rows):
        if sorted(row) != list(range(len(row))):
            raise InputError(
                f"permutation of group {group} must name each of 0..{len(row) - 1} once, got {row}; "
                "an index is repeated or out of range"
            )
        ranks[group, torch.tensor(row, dtype=torch.int64)] = torch.arange(1, len(row) + 1)
    return ranks


def scores_to_ranks(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ranks from scores or labels, higher is better: one more than the number of strictly better documents.

    Equal scores share a rank (1, 2, 2, 4), so that they form no pair in a pairwise loss.

    Args:
        scores: `(groups, documents)`.
        mask: `(groups, documents)`, real documents.

    Returns:
        `(groups, documents)` of int64: 1 for the best, `PADDING_RANK` (0) for padding.
    """
    scores, mask = prepare_scores(scores.detach(), mask)
    better = (scores[:, None, :] > scores[:, :, None]) & mask[:, None, :]
    return torch.where(mask, better.sum(dim=2) + 1, PADDING_RANK)


def ranks_to_labels(ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Graded relevance labels from ranks, for the losses and metrics that need grades.

    A label is `n - rank` with n the number of real documents in the group: n-1 for the best, 0 for the worst.

    Args:
        ranks: `(groups, documents)`, 1 is best.
        mask: `(groups, documents)`, real documents; by default those whose rank is not `PADDING_RANK`.

    Returns:
        `(groups, documents)` of float32, 0 for padding.
    """
    mask = ranks != PADDING_RANK if mask is None else mask.bool()
    counts = mask.sum(dim=1, keepdim=True)
    labels = (counts - ranks).float()
    return torch.where(mask, labels, torch.zeros_like(labels))


def ranking_accuracy(scores: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """Fraction of groups whose best-scored document is a positive (a tie with a negative counts as a miss).

    A metric for the training log, on the documents of the batch. Shapes as in `positive_mask`.
    """
    scores, mask = prepare_scores(scores.detach(), mask, labels=labels)
    positives = positive_mask(mask, labels)
    lowest = torch.finfo(scores.dtype).min
    best_positive = scores.masked_fill(~positives, lowest).amax(dim=1)
    negatives = mask & ~positives
    best_negative = scores.masked_fill(~negatives, lowest).amax(dim=1)
    hits = positives.any(dim=1) & ((best_positive > best_negative) | ~negatives.any(dim=1))
    return mean_over_groups(hits.to(scores.dtype), mask)


def pairwise_accuracy(scores: Tensor, ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fraction of a group's differently ranked pairs that the scores order correctly, averaged over groups.

    A pair of equal scores counts half; a group without a pair is left out. A metric for the training log.
    """
    scores, mask = prepare_scores(scores.detach(), mask, ranks=ranks)
    pairs = (ranks[:, :, None] < ranks[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    margins = scores[:, :, None] - scores[:, None, :]
    right = ((margins > 0).to(scores.dtype) + 0.5 * (margins == 0).to(scores.dtype)) * pairs
    counts = pairs.sum(dim=(1, 2))
    shares = right.sum(dim=(1, 2)) / counts.clamp(min=1)
    return shares.sum() / (counts > 0).sum().clamp(min=1)


def in_batch_ndcg(scores: Tensor, labels: Tensor, mask: Tensor | None = None, k: int = 10) -> Tensor:
    """nDCG@k on the documents of the batch, averaged over the groups that have a relevant document.

    The gain is the label, the discount log2(rank + 1), as in trec_eval; ties are broken in the *worst* order for the
    model, so that constant scores get no credit. A metric for the training log only: reported results come from
    `modeling_tsarank.eval`, which uses trec_eval's own code.

    Args:
        scores: `(groups, documents)`.
        labels: `(groups, documents)`, grades of at least 0.
        mask: `(groups, documents)`, real documents.
        k: cutoff, at least 1.
    """
    k = whole_number(k, "the cut-off k")
    scores, mask = prepare_scores(scores.detach(), mask, labels=labels)
    gains = torch.where(mask, labels.to(scores.dtype), torch.zeros_like(scores))
    worst_first = gains.argsort(dim=1, stable=True)
    keyed = scores.masked_fill(~mask, float("-inf")).gather(1, worst_first)
    order = worst_first.gather(1, keyed.argsort(dim=1, descending=True, stable=True))
    depth = min(k, scores.shape[1])
    discounts = torch.log2(torch.arange(2, depth + 2, device=scores.device, dtype=scores.dtype))
    dcg = (gains.gather(1, order)[:, :depth] / discounts).sum(dim=1)
    ideal = (gains.sort(dim=1, descending=True).values[:, :depth] / discounts).sum(dim=1)
    relevant = ideal > 0
    values = torch.where(relevant, dcg / torch.where(relevant, ideal, torch.ones_like(ideal)), torch.zeros_like(dcg))
    return values.sum() / relevant.sum().clamp(min=1)

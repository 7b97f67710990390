"""The weighted sum of the objectives, from the model's values for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from modeling_tsarank.trainers.collators import ONE_POSITIVE, Batch, group_mask, to_grid
from modeling_tsarank.trainers.gradient_cache import Values
from modeling_tsarank.trainers.losses import get_objective
from modeling_tsarank.trainers.losses_likelihood import ScoreForm, ranking_score
from modeling_tsarank.trainers.losses_targets import (
    in_batch_ndcg,
    pairwise_accuracy,
    ranking_accuracy,
    ranks_to_labels,
)
from modeling_tsarank.trainers.objectives import derived_ranks
from modeling_tsarank.trainers.ranking_config import MODEL_SCORE, ONE_PASS, RankingConfig
from modeling_tsarank.trainers.rows import TARGETS


Metrics = dict[str, Tensor]
Grids = dict[str, Tensor]

# The grids computed from each value of the module.
MADE_OF = {"token_log_probs": ("scores", "log_likelihoods"), "divergences": ("divergences",), "scores": ("scores",)}


def linear_values(args: RankingConfig, names: Sequence[str]) -> list[str]:
    """The module's values in which all objectives are linear, so that the gradient does not depend on them."""
    curved = [objective for objective in map(get_objective, args.weights()) if not objective.linear]
    return [name for name in names if not any(one.takes(grid) for one in curved for grid in MADE_OF[name])]


def pair_scores(ranker: Any, values: Values, batch: Batch) -> Tensor:
    """The ranking scores of the batch's pairs, `(pairs,)`, identical to those of `predict`."""
    if "scores" in values:
        return values["scores"]
    scores: Tensor = ranker.pool_tokens(values["token_log_probs"], batch["query_lengths"])
    return scores


def make_grids(args: RankingConfig, ranker: Any, values: Values, batch: Batch) -> Grids:
    """The inputs of the objectives, `(groups, documents)` each: the model's values, the mask and the rows' targets."""
    mask, counts = group_mask(batch["group_sizes"]), batch["query_lengths"]
    pairs: dict[str, Tensor] = {}
    owners = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    for name, of_pair in (("token_log_probs", "log_likelihoods"), ("divergences", "divergences")):
        if name in values:
            pairs[of_pair] = values[name].new_zeros(len(counts)).index_add(0, owners, values[name])
    if args.score_form == MODEL_SCORE:
        pairs["scores"] = pair_scores(ranker, values, batch)
    elif args.score_form == ONE_PASS:  # a softmax over these is the attention again
        pairs["scores"] = values["scores"].clamp(min=torch.finfo(torch.float32).tiny).log()
    else:
        pairs["scores"] = ranking_score(pairs["log_likelihoods"], counts, cast(ScoreForm, args.score_form))
    grids = {name: to_grid(value, mask) for name, value in pairs.items()}
    grids["scores"] = grids["scores"] / args.temperature
    grids |= {"mask": mask, "query_lengths": to_grid(counts, mask)}
    grids |= {name: batch[name] for name in ("ranks", *TARGETS) if name in batch}
    if "teacher_scores" in grids:
        grids["teacher_scores"] = grids["teacher_scores"] / args.teacher_temperature
    return grids


def mixed_loss(args: RankingConfig, grids: Grids) -> tuple[Tensor, Metrics]:
    """The weighted sum of the objectives, averaged over the batch's queries, and the metrics to log (also means)."""
    metrics, terms = {}, []
    for name, weight in args.weights().items():
        value = get_objective(name)(grids, **args.options_of(name))
        metrics[f"{name}_loss"] = value.detach()
        terms.append(weight * value)
    with torch.no_grad():
        metrics |= _figures(args, grids)
    return torch.stack(terms).sum(), metrics


def _figures(args: RankingConfig, grids: Grids) -> Metrics:
    scores, mask, labels = grids["scores"], grids["mask"], grids.get("labels")
    if args.document_sampling == ONE_POSITIVE:
        accuracy = {"ranking_accuracy": ranking_accuracy(scores, mask, labels=labels)}
    else:
        accuracy = {"pairwise_accuracy": pairwise_accuracy(scores, derived_ranks(grids), mask)}
    grades = ranks_to_labels(derived_ranks(grids), mask) if labels is None else labels
    return {**accuracy, "in_batch_ndcg": in_batch_ndcg(scores, grades, mask)}

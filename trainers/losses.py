"""The losses of both papers and their relatives, one function each; `objectives.OBJECTIVES` holds them by name.

Everything here is pure torch on tensors: no model, no tokenizer, no trainer. Losses take grids of shape
`(groups, documents)`, one row per query, and a boolean `mask` that is false at padding documents; every loss is the
mean over the groups of a loss of one group, so that splitting a batch into equal parts and averaging gives the same
value. Half precision is raised to float32, float32 and float64 are kept.

| name | needs | also reads | function |
|---|---|---|---|
| listwise_softmax | labels | | `listwise_softmax_loss` (TSARankLLM, Eq. 3) |
| next_token | labels, or ranks | | `next_token_loss` (TSARankLLM, Eq. 2) |
| penalty | | | `differential_penalty` (TSARankLLM, Eq. 4) |
| ranknet | ranks | | `ranknet_loss` (TWOLAR, Eq. 2) |
| soft_ranknet | teacher_scores | | `soft_ranknet_loss` |
| listnet | teacher_scores | | `listnet_loss` |
| lambdarank | labels, or ranks | | `lambdarank_loss` |
| margin_mse | teacher_scores | labels | `margin_mse_loss` |
| dear | teacher_scores | labels | `dear_loss` |
"""

from __future__ import annotations

from modeling_tsarank.trainers.losses_likelihood import (
    SCORE_FORMS,
    ScoreForm,
    differential_penalty,
    next_token_loss,
    ranking_score,
    token_kl,
)
from modeling_tsarank.trainers.losses_listwise import (
    dear_loss,
    kl_to_teacher,
    lambdarank_loss,
    listnet_loss,
    listwise_softmax_loss,
)
from modeling_tsarank.trainers.losses_pairwise import margin_mse_loss, ranknet_loss, soft_ranknet_loss
from modeling_tsarank.trainers.losses_targets import (
    in_batch_ndcg,
    pairwise_accuracy,
    permutation_to_ranks,
    ranking_accuracy,
    ranks_to_labels,
    scores_to_ranks,
)
from modeling_tsarank.trainers.objectives import OBJECTIVES


__all__ = [
    "OBJECTIVES",
    "SCORE_FORMS",
    "ScoreForm",
    "dear_loss",
    "differential_penalty",
    "in_batch_ndcg",
    "kl_to_teacher",
    "lambdarank_loss",
    "listnet_loss",
    "listwise_softmax_loss",
    "margin_mse_loss",
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

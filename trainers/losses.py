"""The losses of both papers and related ones, one function each; `objectives.OBJECTIVES` maps names to them.

Everything here is pure torch on tensors: no model, no tokenizer, no trainer. Losses take grids of shape
`(groups, documents)`, one row per query, and a boolean `mask` that is false at padding documents; every loss is the
mean over the groups of a loss of one group, so that splitting a batch into equal parts and averaging gives the same
value. Half precision is converted to float32; float32 and float64 stay as they are.

| name | needs | also uses | function |
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

from modeling_tsarank.trainers import losses_likelihood, losses_listwise, losses_pairwise
from modeling_tsarank.trainers.objectives import OBJECTIVES, get_objective


__all__ = ["OBJECTIVES", "get_objective", "losses_likelihood", "losses_listwise", "losses_pairwise"]

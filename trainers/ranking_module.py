"""The module that a trainer trains: a ranking model and, if needed, the Differential Penalty's reference.

Distributed wrappers (DDP, FSDP, DeepSpeed) synchronize in a module's `forward`, so all computation of the model in
training goes through the one `forward` here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.trainers.collators import Batch
from modeling_tsarank.trainers.gradient_cache import Chunk, Values, plan_chunks
from modeling_tsarank.trainers.losses_likelihood import token_kl
from modeling_tsarank.trainers.losses_targets import full_precision
from modeling_tsarank.trainers.reference import Reference
from modeling_tsarank.trainers.trainable import TrainablePart


# Cost of one more forward and backward pass, in tokens: on a CPU from reading the weights once more, on an accelerator
# (and otherwise) from launching its many small kernels.
PASS_TOKENS = {"cpu": 48}
PASS_TOKENS_ELSEWHERE = 2048


class RankingModule(nn.Module):
    """A ranking model in training.

    Attributes:
        ranker: the ranking model; `predict` and `rank` work at any time.
        part: the trained part of its weights.
        reference: the reference for the penalty, or `None`.
    """

    main_input_name = "token_ids"
    # Whether pairs of unequal length run in several passes. Sharded processes must all run the same number.
    splits_by_length = True
    # The ranker's methods are not only tensors and modules, the types that `nn.Module` declares for its attributes.
    ranker: Any

    def __init__(self, ranker: RankerModel, part: TrainablePart, reference: Reference | None = None) -> None:
        super().__init__()
        self.ranker = ranker
        self.reference = reference
        self.part = part
        # A copy: `Trainer` modifies the configuration of its model (`use_cache`), and that would be saved.
        self.config = copy.deepcopy(ranker.config)

    @property
    def counts_tokens(self) -> bool:
        """Whether a pair has one value per query token (query likelihood) instead of one score."""
        return type(self.ranker).scores_query_tokens

    @property
    def value_names(self) -> list[str]:
        """Names of the values that `forward` returns for each pair."""
        if not self.counts_tokens:
            return ["scores"]
        return ["token_log_probs", *([] if self.reference is None else ["divergences"])]

    def plan(self, batch: Batch, chunk_tokens: int | None) -> tuple[list[Chunk], int]:
        """The chunks of a batch, see `plan_chunks`, and its number of values."""
        lengths = batch["lengths"].tolist()
        values = batch["query_lengths"].tolist() if self.counts_tokens else [1] * len(lengths)
        return plan_chunks(lengths, values, chunk_tokens), sum(values)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, query_mask: Tensor, with_reference: bool = False
    ) -> Values:
        """Values of tokenized pairs, padded on the right.

        Args:
            input_ids, attention_mask, query_mask: `(pairs, length)`, as `pad_pairs` gives them.
            with_reference: also compare with the reference model.

        Returns:
            For a family that scores the query's tokens `token_log_probs` and, with the reference, `divergences`
            (KL(p_ref || p) over the full vocabulary), both `(query tokens,)`, pair by pair; the output head runs only
            on query positions. For any other family `scores` `(pairs,)`.
        """
        lengths = attention_mask.sum(1)
        overhead = PASS_TOKENS.get(input_ids.device.type, PASS_TOKENS_ELSEWHERE)
        passes = plan_passes(lengths.tolist(), overhead) if self.splits_by_length else [list(range(len(lengths)))]
        parts = [(torch.tensor(rows, device=lengths.device), int(lengths[rows].max())) for rows in passes]
        ids = [input_ids[rows, :longest] for rows, longest in parts]
        if not self.counts_tokens:
            masks = [attention_mask[rows, :longest] for rows, longest in parts]
            scores = [self.ranker(*one).scores for one in zip(ids, masks, strict=True)]
            return {"scores": in_order(torch.cat(scores), torch.cat([rows for rows, _ in parts]))}
        queries = [query_mask[rows, :longest] for rows, longest in parts]
        owners = torch.cat([rows.repeat_interleave(q.sum(1)) for (rows, _), q in zip(parts, queries, strict=True)])

        # Padding is on the right, where causal attention never looks: without a mask the fastest kernel is used.
        def call(model: Any) -> list[Tensor]:
            return [model.query_logits(*one) for one in zip(ids, queries, strict=True)]

        values: dict[str, list[Tensor]] = {}
        if not with_reference or self.reference is None:
            logits = call(self.ranker)
        else:
            start, logits = self.reference.both(self.ranker, call)
            values["divergences"] = [token_kl(*one) for one in zip(start, logits, strict=True)]
        targets = [one[query] for one, query in zip(ids, queries, strict=True)]
        values["token_log_probs"] = [token_log_probs(*one) for one in zip(logits, targets, strict=True)]
        return {name: in_order(torch.cat(part), owners) for name, part in values.items()}

    # ---- what `Trainer` needs from a model -------------------------------------------------------

    @property
    def _no_split_modules(self) -> Any:
        # FSDP wraps the backbone's blocks one by one.
        return self.ranker.backbone._no_split_modules

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recomputes the activations of the backbone's blocks in the backward pass."""
        backbone = self.ranker.backbone
        backbone.activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)
        # With reentrant checkpointing, DDP marks a weight shared by two passes as ready twice.
        self.splits_by_length &= not (activation_checkpointing_kwargs or {}).get("use_reentrant", False)
        if not (activation_checkpointing_kwargs or {}).get("use_reentrant", False):
            # transformers makes the embeddings' output require a gradient, which only reentrant checkpointing needs;
            # with a frozen trunk that would compute and store the trunk's graph for nothing.
            backbone.disable_input_require_grads()

    # The old name, which transformers before 5.22 calls.
    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Same as `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """`RankerModel.predict` of the model in training, for callbacks."""
        return self.ranker.predict(*args, **kwargs)

    def rank(self, *args: Any, **kwargs: Any) -> Any:
        """`RankerModel.rank` of the model in training, for callbacks."""
        return self.ranker.rank(*args, **kwargs)


def plan_passes(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Groups rows of similar length into passes, minimizing padded tokens plus `overhead` per pass.

    Args:
        lengths: tokens of each row.
        overhead: cost of another pass, in tokens.

    Returns:
        Indices of each pass, in ascending order; all rows together if that is cheapest.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    # Passes end where the length changes.
    ends = [0] + [n for n in range(1, len(order) + 1) if n == len(order) or lengths[order[n]] > lengths[order[n - 1]]]
    # For each end: the minimum cost of the rows before it, and the start of their last pass.
    best: list[tuple[int, int]] = [(0, 0)]
    for last in range(1, len(ends)):
        longest = lengths[order[ends[last] - 1]]
        options = ((best[k][0] + (ends[last] - ends[k]) * longest + overhead, k) for k in range(last))
        best.append(min(options))
    passes, last = [], len(ends) - 1
    while last:
        first = best[last][1]
        passes.append(sorted(order[ends[first] : ends[last]]))
        last = first
    return passes[::-1]


def in_order(values: Tensor, owners: Tensor) -> Tensor:
    """Values of the rows `owners`, sorted by row; the values of one row keep their order."""
    return values[torch.argsort(owners, stable=True)]


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Differentiable log p of each target: logits `(tokens, vocabulary)`, targets `(tokens,)`.

    Half precision is converted to float32, float64 stays (the scoring engine's function would round it to float32).
    """
    rows = full_precision(logits)
    return rows.gather(-1, targets[:, None]).squeeze(-1) - rows.logsumexp(-1)

"""The module that a trainer trains: a ranking model, and the reference of the Differential Penalty beside it.

Distributed wrappers (DDP, FSDP, DeepSpeed) synchronize in a module's `forward`, so everything that training runs of a
model goes through the one `forward` here.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.trainers.gradient_cache import Values
from modeling_tsarank.trainers.losses import token_kl
from modeling_tsarank.trainers.losses_targets import full_precision
from modeling_tsarank.trainers.reference import Reference
from modeling_tsarank.trainers.trainable import TrainablePart


class RankingModule(nn.Module):
    """A ranking model in training.

    Attributes:
        ranker: the ranking model; `predict` and `rank` work at any time.
        part: which of its weights are trained.
        reference: the starting point for the penalty, or `None`.
    """

    main_input_name = "token_ids"
    # The ranker's methods are not only tensors and modules, which is all that `nn.Module` says of its attributes.
    ranker: Any

    def __init__(self, ranker: RankerModel, part: TrainablePart, reference: Reference | None = None) -> None:
        super().__init__()
        self.ranker = ranker
        self.reference = reference
        self.part = part
        # A copy: `Trainer` writes into the configuration of what it trains (`use_cache`), and that would be saved.
        self.config = copy.deepcopy(ranker.config)

    @property
    def counts_tokens(self) -> bool:
        """Whether the values of a pair are one per query token (query likelihood) rather than one score."""
        return isinstance(self.ranker, TSARankModel)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, query_mask: Tensor, with_reference: bool = False
    ) -> Values:
        """Values of tokenized pairs, padded on the right.

        Args:
            input_ids, attention_mask, query_mask: `(pairs, length)`, as `pad_pairs` gives them.
            with_reference: also compare with the reference.

        Returns:
            `TSARankModel`: `token_log_probs` and, with the reference, `divergences` (KL(p_ref || p) over the full
            vocabulary), both `(query tokens,)`, pair by pair. Only query positions go through the output head.
            `TwolarModel`: `scores` `(pairs,)`.
        """
        if not self.counts_tokens:
            return {"scores": self.ranker.pool(self.ranker.answer_logits(input_ids, attention_mask))}

        # Padding stands on the right, where causal attention never looks: without a mask the fastest kernel applies.
        def call(model: Any) -> Tensor:
            return model.query_logits(input_ids, query_mask)

        if not with_reference or self.reference is None:
            return {"token_log_probs": token_log_probs(call(self.ranker), input_ids[query_mask])}
        reference_logits, logits = self.reference.both(self.ranker, call)
        return {
            "token_log_probs": token_log_probs(logits, input_ids[query_mask]),
            "divergences": token_kl(reference_logits, logits),
        }

    # ---- what `Trainer` asks of a model ----------------------------------------------------------

    @property
    def _no_split_modules(self) -> Any:
        # FSDP wraps the backbone's blocks one by one.
        return self.ranker.backbone._no_split_modules

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Recomputes the blocks' activations in the backward pass, of the backbone alone."""
        backbone = self.ranker.backbone
        backbone.activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)
        if not (activation_checkpointing_kwargs or {}).get("use_reentrant", False):
            # transformers makes the embeddings' output require a gradient, which only reentrant checkpointing needs;
            # with a frozen trunk that would keep, and compute, the trunk's graph for nothing.
            backbone.disable_input_require_grads()

    # The old name, which transformers before 5.22 calls.
    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As `activation_checkpointing_enable`."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """`RankerModel.predict` of the model in training, for callbacks."""
        return self.ranker.predict(*args, **kwargs)

    def rank(self, *args: Any, **kwargs: Any) -> Any:
        """`RankerModel.rank` of the model in training, for callbacks."""
        return self.ranker.rank(*args, **kwargs)


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of each target, with its graph: logits `(tokens, vocabulary)`, targets `(tokens,)`.

    Half precision is raised to float32, float64 is kept (the scoring engine's function would round it to float32).
    """
    rows = full_precision(logits)
    return rows.gather(-1, targets[:, None]).squeeze(-1) - rows.logsumexp(-1)

"""In-context re-ranking: a list ordered by the attention of the query's tokens to each passage.

Reference: Chen et al., Attention in Large Language Models Yields Efficient Zero-Shot Re-Rankers, ICLR 2025
(arXiv:2410.02642). The method is theirs, the prompt is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..engine.attention import AttentionReader
from ..engine.rope_regimes import context_length
from ..models.user_texts import AnyUserText
from ..ranking_errors import InputError, ModelError
from .chat_local import conversation_text
from .first import FirstOptions, FirstRanker
from .labels import LabelModel
from .listwise_prompt import passage_text
from .protocols import PromptRanker


# The baseline of the attention to a passage: a query without content.
NO_QUERY = "N/A"
_CONTENT = "\ue000"


@dataclass(frozen=True)
class InContextOptions(FirstOptions):
    """Settings: a window of passages in one prompt, see `FirstOptions`.

    Attributes:
        calibrate: Whether to subtract the attention of the query "N/A", and to ignore tokens far below the others.
    """

    calibrate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.calibrate, bool):
            raise InputError(f"calibrate must be true or false, got {self.calibrate!r}")


class InContextRanker(FirstRanker):
    """Orders lists by sliding windows, each in one forward pass for the passages and two short ones on its KV cache.

    Args:
        model: A decoder-only language model.
        options: The settings.

    Raises:
        ModelError: its attention cannot be recorded.
    """

    options_class = InContextOptions

    def __init__(self, model: LabelModel, options: InContextOptions | None = None) -> None:
        PromptRanker.__init__(self, model, options)
        AttentionReader(model.backbone)

    def _scores(self, query: str, documents: Sequence[str], tally: Counter[str]) -> np.ndarray:
        """Each document's sum of the attention to its tokens, `(documents,)`."""
        backbone, tokenizer = self.model.backbone, self.model.tokenizer
        text = AnyUserText(tokenizer)

        def encoded(piece: str, own: bool = False) -> list[int]:
            return text.encode([piece], [[(0, len(piece))] if own else []])[0][0]

        before, after = conversation_text(tokenizer, [{"role": "user", "content": _CONTENT}]).split(_CONTENT)
        prefix, spans = encoded(f"{before}Here are {len(documents)} passages."), []
        for number, document in enumerate(documents, start=1):
            prefix += encoded(f"\n\n[{number}]")
            ids = encoded(f" {passage_text(document, self.options.passage_words)}", own=True)
            spans.append((len(prefix), len(prefix) + len(ids)))
            prefix += ids
        prefix += encoded("\n\nFind the passages that answer this search query:")
        queries = [encoded(f" {one}", own=True) for one in [query, NO_QUERY][: 1 + self.options.calibrate]]
        behind = encoded(after)
        limit, longest = context_length(backbone.config), len(prefix) + max(map(len, queries)) + len(behind)
        if limit is not None and longest > limit:
            raise ModelError(
                f"a prompt with {len(documents)} documents has {longest} tokens, more than the {limit} of "
                f"{self.name}; use fewer documents in a prompt (window), or fewer words of each (passage_words)"
            )
        with torch.inference_mode():
            reader = AttentionReader(backbone)
            cache = reader.states(prefix)
            found = [reader.read([*ids, *behind], cache, range(len(ids)))[0] for ids in queries]
        tally["calls"] += 1 + len(queries)
        tally["tokens"] += len(prefix) + sum(len(ids) + len(behind) for ids in queries)
        # Sum over layers, mean over the query's tokens and heads: equal to the paper's sum up to a constant factor.
        each = [attention.mean(1).sum(0)[: len(prefix)] for attention in found]
        return np.array([document_score(each[0][i:j], each[1][i:j] if len(each) > 1 else None) for i, j in spans])


def document_score(attention: torch.Tensor, baseline: torch.Tensor | None = None) -> float:
    """A document's score from the attention to its tokens (the paper's equations 3 to 5).

    Args:
        attention: `(tokens,)` of the query.
        baseline: `(tokens,)` of the query "N/A": subtracted; tokens more than two standard deviations below the
            document's mean are then ignored.
    """
    if baseline is None or not len(attention):
        return float(attention.sum())
    values = attention - baseline
    return float(values[values >= values.mean() - 2 * values.std(correction=0)].sum())

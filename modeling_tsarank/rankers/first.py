"""FIRST: a window of a list ordered by the logits of its labels at the first token of a permutation.

Reference: Reddy et al., FIRST: Faster Improved Listwise Reranking with Single Token Decoding, EMNLP 2024. The method
is theirs, the prompt is ours; models that were trained for it rank best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .labels import LETTERS, Labels, Question
from .listwise import WindowOptions, window_bounds
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, passage_text
from .protocols import PromptRanker, ordered_rows


@dataclass(frozen=True)
class FirstOptions(WindowOptions):
    """Settings of the ranking of a list.

    Attributes:
        window: Passages in one prompt (the paper: 20).
        step: How far the window moves towards the top; half a window by default.
        passage_words: Maximum words of a passage in the prompt.

    Raises:
        InputError: a value out of range.
    """

    window: int = 20


def first_question(query: str, documents: Sequence[str], words: int = DEFAULT_PASSAGE_WORDS) -> Question:
    """The question for the order of some passages [A], [B], …, with an answer that begins with a bracket."""
    passages = "\n".join(
        f"[{letter}] {passage_text(text, words)}" for letter, text in zip(LETTERS, documents, strict=False)
    )
    return Question(
        f"I will give you {len(documents)} passages, each with a letter in brackets. Rank them by their relevance to "
        f"the search query: {query}\n\n{passages}\n\nSearch query: {query}\n\nList the letters of all passages, the "
        "most relevant first, in the form [B] > [A]. Write only the ranking, no explanation.",
        len(documents),
        "[",
    )


class FirstRanker(PromptRanker):
    """Orders lists by sliding windows, each in one forward pass; equal logits keep the given order.

    Args:
        model: Provides the labels' logits.
        options: The settings.

    Raises:
        ModelError: the model has fewer labels than a window has passages.
    """

    options_class = FirstOptions

    def __init__(self, model: Labels, options: FirstOptions | None = None) -> None:
        super().__init__(model, options)
        model.check(self.options.window, first_question("", ["", ""]).begin)

    def _rows(self, query: str, documents: Sequence[str], tally: Counter[str]) -> list[dict[str, Any]]:
        order = list(range(len(documents)))
        windows = window_bounds(len(order), self.options.window, self.options.step) if len(order) > 1 else []
        for start, end in windows:
            shown = order[start:end]
            scores = self._scores(query, [documents[i] for i in shown], tally)
            if scores is not None:
                order[start:end] = [shown[place] for place in np.argsort(-scores, kind="stable")]
        return ordered_rows(order)

    def _scores(self, query: str, documents: Sequence[str], tally: Counter[str]) -> np.ndarray | None:
        """One score for each document of a window."""
        scores: np.ndarray | None
        (scores,) = self.model.scores([first_question(query, documents, self.options.passage_words)], tally)
        return scores

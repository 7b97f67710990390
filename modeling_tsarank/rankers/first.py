"""FIRST: a window of a list in the order of the logits of its labels, where a permutation would begin.

Reference: Reddy et al., FIRST: Faster Improved Listwise Reranking with Single Token Decoding, EMNLP 2024. The method
is theirs, the wording is ours; models that were trained for it rank best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ranking_errors import InputError
from ..ranking_options import settle_whole_numbers
from .labels import LETTERS, Labels, Question
from .listwise import window_bounds
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, passage_text
from .protocols import clean_list


@dataclass(frozen=True)
class FirstOptions:
    """How a list is asked about.

    Attributes:
        window: Passages in one prompt (the paper: 20).
        step: How far the window moves towards the front; half a window by default.
        passage_words: Words of a passage that are shown.

    Raises:
        InputError: a value out of range.
    """

    window: int = 20
    step: int | None = None
    passage_words: int = DEFAULT_PASSAGE_WORDS

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "window", least=2)
        settle_whole_numbers(self, "step", "passage_words")
        if self.step is not None and not self.step < self.window:
            raise InputError(f"the step must be at least 1 and less than the window ({self.window}), got {self.step}")


def first_question(query: str, documents: Sequence[str], words: int = DEFAULT_PASSAGE_WORDS) -> Question:
    """The question for the order of some passages [A], [B], …, whose answer begins with a bracket."""
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


class FirstRanker:
    """Orders lists by sliding windows, each in one pass of the model.

    Args:
        labels: The model, whose labels' logits are read.
        options: How.

    Raises:
        ModelError: the model has not as many labels as a window has passages.
    """

    def __init__(self, labels: Labels, options: FirstOptions | None = None) -> None:
        self.labels = labels
        self.options = options or FirstOptions()
        labels.check(self.options.window, first_question("", ["", ""]).begin)
        self.name = labels.name
        self.last_stats: dict[str, int] = {}

    def rank(self, query: str, documents: Sequence[Any]) -> list[dict[str, Any]]:
        """The documents, given in the first stage's order, best first; equal logits keep that order.

        Returns:
            `{"corpus_id", "score"}` of each document; the score is n for the first and 1 for the last.

        Raises:
            ModelError: a prompt is longer than the model's context.
        """
        query, texts, cut = clean_list(query, documents, self.options.passage_words)
        tally: Counter[str] = Counter(calls=0, tokens=0, unusable=0, cut_documents=cut)
        order = list(range(len(texts)))
        windows = window_bounds(len(order), self.options.window, self.options.step) if len(order) > 1 else []
        for start, end in windows:
            shown = order[start:end]
            scores = self._scores(query, [texts[i] for i in shown], tally)
            if scores is not None:
                order[start:end] = [shown[place] for place in np.argsort(-scores, kind="stable")]
        self.last_stats = dict(tally)
        return [{"corpus_id": i, "score": float(len(order) - place)} for place, i in enumerate(order)]

    def _scores(self, query: str, documents: Sequence[str], tally: Counter[str]) -> np.ndarray | None:
        """One score for each document of a window."""
        return self.labels.scores([first_question(query, documents, self.options.passage_words)], tally)[0]

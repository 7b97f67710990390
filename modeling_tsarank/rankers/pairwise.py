"""Pairwise ranking prompting: which of two passages answers the query better, in both orders of the prompt.

Reference: Qin et al., Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting, NAACL 2024
Findings. The method is theirs, the prompt is ours.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..ranking_options import check_choice, settle_whole_numbers
from .labels import Labels, Question
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, passage_text
from .protocols import PromptRanker, ordered_rows


METHODS = ("sliding", "sorting", "allpair")


@dataclass(frozen=True)
class PairwiseOptions:
    """Settings of the ranking by comparisons of two documents.

    Attributes:
        method: `sliding`: `passes` passes from the end of the list to its top, each with n - 1 comparisons of
            neighbours, which bring the best `passes` documents to the top; `sorting`: heapsort; `allpair`: all
            n (n - 1) / 2 comparisons, each document's score being its wins and half its ties.
        passes: Of `sliding` (the paper: 10).
        passage_words: Maximum words of a passage in the prompt.

    Raises:
        InputError: a value out of range.
    """

    method: str = "sliding"
    passes: int = 10
    passage_words: int = DEFAULT_PASSAGE_WORDS

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        settle_whole_numbers(self, "passes", "passage_words")


def pairwise_question(query: str, first: str, second: str, words: int = DEFAULT_PASSAGE_WORDS) -> Question:
    """The question which of two passages, A or B, is more relevant; everything before passage B is a prefix shared by
    many questions."""
    shared = (
        "Which of the two passages is more relevant to the search query? Answer with Passage A or Passage B.\n\n"
        f"Query: {query}\n\nPassage A: {passage_text(first, words)}\n\n"
    )
    return Question(f"{shared}Passage B: {passage_text(second, words)}", 2, shared=shared)


class PairwiseRanker(PromptRanker):
    """Orders lists by comparisons of two documents.

    A document wins only if both orders of the prompt prefer it; otherwise the two tie, and keep the first stage's
    order. Repeated comparisons are answered from memory.

    Args:
        model: Its labels tell which is better.
        options: The settings.
    """

    options_class = PairwiseOptions

    def __init__(self, model: Labels, options: PairwiseOptions | None = None) -> None:
        super().__init__(model, options)
        model.check(2, pairwise_question("", "", "").begin)

    def _rows(self, query: str, documents: Sequence[str], tally: Counter[str]) -> list[dict[str, Any]]:
        known: dict[tuple[int, int], float] = {}

        def ask(pairs: Sequence[tuple[int, int]]) -> None:
            """Compares pairs of documents, each in both orders, in common batches."""
            orders = [order for i, j in pairs for order in ((i, j), (j, i))]
            words = self.options.passage_words
            questions = [pairwise_question(query, documents[i], documents[j], words) for i, j in orders]
            scores = self.model.scores(questions, tally)
            # 1 if the first passage of the prompt is preferred, -1 for the second.
            signs = [0.0 if one is None else float(one[0] > one[1]) - float(one[0] < one[1]) for one in scores]
            for (i, j), forth, back in zip(pairs, signs[::2], signs[1::2], strict=True):
                known[i, j] = {(1.0, -1.0): 1.0, (-1.0, 1.0): 0.0}.get((forth, back), 0.5)
                known[j, i] = 1.0 - known[i, j]

        def wins(i: int, j: int) -> float:
            """1 if document i beats document j, 0 if it loses, 1/2 for a tie."""
            if (i, j) not in known:
                ask([(i, j)])
            return known[i, j]

        places = range(len(documents))
        if self.options.method == "allpair":
            ask(list(itertools.combinations(places, 2)))
            won = [sum(wins(i, j) for j in places if j != i) for i in places]
            return [{"corpus_id": i, "score": won[i]} for i in sorted(places, key=lambda i: -won[i])]
        return ordered_rows((_heapsort if self.options.method == "sorting" else self._sliding)(places, wins))

    def _sliding(self, places: Sequence[int], wins: Callable[[int, int], float]) -> list[int]:
        order = list(places)
        for _ in range(self.options.passes):
            before = list(order)
            for place in range(len(order) - 2, -1, -1):
                if wins(order[place + 1], order[place]) == 1.0:
                    order[place], order[place + 1] = order[place + 1], order[place]
            if order == before:
                break  # further passes would not change anything
        return order


def _heapsort(places: Sequence[int], wins: Callable[[int, int], float]) -> list[int]:
    def compared(i: int, j: int) -> int:  # the smaller one is better; of two that tie, the earlier one
        return 1 - int(2 * wins(i, j)) or i - j

    heap: list[Any] = list(map(functools.cmp_to_key(compared), places))
    heapq.heapify(heap)
    return [heapq.heappop(heap).obj for _ in places]

"""Setwise ranking: which of a few passages answers the query best; heapsort or insertion finds the top of a list.

References: Zhuang et al., A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking with Large Language
Models, SIGIR 2024 (heapsort); Podolak et al., Beyond Reproducibility: Advancing Zero-shot LLM Reranking Efficiency
with Setwise Insertion, SIGIR 2025. The methods are theirs, the prompt is ours.
"""

from __future__ import annotations

import bisect
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..ranking_options import check_choice, settle_whole_numbers
from .labels import LETTERS, Labels, Question
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, passage_text
from .protocols import PromptRanker, ordered_rows


METHODS = ("heapsort", "insertion")


@dataclass(frozen=True)
class SetwiseOptions:
    """Settings of the search for the top of a list.

    Attributes:
        method: `heapsort`: a heap whose nodes have `labels - 1` children; each prompt is for the best of a node and
            its children; `insertion`: the first `best` documents are sorted by heapsort, the others are compared
            `labels - 1` at a time with the last of the best, and a preferred one is inserted by binary
            search.
        labels: Passages in a prompt (the paper: 4).
        best: Documents whose order is found; the others follow in the first stage's order.
        both_orders: Whether each prompt also runs with its passages in reversed order; logits are added.
        passage_words: Maximum words of a passage in the prompt.

    Raises:
        InputError: a value out of range.
    """

    method: str = "heapsort"
    labels: int = 4
    best: int = 10
    both_orders: bool = False
    passage_words: int = DEFAULT_PASSAGE_WORDS

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        settle_whole_numbers(self, "labels", least=2)
        settle_whole_numbers(self, "best", "passage_words")


def setwise_question(query: str, documents: Sequence[str], words: int = DEFAULT_PASSAGE_WORDS) -> Question:
    """The question which of some passages, A, B, C, …, is the most relevant."""
    passages = "\n\n".join(
        f"Passage {letter}: {passage_text(text, words)}" for letter, text in zip(LETTERS, documents, strict=False)
    )
    return Question(
        f"Here are a search query and {len(documents)} passages.\n\nQuery: {query}\n\n{passages}\n\n"
        "Which passage is the most relevant to the query? Answer with its letter, for example Passage B.",
        len(documents),
    )


class SetwiseRanker(PromptRanker):
    """Orders the top of lists by prompts for the best of a few documents.

    Among documents that the model prefers equally, and without a usable answer, the first one in the first stage's
    order is taken. Repeated questions are answered from memory.

    Args:
        model: Its labels tell which is the best.
        options: The settings.

    Raises:
        ModelError: the model has fewer labels than `options.labels`.
    """

    options_class = SetwiseOptions

    def __init__(self, model: Labels, options: SetwiseOptions | None = None) -> None:
        super().__init__(model, options)
        model.check(self.options.labels, setwise_question("", ["", ""]).begin)

    def _rows(self, query: str, documents: Sequence[str], tally: Counter[str]) -> list[dict[str, Any]]:
        @functools.cache
        def best_of(*places: int) -> int:
            """The document that the model prefers."""
            orders = [places, places[::-1]] if self.options.both_orders else [places]
            texts = [[documents[place] for place in order] for order in orders]
            questions = [setwise_question(query, one, self.options.passage_words) for one in texts]
            total = dict.fromkeys(places, 0.0)
            for order, scores in zip(orders, self.model.scores(questions, tally), strict=True):
                for place, score in zip(order, [] if scores is None else scores, strict=False):
                    total[place] += float(score)
            return min(places, key=lambda place: (-total[place], place))

        places = list(range(len(documents)))
        best = (self._inserted if self.options.method == "insertion" else self._heapsort)(places, best_of)
        return ordered_rows(list(dict.fromkeys([*best, *places])))

    def _heapsort(self, places: Sequence[int], best_of: Callable[..., int]) -> list[int]:
        """The best `options.best` of some documents."""
        heap, children = list(places), self.options.labels - 1
        best: list[int] = []
        for node in range((len(heap) - 2) // children, -1, -1) if len(heap) > 1 else []:
            _sift_down(heap, node, children, best_of)
        while heap and len(best) < self.options.best:
            best.append(heap[0])
            last = heap.pop()
            if heap and len(best) < self.options.best:
                heap[0] = last
                _sift_down(heap, 0, children, best_of)
        return best

    def _inserted(self, places: Sequence[int], best_of: Callable[..., int]) -> list[int]:
        best = self._heapsort(places[: self.options.best], best_of)
        size = self.options.labels - 1
        for start in range(len(best), len(places), size):
            group = list(places[start : start + size])
            while group and (found := best_of(best[-1], *group)) != best[-1]:
                group.remove(found)
                # The last one is beaten, and so are all others after some place.
                place = bisect.bisect_left(best[:-1], True, key=lambda one: best_of(one, found) == found)
                best[place:] = [found, *best[place:-1]]
        return best


def _sift_down(heap: list[int], node: int, children: int, best_of: Callable[..., int]) -> None:
    while (first := children * node + 1) < len(heap):
        family = [node, *range(first, min(first + children, len(heap)))]
        found = best_of(*(heap[place] for place in family))
        place = next(place for place in family if heap[place] == found)
        if place == node:
            return
        heap[node], heap[place] = heap[place], heap[node]
        node = place

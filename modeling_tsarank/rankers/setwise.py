"""Setwise ranking: which of a few passages answers the query best; heapsort or insertion make the top of a list of it.

References: Zhuang et al., A Setwise Approach for Effective and Highly Efficient Zero-shot Ranking with Large Language
Models, SIGIR 2024 (heapsort); Podolak et al., Beyond Reproducibility: Advancing Zero-shot LLM Reranking Efficiency
with Setwise Insertion, SIGIR 2025. The methods are theirs, the wording is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ranking_options import check_choice, settle_whole_numbers
from .labels import LETTERS, Labels, ListQuestions, Question
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, passage_text
from .protocols import PromptRanker, ordered_rows


METHODS = ("heapsort", "insertion")


@dataclass(frozen=True)
class SetwiseOptions:
    """How the top of a list is found.

    Attributes:
        method: `heapsort`: a heap whose nodes have `labels - 1` children, the best of a node and its children being
            asked for; `insertion`: the first `best` documents are sorted by heapsort, the others are asked about
            `labels - 1` at a time against the last of the best, and one that is preferred is inserted by binary
            search.
        labels: Passages in a prompt (the paper: 4).
        best: Documents whose order is found; the others stay behind them in the first stage's order.
        both_orders: Whether each prompt is asked with its passages in reversed order too; logits are added.
        passage_words: Words of a passage that are shown.

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
    """Orders the top of lists by asking for the best of a few documents.

    Of documents that the model prefers alike, and of those about which it gives no usable answer, the one that the
    first stage put in front is taken. A question that comes again is not asked again.

    Args:
        model: Its labels say which is the best.
        options: How.

    Raises:
        ModelError: the model has not as many labels as `options.labels`.
    """

    options_class = SetwiseOptions

    def __init__(self, model: Labels, options: SetwiseOptions | None = None) -> None:
        super().__init__(model, options)
        model.check(self.options.labels, setwise_question("", ["", ""]).begin)

    def _rows(self, query: str, documents: Sequence[str], tally: Counter[str]) -> list[dict[str, Any]]:
        choices = Choices(self.model, query, documents, self.options, tally)
        best = self._inserted(choices) if self.options.method == "insertion" else self._heapsort(choices)
        return ordered_rows(list(dict.fromkeys([*best, *range(len(documents))])))

    def _heapsort(self, choices: Choices, count: int | None = None) -> list[int]:
        """The best `options.best` of the first `count` documents, of all by default."""
        heap = list(range(choices.count))[:count]
        children = self.options.labels - 1
        best: list[int] = []
        for node in range((len(heap) - 2) // children, -1, -1) if len(heap) > 1 else []:
            _sift_down(heap, node, children, choices)
        while heap and len(best) < self.options.best:
            best.append(heap[0])
            last = heap.pop()
            if heap and len(best) < self.options.best:
                heap[0] = last
                _sift_down(heap, 0, children, choices)
        return best

    def _inserted(self, choices: Choices) -> list[int]:
        best = self._heapsort(choices, self.options.best)
        size = self.options.labels - 1
        for start in range(len(best), choices.count, size):
            group = list(range(start, min(start + size, choices.count)))
            while group and (found := choices.best_of([best[-1], *group])) != best[-1]:
                group.remove(found)
                low, high = 0, len(best) - 1  # the last one is beaten
                while low < high:
                    middle = (low + high) // 2
                    low, high = (
                        (low, middle) if choices.best_of([best[middle], found]) == found else (middle + 1, high)
                    )
                best[low:] = [found, *best[low:-1]]
        return best


def _sift_down(heap: list[int], node: int, children: int, choices: Choices) -> None:
    while (first := children * node + 1) < len(heap):
        family = [node, *range(first, min(first + children, len(heap)))]
        found = choices.best_of([heap[place] for place in family])
        place = next(place for place in family if heap[place] == found)
        if place == node:
            return
        heap[node], heap[place] = heap[place], heap[node]
        node = place


class Choices(ListQuestions):
    """The best of some documents of one list."""

    def best_of(self, places: Sequence[int]) -> int:
        """The document among `places` that the model prefers."""
        key = tuple(places)
        if key not in self.known:
            orders = [key, key[::-1]] if self.options.both_orders else [key]
            texts = [[self.documents[place] for place in order] for order in orders]
            questions = [setwise_question(self.query, one, self.options.passage_words) for one in texts]
            total = dict.fromkeys(key, 0.0)
            for order, scores in zip(orders, self.ask_all(questions), strict=True):
                for place, score in zip(order, [] if scores is None else scores, strict=False):
                    total[place] += float(score)
            self.known[key] = min(key, key=lambda place: (-total[place], place))
        best: int = self.known[key]
        return best

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

from ..ranking_options import settle_whole_numbers
from .labels import LETTERS, Labels, Question, check_choice
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, passage_text
from .protocols import clean_list


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


class SetwiseRanker:
    """Orders the top of lists by asking for the best of a few documents.

    Of documents that the model prefers alike, and of those about which it gives no usable answer, the one that the
    first stage put in front is taken. A question that comes again is not asked again.

    Args:
        labels: The model that is asked.
        options: How.

    Raises:
        ModelError: the model has not as many labels as `options.labels`.
    """

    def __init__(self, labels: Labels, options: SetwiseOptions | None = None) -> None:
        self.labels = labels
        self.options = options or SetwiseOptions()
        labels.check(self.options.labels, setwise_question("", ["", ""]).begin)
        self.name = labels.name
        self.last_stats: dict[str, int] = {}

    def rank(self, query: str, documents: Sequence[Any]) -> list[dict[str, Any]]:
        """The documents, given in the first stage's order, best first.

        Returns:
            `{"corpus_id", "score"}` of each document; the score is n for the first and 1 for the last.

        Raises:
            ModelError: a prompt is longer than the model's context.
            TSARankError: the model cannot be asked.
        """
        query, texts, cut = clean_list(query, documents, self.options.passage_words)
        choices = Choices(self.labels, query, texts, self.options)
        best = self._inserted(choices) if self.options.method == "insertion" else self._heapsort(choices)
        chosen = set(best)
        order = best + [place for place in range(len(texts)) if place not in chosen]
        self.last_stats = {**choices.tally, "cut_documents": cut}
        return [{"corpus_id": i, "score": float(len(order) - place)} for place, i in enumerate(order)]

    def _heapsort(self, choices: Choices, count: int | None = None) -> list[int]:
        """The best `options.best` of the first `count` documents, of all by default."""
        heap = list(range(choices.count if count is None else min(count, choices.count)))
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


class Choices:
    """The best of some documents of one list, each question asked once.

    Attributes:
        count: Documents.
        tally: Calls, tokens and unusable answers so far.
    """

    def __init__(self, labels: Labels, query: str, documents: Sequence[str], options: SetwiseOptions) -> None:
        self._labels, self._query, self._documents, self._options = labels, query, documents, options
        self._known: dict[tuple[int, ...], int] = {}
        self.count = len(documents)
        self.tally: Counter[str] = Counter(calls=0, tokens=0, unusable=0)

    def best_of(self, places: Sequence[int]) -> int:
        """The document among `places` that the model prefers."""
        key = tuple(places)
        if key not in self._known:
            orders = [key, key[::-1]] if self._options.both_orders else [key]
            texts = [[self._documents[place] for place in order] for order in orders]
            words = self._options.passage_words
            questions = [setwise_question(self._query, one, words) for one in texts]
            total = dict.fromkeys(key, 0.0)
            for order, scores in zip(orders, self._labels.scores(questions, self.tally), strict=True):
                for place, score in zip(order, [] if scores is None else scores, strict=False):
                    total[place] += float(score)
            self._known[key] = min(key, key=lambda place: (-total[place], place))
        return self._known[key]

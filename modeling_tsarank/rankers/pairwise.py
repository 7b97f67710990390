"""Pairwise ranking prompting: which of two passages answers the query better, asked in both orders.

Reference: Qin et al., Large Language Models are Effective Text Rankers with Pairwise Ranking Prompting, NAACL 2024
Findings. The method is theirs, the wording is ours.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..ranking_options import settle_whole_numbers
from .labels import Labels, Question, check_choice
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, passage_text
from .protocols import clean_list


METHODS = ("sliding", "sorting", "allpair")


@dataclass(frozen=True)
class PairwiseOptions:
    """How a list is put in order by comparisons of two documents.

    Attributes:
        method: `sliding`: `passes` passes from the end of the list to its front, each of n - 1 comparisons of
            neighbours, which bring the best `passes` documents to the front; `sorting`: heapsort; `allpair`: all
            n (n - 1) / 2 comparisons, each document's score being its wins and half its ties.
        passes: Of `sliding` (the paper: 10).
        passage_words: Words of a passage that are shown.

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
    """The question which of two passages, A or B, is more relevant; all but passage B stands in front of it, to be
    encoded once for many."""
    shared = (
        "Which of the two passages is more relevant to the search query? Answer with Passage A or Passage B.\n\n"
        f"Query: {query}\n\nPassage A: {passage_text(first, words)}\n\n"
    )
    return Question(f"{shared}Passage B: {passage_text(second, words)}", 2, shared=shared)


class PairwiseRanker:
    """Orders lists by comparisons of two documents.

    A document wins only where both orders of the prompt prefer it; otherwise the two tie, and the one that the first
    stage put in front stays there. A comparison that comes again is not asked again.

    Args:
        labels: The model that is asked.
        options: How.
    """

    def __init__(self, labels: Labels, options: PairwiseOptions | None = None) -> None:
        self.labels = labels
        self.options = options or PairwiseOptions()
        labels.check(2, pairwise_question("", "", "").begin)
        self.name = labels.name
        self.last_stats: dict[str, int] = {}

    def rank(self, query: str, documents: Sequence[Any]) -> list[dict[str, Any]]:
        """The documents, given in the first stage's order, best first.

        Returns:
            `{"corpus_id", "score"}` of each document: of `allpair` its wins and half its ties, else n for the first
            and 1 for the last.

        Raises:
            ModelError: a prompt is longer than the model's context.
            TSARankError: the model cannot be asked.
        """
        query, texts, cut = clean_list(query, documents, self.options.passage_words)
        comparisons = Comparisons(self.labels, query, texts, self.options.passage_words)
        places = range(len(texts))
        if self.options.method == "allpair":
            comparisons.ask(list(itertools.combinations(places, 2)))
            wins = [sum(comparisons.wins(i, j) for j in places if j != i) for i in places]
            rows = [{"corpus_id": i, "score": wins[i]} for i in sorted(places, key=lambda i: -wins[i])]
        else:
            order = _heapsort(comparisons) if self.options.method == "sorting" else self._sliding(comparisons)
            rows = [{"corpus_id": i, "score": float(len(order) - place)} for place, i in enumerate(order)]
        self.last_stats = {**comparisons.tally, "cut_documents": cut}
        return rows

    def _sliding(self, comparisons: Comparisons) -> list[int]:
        order = list(range(comparisons.count))
        for _ in range(self.options.passes):
            before = list(order)
            for place in range(len(order) - 2, -1, -1):
                if comparisons.wins(order[place + 1], order[place]) == 1.0:
                    order[place], order[place + 1] = order[place + 1], order[place]
            if order == before:
                break  # so would every further pass
        return order


class Comparisons:
    """Outcomes of comparisons within one list, each asked once.

    Attributes:
        count: Documents.
        tally: Calls, tokens and unusable answers so far.
    """

    def __init__(self, labels: Labels, query: str, documents: Sequence[str], words: int) -> None:
        self._labels, self._query, self._documents, self._words = labels, query, documents, words
        self._wins: dict[tuple[int, int], float] = {}
        self.count = len(documents)
        self.tally: Counter[str] = Counter(calls=0, tokens=0, unusable=0)

    def wins(self, i: int, j: int) -> float:
        """1 where document i beats document j, 0 where it loses, 1/2 for a tie."""
        if (i, j) not in self._wins:
            self.ask([(i, j)])
        return self._wins[i, j]

    def ask(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Compares pairs of documents, each in both orders, all together."""
        texts = self._documents
        orders = [order for i, j in pairs for order in ((i, j), (j, i))]
        questions = [pairwise_question(self._query, texts[i], texts[j], self._words) for i, j in orders]
        scores = self._labels.scores(questions, self.tally)
        # 1 where the passage shown first is preferred, -1 for the second.
        signs = [0.0 if one is None else float(one[0] > one[1]) - float(one[0] < one[1]) for one in scores]
        for (i, j), forth, back in zip(pairs, signs[::2], signs[1::2], strict=True):
            self._wins[i, j] = {(1.0, -1.0): 1.0, (-1.0, 1.0): 0.0}.get((forth, back), 0.5)
            self._wins[j, i] = 1.0 - self._wins[i, j]


class _Place:
    """A document in a heap: smaller is better."""

    def __init__(self, document: int, comparisons: Comparisons) -> None:
        self.document, self._comparisons = document, comparisons

    def __lt__(self, other: _Place) -> bool:
        wins = self._comparisons.wins(self.document, other.document)
        return wins == 1.0 or (wins == 0.5 and self.document < other.document)


def _heapsort(comparisons: Comparisons) -> list[int]:
    heap = [_Place(document, comparisons) for document in range(comparisons.count)]
    heapq.heapify(heap)
    return [heapq.heappop(heap).document for _ in range(len(heap))]

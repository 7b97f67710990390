"""Rankers built from rankers: a cascade of stages, and a ranker that gets the list in another order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

from ..ranking_errors import InputError
from .protocols import (
    COUNTS,
    ListRanker,
    Scorer,
    chosen_rows,
    clean_list,
    last_counts,
    ordered_rows,
    predict,
    rank_scores,
)


class Cascade:
    """Cheap rankers order many documents, expensive ones the best of those.

    Args:
        stages: (depth, ranker) in order; the depth is how many documents a stage orders, from the top of the previous
            order; depths never grow.

    Raises:
        InputError: no stage, or a depth that is not a whole number, below 1, or larger than the previous one.
    """

    def __init__(self, stages: Sequence[tuple[int, Scorer | ListRanker]]) -> None:
        depths = [depth for depth, _ in stages]
        check_depths(depths)
        self.stages = list(stages)
        self.last_stats: dict[str, int] = {}

    def rank(
        self,
        query: str,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """The documents, given in the first stage's order, best first; those below a stage's depth keep their order.
        `top_k` and `return_documents` as in `RankerModel.rank`.

        Returns:
            `{"corpus_id", "score"}` of each document; the score is n for the first and 1 for the last.
        """
        query, documents, texts, _ = clean_list(query, documents, top_k=top_k)
        order = list(range(len(texts)))
        counts: Counter[str] = Counter()
        for depth, ranker in self.stages:
            head = order[:depth]
            chosen: Any = [texts[i] for i in head]
            if not head:
                break
            if hasattr(ranker, "rank"):
                scores = rank_scores(cast(ListRanker, ranker), query, chosen, batch_tokens)
            else:
                scores = list(predict(cast(Scorer, ranker), [(query, text) for text in chosen], batch_tokens))
            counts.update(last_counts(ranker))
            order[:depth] = [head[place] for place in sorted(range(len(head)), key=lambda place: -scores[place])]
        self.last_stats = {name: counts[name] for name in COUNTS if name in counts}
        return chosen_rows(ordered_rows(order), documents, top_k, return_documents)


def check_depths(depths: Sequence[int]) -> None:
    """Raises `InputError` for invalid depths."""
    if not depths or any(not isinstance(depth, int) or depth < 1 for depth in depths):
        raise InputError(f"a cascade needs stages of at least one document, got depths {list(depths)}")
    if list(depths) != sorted(depths, reverse=True):
        raise InputError(f"the depths of a cascade must not grow, got {list(depths)}")


def parse_cascade(text: str) -> list[tuple[int, str]]:
    """The stages of `100:int8,30:float32`: (depth, ranker). Raises `InputError` for anything else."""
    stages = []
    for part in text.split(","):
        depth, colon, what = part.strip().partition(":")
        if not (colon and what.strip() and depth.isascii() and depth.isdigit() and len(depth) < 10):
            raise InputError(f"--cascade expects DEPTH:WHAT, such as 100:int8,30:float32, got {part[:80]!r}")
        stages.append((int(depth), what.strip()))
    check_depths([depth for depth, _ in stages])
    return stages


ORDERS = ("given", "reversed", "shuffled-1", "shuffled-2", "shuffled-3")
"""Orders in which a ranker of lists can get the first stage's documents."""


class Reordered:
    """A ranker of lists that gets the documents in another order.

    Args:
        ranker: The ranker.
        order: One of `ORDERS`; a shuffled order is the same for the same query in every run.
    """

    def __init__(self, ranker: ListRanker, order: str) -> None:
        self.ranker, self.order = ranker, order

    @property
    def last_stats(self) -> Any:
        """The ranker's own."""
        return getattr(self.ranker, "last_stats", {})

    def rank(self, query: str, documents: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows of the ranker; `corpus_id` is an index into `documents`."""
        places = list(range(len(documents)))
        if self.order == "reversed":
            places.reverse()
        elif self.order != "given":
            random.Random(f"{self.order}\n{query}").shuffle(places)
        rows = self.ranker.rank(query, [documents[place] for place in places])
        return [{**row, "corpus_id": places[int(row["corpus_id"])]} for row in rows]

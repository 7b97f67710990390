"""The Space's functions without the user interface: rank, explain, compare; used by both the page and the API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from numbers import Real
from typing import Any

from modeling_tsarank.cache.state_files import NamedDocument
from modeling_tsarank.hub_cards.app_inputs import BuiltInCollection, named_documents
from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.hub_cards.app_models import Explained, ModelShelf
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_text import clean_query, clean_text


BM25 = "BM25"
GIVEN = "given order"


@dataclass(frozen=True)
class Ranked:
    """One document of a ranking. `before` and `place` count from 1; it moved up by `moved` places. `text` starts with
    the title, if there is one."""

    id: str
    text: str
    score: float
    place: int
    before: int
    title: str = ""

    @property
    def moved(self) -> int:
        """Places gained over the first stage; negative if it lost some."""
        return self.before - self.place


@dataclass(frozen=True)
class Ranking:
    """Documents in a model's order, best first, with the cost of the ranking.

    Attributes:
        query: The query as passed to the model.
        model: Its name on the shelf.
        family: Its family, such as `query_likelihood`.
        first_stage: Source of the input order.
        rows: Best first.
        tokens: Tokens processed.
        seconds: Computation time in seconds.
        remembered: Whether the scores come from the cache of earlier requests.
        cut_documents: Documents truncated to the model's length.
    """

    query: str
    model: str
    family: str
    first_stage: str
    rows: tuple[Ranked, ...]
    tokens: int
    seconds: float
    remembered: bool
    cut_documents: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The API's response."""
        return {
            **{name: value for name, value in vars(self).items() if name != "rows"},
            "seconds": round(self.seconds, 4),
            "results": [
                {
                    "rank": row.place,
                    "id": row.id,
                    "score": round(row.score, 6),
                    "first_stage_rank": row.before,
                    "moved": row.moved,
                    "text": row.text,
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class Comparison:
    """Two models' rankings of the same documents."""

    a: Ranking
    b: Ranking

    def places(self) -> list[tuple[Ranked, Ranked]]:
        """Every document's row in A and in B, in A's order."""
        by_before = {row.before: row for row in self.b.rows}
        return [(row, by_before[row.before]) for row in self.a.rows]

    def agreement(self) -> tuple[int, int]:
        """The number of document pairs that both models rank in the same order, and the number of all pairs."""
        pairs = list(combinations(self.places(), 2))
        # In A's order, the first of a pair is always ranked higher by A.
        return sum(first[1].place < second[1].place for first, second in pairs), len(pairs)

    def to_dict(self) -> dict[str, Any]:
        """The API's response."""
        same, pairs = self.agreement()
        return {"a": self.a.to_dict(), "b": self.b.to_dict(), "same_order": same, "pairs": pairs}


class RankingService:
    """The Space's three functions over a shelf of models and a built-in collection."""

    def __init__(self, shelf: ModelShelf, collection: BuiltInCollection, limits: Limits) -> None:
        self.shelf = shelf
        self.collection = collection
        self.limits = limits

    def check_query(self, query: Any) -> str:
        """The cleaned query. Raises `InputError` if it is empty, too long, or not a string."""
        query = clean_query(query)
        self.limits.check_query(query)
        return query

    def candidates(self, query: str, depth: int) -> list[NamedDocument]:
        """BM25's candidates from the built-in collection. Raises `InputError` if there are none, or for too many."""
        if isinstance(depth, Real) and depth > self.limits.documents:
            raise InputError(
                f"{depth!r:.20} candidates were requested; at most {self.limits.documents} are allowed here"
            )
        return self.collection.search(query, depth)

    def rank(
        self, query: str, documents: Sequence[NamedDocument], model: str | None = None, first_stage: str = GIVEN
    ) -> Ranking:
        """Documents in a model's order; equal scores keep the input order. Raises `InputError`, `ResourceError`."""
        query = self.check_query(query)
        self.limits.check_documents(documents)
        name, loaded = self.shelf.get(model)
        scored = self.shelf.score(query, [document.text for document in documents], name)
        order = sorted(range(len(documents)), key=lambda i: -scored.scores[i])
        rows = tuple(
            Ranked(documents[i].id, documents[i].text, scored.scores[i], place, i + 1, documents[i].title)
            for place, i in enumerate(order, 1)
        )
        cost = {name: value for name, value in vars(scored).items() if name != "scores"}
        return Ranking(query, name, loaded.options.family, first_stage, rows, **cost)

    def search(self, query: str, depth: int = 10, model: str | None = None) -> Ranking:
        """BM25's best `depth` of the built-in collection, reranked by a model."""
        query = self.check_query(query)
        return self.rank(query, self.candidates(query, depth), model, BM25)

    def rank_texts(self, query: str, documents: Any, model: str | None = None) -> Ranking:
        """`rank` for a plain list of texts."""
        return self.rank(query, named_documents(documents, self.limits), model)

    def explain(self, query: str, document: Any, model: str | None = None) -> Explained:
        """The explanation of a document's score."""
        text = clean_text(document, "the document")
        self.limits.check_documents([NamedDocument("1", text)])
        return self.shelf.explain(query, text, model)

    def compare(
        self, query: str, documents: Sequence[NamedDocument], a: str | None, b: str | None, first_stage: str = GIVEN
    ) -> Comparison:
        """The same documents ranked by two models. Raises `InputError` if the two are the same model."""
        first, second = self.shelf.get(a)[0], self.shelf.get(b)[0]
        if first == second:
            raise InputError(f"both models are {first!r}; choose two different ones")
        return Comparison(
            self.rank(query, documents, first, first_stage), self.rank(query, documents, second, first_stage)
        )

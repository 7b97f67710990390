"""What the Space does, without its looks: rank, explain, compare. The page and the API both call this."""

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
    """One document of a ranking. `before` and `place` count from 1; it moved up by `moved` places. `text` begins with
    the title, where there is one."""

    id: str
    text: str
    score: float
    place: int
    before: int
    title: str = ""

    @property
    def moved(self) -> int:
        """Places won against the first stage; negative where it lost some."""
        return self.before - self.place


@dataclass(frozen=True)
class Ranking:
    """Documents in a model's order, best first, and what that cost.

    Attributes:
        query: As the model read it.
        model: Its name on the shelf.
        family: Its family, such as `query_likelihood`.
        first_stage: Whose order the documents came in.
        rows: Best first.
        tokens: Tokens read.
        seconds: Seconds of the model's work.
        remembered: Whether the scores come from an earlier, equal request.
        cut_documents: Documents that were longer than the model reads.
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
        """The form the API returns."""
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
        """Pairs of documents both models put in the same order, and all pairs."""
        pairs = list(combinations(self.places(), 2))
        # In A's order, the first of a pair always stands higher in A.
        return sum(first[1].place < second[1].place for first, second in pairs), len(pairs)

    def to_dict(self) -> dict[str, Any]:
        """The form the API returns."""
        same, pairs = self.agreement()
        return {"a": self.a.to_dict(), "b": self.b.to_dict(), "same_order": same, "pairs": pairs}


class RankingService:
    """The Space's three verbs over a shelf of models and a built-in collection."""

    def __init__(self, shelf: ModelShelf, collection: BuiltInCollection, limits: Limits) -> None:
        self.shelf = shelf
        self.collection = collection
        self.limits = limits

    def check_query(self, query: Any) -> str:
        """The query, cleaned. Raises `InputError` if it is empty, too long, or no text."""
        query = clean_query(query)
        self.limits.check_query(query)
        return query

    def candidates(self, query: str, depth: int) -> list[NamedDocument]:
        """BM25's candidates from the built-in collection. Raises `InputError` if there are none or too many asked."""
        if isinstance(depth, Real) and depth > self.limits.documents:
            raise InputError(
                f"{depth!r:.20} candidates were asked for; at most {self.limits.documents} are allowed here"
            )
        return self.collection.search(query, depth)

    def rank(
        self, query: str, documents: Sequence[NamedDocument], model: str | None = None, first_stage: str = GIVEN
    ) -> Ranking:
        """Documents in a model's order; equal scores keep the order given. Raises `InputError`, `ResourceError`."""
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
        """BM25's best `depth` of the built-in collection, put in order by a model."""
        query = self.check_query(query)
        return self.rank(query, self.candidates(query, depth), model, BM25)

    def rank_texts(self, query: str, documents: Any, model: str | None = None) -> Ranking:
        """`rank` for a plain list of texts."""
        return self.rank(query, named_documents(documents, self.limits), model)

    def explain(self, query: str, document: Any, model: str | None = None) -> Explained:
        """Why `document` gets its score."""
        text = clean_text(document, "the document")
        self.limits.check_documents([NamedDocument("1", text)])
        return self.shelf.explain(query, text, model)

    def compare(
        self, query: str, documents: Sequence[NamedDocument], a: str | None, b: str | None, first_stage: str = GIVEN
    ) -> Comparison:
        """The same documents in two models' orders. Raises `InputError` if the two are the same model."""
        first, second = self.shelf.get(a)[0], self.shelf.get(b)[0]
        if first == second:
            raise InputError(f"both models are {first!r}; choose two different ones")
        return Comparison(
            self.rank(query, documents, first, first_stage), self.rank(query, documents, second, first_stage)
        )

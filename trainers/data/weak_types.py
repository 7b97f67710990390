"""The seven types of weakly supervised pairs, the pair with its origin, and the base class of filters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from modeling_tsarank.trainers.data.weak_text import TextView


PAIR_TYPES: dict[str, str] = {
    "title_body": "the title of a page or an article, and its body",
    "title_abstract": "the title of a scientific paper, and its abstract",
    "citation_reference": "a sentence that cites a paper, and the cited paper's title and abstract",
    "post_comment": "a post, and a comment on it",
    "entity_description": "the name of an entity, and its description",
    "question_answer": "a question, and its answer",
    "summary_content": "a summary, and the summarized text",
}
"""TSARankLLM, Table 1: the shorter text of each type is the query, the longer one the document."""

COLUMNS = ("query", "document", "type", "source", "licence")
UNKNOWN_LICENCE = "unknown"


@dataclass(slots=True)
class Pair:
    """One weakly supervised pair.

    Attributes:
        query: The text that a model learns to predict.
        document: The text that it is predicted from.
        type: One of `PAIR_TYPES`.
        source: Origin of the pair.
        licence: Licence of the source, `unknown` if not stated.
    """

    query: str
    document: str
    type: str
    source: str
    licence: str = UNKNOWN_LICENCE
    _views: dict[str, TextView] = field(default_factory=dict, repr=False, compare=False)

    def view(self, name: str) -> TextView:
        """The words and keys of the text `name` ("query" or "document"), computed once."""
        if name not in self._views:
            self._views[name] = TextView(getattr(self, name))
        return self._views[name]

    def with_texts(self, query: str, document: str) -> Pair:
        """The same pair with other texts; the pair itself if they are equal."""
        if query == self.query and document == self.document:
            return self
        return Pair(query, document, self.type, self.source, self.licence)

    def row(self) -> dict[str, Any]:
        """The columns of the finished dataset."""
        return {name: getattr(self, name) for name in COLUMNS}


Outcome: TypeAlias = "Pair | str"
"""The result of a step for a pair: the pair, possibly modified, or the reason why it is dropped."""


class Step:
    """Base class of all filters: a dataclass whose fields are the options.

    Attributes:
        name: Name in recipes.
    """

    name: ClassVar[str]

    def apply(self, pairs: list[Pair]) -> list[Outcome]:
        """One outcome per pair, in order."""
        return [self.judge(pair) for pair in pairs]

    def judge(self, pair: Pair) -> Outcome:
        """The outcome of one pair; for steps that process each pair independently."""
        raise NotImplementedError(f"{type(self).__name__} judges batches")

    def facts(self) -> dict[str, Any]:
        """Additional facts on this step for the provenance record."""
        return {}

    def public_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The declared options for the provenance record, without local paths."""
        return options

    def close(self) -> None:
        """Closes files and models."""

"""The seven kinds of weakly supervised pairs and one pair with its origin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modeling_tsarank.trainers.data.weak_text import TextView


PAIR_TYPES: dict[str, str] = {
    "title_body": "the title of a page or an article, and its body",
    "title_abstract": "the title of a scientific paper, and its abstract",
    "citation_reference": "a sentence that cites a paper, and the cited paper's title and abstract",
    "post_comment": "a post, and a comment on it",
    "entity_description": "the name of an entity, and its description",
    "question_answer": "a question, and its answer",
    "summary_content": "a summary, and what it sums up",
}
"""TSARankLLM, Table 1: the shorter text of each kind is the query, the longer one the document."""

COLUMNS = ("query", "document", "type", "source", "licence")
UNKNOWN_LICENCE = "unknown"


@dataclass(slots=True)
class Pair:
    """One weakly supervised pair.

    Attributes:
        query: What a model learns to predict.
        document: What it is predicted from.
        type: One of `PAIR_TYPES`.
        source: Where the pair comes from.
        licence: Licence of the source, `unknown` where nobody said.
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
        """The same pair with other texts; itself where they are the same."""
        if query == self.query and document == self.document:
            return self
        return Pair(query, document, self.type, self.source, self.licence)

    def row(self) -> dict[str, Any]:
        """The columns of the finished dataset."""
        return {name: getattr(self, name) for name in COLUMNS}

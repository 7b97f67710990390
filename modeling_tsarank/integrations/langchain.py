"""LangChain: `TSARankReranker` for `ContextualCompressionRetriever` and other users of document compressors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field

from . import as_ranker, found_in, rank_with


class TSARankReranker(BaseDocumentCompressor):
    """Keeps the documents that are most relevant to the query, best first.

    Attributes:
        model: A name for `load_ranker`, or a loaded ranker.
        top_n: How many documents to keep; `None` keeps all.
        rank_options: Further arguments of `rank`, such as `{"passages": "max"}`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=(), extra="forbid")
    model: Any = Field(default=None, exclude=True)
    top_n: int | None = Field(default=3, ge=1)
    rank_options: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Loads the model."""
        self.model = as_ranker(self.model)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Copies of the best documents, with the score as `relevance_score` in their metadata, and the `passage`."""
        if not documents:
            return []
        texts = [document.page_content for document in documents]
        kept = []
        for row in rank_with(self.model, query, texts, self.top_n, self.rank_options):
            document = documents[row["corpus_id"]]
            metadata = {**document.metadata, "relevance_score": row["score"], **found_in(row)}
            kept.append(document.model_copy(update={"metadata": metadata}))
        return kept

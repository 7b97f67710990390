"""LlamaIndex: `TSARankReranker` as a node postprocessor of query engines."""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from . import as_ranker, found_in, rank_with


class TSARankReranker(BaseNodePostprocessor):
    """Keeps the nodes that are most relevant to the query, best first.

    Args:
        model: A name for `load_ranker`, or a loaded ranker.
        top_n: How many nodes to keep.
        rank_options: Further arguments of `rank`, such as `{"passages": "max"}`; the best passage is then added to a
            node's metadata.
    """

    top_n: int = Field(default=3, ge=1)
    rank_options: dict[str, Any] = Field(default_factory=dict)
    _ranker: Any = PrivateAttr()

    def __init__(self, model: Any = None, top_n: int = 3, rank_options: dict[str, Any] | None = None) -> None:
        super().__init__(top_n=top_n, rank_options=rank_options or {})
        self._ranker = as_ranker(model)

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex shows."""
        return "TSARankReranker"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("a reranker needs the query; call postprocess_nodes with query_bundle or query_str")
        if not nodes:
            return []
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        kept = []
        for row in rank_with(self._ranker, query_bundle.query_str, texts, self.top_n, self.rank_options):
            node, found = nodes[row["corpus_id"]].node, found_in(row)
            node = node.model_copy(update={"metadata": {**node.metadata, **found}}) if found else node
            kept.append(NodeWithScore(node=node, score=row["score"]))
        return kept

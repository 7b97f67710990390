"""The pairs to rerank: the first stage's run over the judged queries, split into fixed blocks.

For a pointwise scorer, pairs are grouped by document, not by query: a query-likelihood model encodes a document once
for all the queries that retrieved it, so a block contains whole documents with all their queries. For a listwise
ranker a block contains whole queries with all their documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Collection, Qrels, Run
from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.ranking_errors import InputError


# The default block size: small enough that every process has work in a collection of a few hundred pairs, large enough
# to fill batches and to keep writes of scores rare.
BLOCKS, FEWEST_PAIRS, MOST_PAIRS = 32, 100, 2000


@dataclass
class Candidates:
    """The candidates of an evaluation.

    Args:
        collection: Source of the texts.
        query_ids: The evaluated queries, in order, including those without candidates.
        first: The first stage's run over these queries.
        top_k: Number of documents per query to rerank.
        block_pairs: Approximate pairs per block; None: chosen from the number of pairs, one query for whole lists.
        whole_lists: Whether all documents of a query stay in one block.
    """

    collection: Collection
    query_ids: list[str]
    first: Run
    top_k: int
    block_pairs: int | None
    whole_lists: bool = False
    ordered: dict[str, list[str]] = field(init=False)
    pairs: list[tuple[str, str]] = field(init=False)
    blocks: list[range] = field(init=False)

    def __post_init__(self) -> None:
        self.ordered = {query_id: ranked(self.first.get(query_id, {})) for query_id in self.query_ids}
        groups: dict[str, list[tuple[str, str]]] = {}
        for query_id in self.query_ids:
            for document_id in self.head(query_id):
                groups.setdefault(query_id if self.whole_lists else document_id, []).append((query_id, document_id))
        self.pairs = [pair for group in groups.values() for pair in group]
        size = self.block_pairs or min(MOST_PAIRS, max(FEWEST_PAIRS, len(self.pairs) // BLOCKS))
        if self.whole_lists and self.block_pairs is None:
            size = 1  # one list may take minutes
        self.blocks = split_blocks([len(group) for group in groups.values()], size)
        documents = self.collection.documents
        for query_id in self.query_ids:
            unknown = next((document_id for document_id in self.head(query_id) if document_id not in documents), None)
            if unknown is not None:
                raise InputError(
                    f"the first stage has document {unknown!r} for query {query_id!r}, which is not in "
                    f"{self.collection.name}: use a run and a corpus of the same collection"
                )

    def head(self, query_id: str) -> list[str]:
        """The documents of a query to rerank, best first."""
        return self.ordered[query_id][: self.top_k]

    def tail(self, query_id: str) -> list[str]:
        """The other documents, which stay in the first stage's order below the reranked ones."""
        return self.ordered[query_id][self.top_k :]

    def block_pairs_of(self, block: int) -> list[tuple[str, str]]:
        """(query id, document id) of one block: documents in order of first occurrence, each with its queries.

        For whole lists: queries in order, each with its documents in the first stage's order.
        """
        return [self.pairs[position] for position in self.blocks[block]]

    def block_texts(self, block: int) -> list[tuple[str, Any]]:
        """The same as (query, document) texts; for whole lists as (query, documents)."""
        texts = [
            (query_id, self.collection.queries[query_id], self.collection.documents[document_id].full_text)
            for query_id, document_id in self.block_pairs_of(block)
        ]
        if not self.whole_lists:
            return [(query, document) for _, query, document in texts]
        lists: dict[str, tuple[str, list[str]]] = {}
        for query_id, query, document in texts:
            lists.setdefault(query_id, (query, []))[1].append(document)
        return list(lists.values())

    @property
    def qrels(self) -> Qrels:
        """Relevance judgments of the evaluated queries."""
        return {query_id: self.collection.qrels[query_id] for query_id in self.query_ids}

    def digest(self) -> str:
        """Digest of the texts to score, the first stage's order and scores, and the judgments of these queries."""
        return hash_parts(self._digest_parts())[:16]

    def _digest_parts(self) -> Iterator[str]:
        for query_id in self.query_ids:
            yield query_id
            yield self.collection.queries[query_id]
            yield json.dumps(sorted(self.collection.qrels.get(query_id, {}).items()))
            for document_id in self.ordered[query_id]:
                yield document_id
                yield repr(self.first[query_id][document_id])
            for document_id in self.head(query_id):
                yield self.collection.documents[document_id].full_text


def split_blocks(group_sizes: Sequence[int], block_pairs: int) -> list[range]:
    """Splits grouped pairs into blocks of consecutive whole groups with about `block_pairs` pairs each.

    Args:
        group_sizes: Number of pairs in each group, in order.
        block_pairs: A block ends once it has at least this many pairs.

    Returns:
        Ranges of pair indices; each pair is in exactly one range.
    """
    blocks: list[range] = []
    start = end = 0
    for size in group_sizes:
        end += size
        if end - start >= block_pairs:
            blocks.append(range(start, end))
            start = end
    if start < end:
        blocks.append(range(start, end))
    return blocks

"""Candidates cut into blocks: what the processes of an evaluation share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank.eval.candidates import Candidates, split_blocks
from modeling_tsarank.eval.types import Collection, Document


def candidates_of(queries: int, documents: int, block_pairs: int | None = None) -> Candidates:
    texts = {f"d{number}": Document("", f"text {number}") for number in range(queries * documents)}
    ids = list(texts)
    first = {
        f"q{number}": {ids[number * documents + rank]: -rank for rank in range(documents)} for number in range(queries)
    }
    collection = Collection("made", texts, dict.fromkeys(first, "query"), {})
    return Candidates(collection, list(first), first, documents, block_pairs)


@pytest.mark.parametrize(
    ("queries", "documents", "fewest", "largest"),
    [(3, 20, 1, 100), (30, 20, 6, 100), (43, 100, 32, 134), (300, 100, 32, 937), (1000, 100, 50, 2000)],
)
def test_blocks_of_themselves_leave_work_for_several_processes(
    queries: int, documents: int, fewest: int, largest: int
) -> None:
    candidates = candidates_of(queries, documents)
    sizes = [len(block) for block in candidates.blocks]
    assert sum(sizes) == queries * documents == len(candidates.pairs)
    assert len(sizes) >= fewest
    assert max(sizes) <= largest


def test_given_block_size_is_kept() -> None:
    assert [len(block) for block in candidates_of(30, 20, 250).blocks] == [250, 250, 100]


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 50))
def test_blocks_cover_every_pair_once(sizes: list[int], block_pairs: int) -> None:
    blocks = split_blocks(sizes, block_pairs)
    assert [position for block in blocks for position in block] == list(range(sum(sizes)))
    assert all(len(block) >= block_pairs for block in blocks[:-1])
    ends = {sum(sizes[:count]) for count in range(len(sizes) + 1)}
    assert {block.stop for block in blocks} <= ends, "a document was cut in two"
    largest = max(sizes, default=0)
    assert all(len(block) < block_pairs + largest for block in blocks), "a block goes on after it is full"

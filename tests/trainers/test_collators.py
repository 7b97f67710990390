"""Drawing documents and making ragged batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeling_tsarank.trainers.collators import (
    ONE_POSITIVE,
    RankingCollator,
    SampledGroups,
    group_mask,
    pad_pairs,
    to_grid,
)
from modeling_tsarank.trainers.rows import to_row


def one_positive(rows: list[Any], seed: int, num_negatives: int) -> SampledGroups:
    return SampledGroups(
        [to_row(row, positives=True) for row in rows], seed, ONE_POSITIVE, num_negatives=num_negatives
    )


def lists(rows: list[Any], seed: int, num_documents: int | None, sampling: str = "first") -> SampledGroups:
    return SampledGroups([to_row(row) for row in rows], seed, sampling, num_documents=num_documents)


def test_one_positive_comes_first_and_negatives_do_not_repeat(sft_rows: list[Any]) -> None:
    groups = one_positive(sft_rows, seed=3, num_negatives=4)
    assert len(groups) == len(sft_rows)
    for i, row in enumerate(sft_rows):
        group = groups[i]
        assert group["query"] == row["query"]
        assert group["documents"][0] in row["positives"]
        assert len(group["documents"]) == 5
        drawn = group["documents"][1:]
        assert all(drawn.count(text) <= row["negatives"].count(text) for text in drawn)


def test_a_row_with_fewer_negatives_gives_them_all(sft_rows: list[Any]) -> None:
    group = one_positive(sft_rows, seed=3, num_negatives=50)[0]
    assert sorted(group["documents"][1:]) == sorted(sft_rows[0]["negatives"])


def test_a_teachers_scores_go_with_their_documents(sft_rows: list[Any]) -> None:
    rows = [
        {**row, "positive_scores": [len(text) for text in row["positives"]]}
        | {"negative_scores": [len(text) for text in row["negatives"]]}
        for row in sft_rows
    ]
    groups, plain = (one_positive(given, seed=3, num_negatives=3) for given in (rows, sft_rows))
    for i in range(len(rows)):
        assert groups[i]["documents"] == plain[i]["documents"]
        assert groups[i]["teacher_scores"] == [float(len(text)) for text in groups[i]["documents"]]
        assert "teacher_scores" not in plain[i]


def test_draws_depend_on_seed_epoch_and_row_alone(sft_rows: list[Any]) -> None:
    first, second = (one_positive(sft_rows, seed=3, num_negatives=3) for _ in range(2))
    forwards = [first[i] for i in range(len(first))]
    backwards = [second[i] for i in reversed(range(len(second)))]
    assert forwards == backwards[::-1]
    first.start_epoch(1)
    assert [first[i] for i in range(len(first))] != forwards
    first.start_epoch(0)
    assert [first[i] for i in range(len(first))] == forwards
    other = one_positive(sft_rows, seed=4, num_negatives=3)
    assert [other[i] for i in range(len(other))] != forwards


def test_workers_see_the_epoch(sft_rows: list[Any]) -> None:
    """Workers that outlive an epoch hold a copy of the dataset, but share its epoch."""
    groups = one_positive(sft_rows, seed=3, num_negatives=3)
    loader = torch.utils.data.DataLoader(groups, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=list)
    for epoch in (0, 1):
        groups.start_epoch(epoch)
        assert [group for batch in loader for group in batch] == [groups[i] for i in range(len(groups))]


def test_titles_are_put_in_front() -> None:
    rows = [{"query": " q ", "positives": [{"docid": "1", "title": "T", "text": "x"}], "negatives": ["y"]}]
    assert one_positive(rows, 0, 1)[0]["documents"] == ["T x", "y"]


def test_targets_follow_the_documents_that_are_kept() -> None:
    row = {
        "query": "q",
        "documents": ["a", "b", "c", "d"],
        "permutation": [3, 1, 0, 2],
        "teacher_scores": [0.5, 2.0, -1.0, 3.0],
        "labels": [0, 1, 0, 2],
    }
    group = lists([row], 0, 3)[0]
    assert group["documents"] == ["a", "b", "c"]
    assert group["permutation"] == [1, 0, 2]
    assert group["teacher_scores"] == [0.5, 2.0, -1.0]
    assert group["labels"] == [0.0, 1.0, 0.0]
    drawn = lists([row] * 40, 0, 2, "random")
    kept = {tuple(drawn[i]["documents"]) for i in range(40)}
    assert len(kept) == 6
    for i in range(40):
        group = drawn[i]
        by_score = sorted(range(2), key=lambda place: -group["teacher_scores"][place])
        assert group["permutation"] == by_score
    assert lists([row], 0, None)[0]["permutation"] == row["permutation"]


def test_a_missing_target_is_left_out() -> None:
    group = lists([{"query": "q", "documents": ["a", "b"], "permutation": None, "labels": [1, 0]}], 0, None)[0]
    assert "permutation" not in group
    assert group["labels"] == [1.0, 0.0]


def test_batch_holds_every_pairs_ids(make_ranker: Any, distill_rows: list[Any]) -> None:
    ranker = make_ranker("tsarank")
    groups = lists(distill_rows, 0, None)
    chosen = [groups[i] for i in (0, 3, 1)]
    batch = RankingCollator(ranker.encoder)(chosen)
    sizes = [len(group["documents"]) for group in chosen]
    assert batch["group_sizes"].tolist() == sizes
    texts = [(group["query"], document) for group in chosen for document in group["documents"]]
    expected = ranker.encoder.pairs(texts)
    rows = batch["token_ids"].split(batch["lengths"].tolist())
    assert [tuple(row.tolist()) for row in rows] == [pair.prompt + pair.query for pair in expected]
    assert batch["query_lengths"].tolist() == [len(pair.query) for pair in expected]
    width = max(sizes)
    for g, group in enumerate(chosen):
        padding = [0] * (width - sizes[g])
        assert batch["labels"][g].tolist() == [*group["labels"], *padding]
        assert batch["teacher_scores"][g].tolist() == pytest.approx([*group["teacher_scores"], *padding])
        ranks = [group["permutation"].index(i) + 1 for i in range(sizes[g])]
        assert batch["ranks"][g].tolist() == [*ranks, *padding]
    assert batch["rows"] == chosen


def test_targets_need_every_group(make_ranker: Any) -> None:
    collator = RankingCollator(make_ranker("twolar").encoder)
    groups = [
        {"row": 0, "query": "bread", "documents": ["yeast", "ship"], "labels": [1.0, 0.0]},
        {"row": 1, "query": "ship", "documents": ["quay"]},
    ]
    batch = collator(groups)
    assert "labels" not in batch
    assert batch["query_lengths"].tolist() == [0, 0, 0]


def test_padded_pairs(make_ranker: Any, sft_rows: list[Any]) -> None:
    groups = one_positive(sft_rows, 0, 3)
    batch = RankingCollator(make_ranker().encoder)([groups[i] for i in range(3)])
    padded = pad_pairs(batch, (5, 0, 7), pad_id=3)
    rows = batch["token_ids"].split(batch["lengths"].tolist())
    for i, pair in enumerate((5, 0, 7)):
        length, query = int(batch["lengths"][pair]), int(batch["query_lengths"][pair])
        assert torch.equal(padded["input_ids"][i, :length], rows[pair])
        assert bool((padded["input_ids"][i, length:] == 3).all())
        assert padded["attention_mask"][i].tolist() == [1] * length + [0] * (padded["input_ids"].shape[1] - length)
        assert padded["query_mask"][i].nonzero().squeeze(-1).tolist() == list(range(length - query, length))
    assert padded["input_ids"].shape[1] == max(int(batch["lengths"][pair]) for pair in (5, 0, 7))


def test_grid_keeps_the_graph_and_the_order() -> None:
    values = torch.arange(1.0, 7.0, requires_grad=True)
    mask = group_mask(torch.tensor([1, 3, 2]))
    grid = to_grid(values, mask)
    assert grid.tolist() == [[1, 0, 0], [2, 3, 4], [5, 6, 0]]
    (grid * torch.arange(9.0).view(3, 3)).sum().backward()
    assert values.grad.tolist() == [0, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("family", ["tsarank", "twolar"])
def test_a_query_cut_in_training_is_told_once(make_ranker: Any, family: str, caplog: Any) -> None:
    ranker = make_ranker(family)
    ranker.set_options(max_query_length=2)
    collator = RankingCollator(ranker.encoder)
    groups = [{"row": 0, "query": "bread yeast oven flour", "documents": ["yeast", "ship"], "labels": [1.0, 0.0]}]
    for _ in range(2):
        collator(groups)
    assert [record.message for record in caplog.records if "max_query_length" in record.message] == [
        "a query was truncated on the right by "
        f"{ranker.encoder.pairs([(groups[0]['query'], 'yeast')])[0].query_cut} tokens (max_query_length)"
    ]

"""The stratified split: sizes, strata, determinism."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.trainers.data.list_making import stratified_split


def rows(sizes: dict[str, int]) -> list[tuple[str, str]]:
    return [(f"{stratum}-{number}", stratum) for stratum, size in sizes.items() for number in range(size)]


def split(items, **options):
    given = [{"query_id": name, "query_type": stratum, "first_stage": "bm25"} for name, stratum in items]
    return tuple([(row["query_id"], row["query_type"]) for row in part] for part in stratified_split(given, **options))


def test_the_papers_split():
    items = rows({f"{kind}-{stage}": 2500 for kind in ("cropped", "generated") for stage in range(4)})
    train, validation = split(items)
    assert (len(train), len(validation)) == (19_000, 1_000)
    assert set(Counter(stratum for _, stratum in validation).values()) == {125}


def test_small_strata_share_the_places_that_are_left_over():
    train, validation = split(rows(dict.fromkeys("abcdefgh", 50)))
    assert (len(train), len(validation)) == (380, 20)
    assert sorted(Counter(stratum for _, stratum in validation).values()) == [2, 2, 2, 2, 3, 3, 3, 3]


@settings(max_examples=100)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 60), min_size=1),
    st.floats(0, 0.9),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_a_split_is_a_partition_with_fair_shares_in_any_order(sizes, share, seed, shuffler):
    items = rows(sizes)
    train, validation = split(items, share=share, seed=seed)
    assert sorted(train + validation) == sorted(items)
    assert abs(len(validation) - share * len(items)) <= 0.5 + 1e-9
    counts = Counter(stratum for _, stratum in validation)
    assert all(abs(counts[stratum] - share * size) < 1 + 1e-9 for stratum, size in sizes.items())
    shuffled = items[:]
    shuffler.shuffle(shuffled)
    assert {*split(shuffled, share=share, seed=seed)[1]} == {*validation}
    assert train == [item for item in items if item in set(train)], "the order is kept"


def test_another_seed_is_another_choice():
    items = rows({"a": 200})
    assert split(items, seed=0)[1] != split(items, seed=1)[1]
    assert split(items, seed=1)[1] == split(items, seed=1)[1]


def test_no_validation_rows():
    assert split(rows({"a": 3}), share=0) == (rows({"a": 3}), [])

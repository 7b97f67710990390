"""What an answer says: the reading rules, and the counts of what was mended."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.trainers.data.teacher_answers import read_answer


@pytest.mark.parametrize(
    ("answer", "permutation", "repaired", "in_form"),
    [
        ("[2] > [4] > [1] > [3]", (1, 3, 0, 2), False, True),
        (" [2]>[4] > [1] >\n[3]. ", (1, 3, 0, 2), False, True),
        ("2, 4, 1, 3", (1, 3, 0, 2), False, False),
        ("[2] > [2] > [4] > [1] > [3]", (1, 3, 0, 2), True, True),
        ("[2] > [4]", (1, 3, 0, 2), True, True),
        ("[9] > [2] > [0] > [4] > [1] > [3]", (1, 3, 0, 2), True, True),
        ("The best is [4], then [2]; I am not sure of the rest.", (3, 1, 0, 2), True, False),
        ("[1] > [2] > [3] > [4]", (0, 1, 2, 3), False, True),
    ],
)
def test_usable_answers(answer, permutation, repaired, in_form):
    read = read_answer(answer, 4)
    assert (read.permutation, read.repaired, read.in_form) == (permutation, repaired, in_form)
    assert read.usable
    assert read.unchanged is (permutation == (0, 1, 2, 3))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I am sorry, but I cannot rank these passages.",
        "Die Absätze handeln alle von Brot; keiner ist besser als der andere.",
        "これらの文章はすべて関連しています。",
        "[3]",
        "[7] > [8] > [9] > [10]",
        "[2] > [2] > [2] > [2]",
        "9" * 10_000,
    ],
    ids=lambda answer: answer[:20],
)
def test_answers_that_name_fewer_than_half_are_failures(answer):
    read = read_answer(answer, 4)
    assert not read.usable
    assert read.permutation == ()
    assert not read.repaired
    assert not read.unchanged
    assert read.named < 2


def test_exactly_half_is_enough():
    assert read_answer("[5] > [6] > [4]", 6).permutation == (4, 5, 3, 0, 1, 2)
    assert not read_answer("[5] > [6]", 6).usable
    assert read_answer("[5] > [3] > [4]", 5).usable
    assert not read_answer("[5] > [3]", 5).usable


def test_counts_of_what_was_wrong():
    read = read_answer("[2] > [2] > [17] > [3] > [2] > [0]", 5)
    assert (read.named, read.repeated, read.out_of_range, read.missing) == (2, 2, 2, 3)


def test_digits_of_other_scripts_are_numbers():
    assert read_answer("[\u0662] > [\u0661]", 2).permutation == (1, 0)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.lists(st.integers(-3, 40)).map(repr), st.integers(2, 30))
def test_any_text_gives_a_whole_permutation_or_none(answer, count):
    read = read_answer(answer, count)
    assert read.named + read.missing == count
    if read.usable:
        assert sorted(read.permutation) == list(range(count))
        assert 2 * read.named >= count
    else:
        assert 2 * read.named < count

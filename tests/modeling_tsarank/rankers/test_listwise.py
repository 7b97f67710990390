"""The prompt, the windows, and the order that comes of a teacher's answers."""

from __future__ import annotations

import itertools
import json

import pytest
from chat_server import passages_of
from hypothesis import given
from hypothesis import strategies as st

from modeling_tsarank.rankers.chat import Completion
from modeling_tsarank.rankers.endpoint import RequestRefusedError, UnreachableError
from modeling_tsarank.rankers.listwise import ListwiseOptions, ListwiseRanker, window_bounds
from modeling_tsarank.rankers.listwise_prompt import listwise_messages, passage_text
from modeling_tsarank.ranking_errors import InputError


class Scripted:
    """A teacher whose answers are given, or worked out from the conversation."""

    name = "scripted"

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def complete(self, messages, attempt=0):
        self.asked.append((messages, attempt))
        return Completion(self.answer(messages, attempt, len(self.asked) - 1))


def by_value(messages, *_):
    values = [int(text.split()[-1]) for text in passages_of(messages)]
    return " > ".join(f"[{place + 1}]" for place in sorted(range(len(values)), key=lambda place: -values[place]))


def test_the_prompt_follows_the_listwise_protocol():
    messages = listwise_messages("how long", ["first text", "second [1] text"])
    assert len(messages) == 8
    roles = [message["role"] for message in messages]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant", "user"]
    assert passages_of(messages) == ["first text", "second (1) text"]
    assert "how long" in messages[1]["content"]
    assert "2 passages" in messages[1]["content"]
    assert "[2] > [1]" in messages[-1]["content"]
    assert "how long" in messages[-1]["content"]
    again = listwise_messages("how long", ["first text", "second [1] text"], attempt=1)
    assert again[:-1] == messages[:-1]
    assert again[-1]["content"].startswith(messages[-1]["content"])
    assert len(again[-1]["content"]) > len(messages[-1]["content"])


def test_the_prompt_in_one_message_holds_all_passages_and_asks_for_the_same_form():
    (message,) = listwise_messages("how long", ["first\ntext", "second [1] text", "third text"], 2, prompt="single")
    assert message["role"] == "user"
    lines = message["content"].split("\n")
    assert [line for line in lines if line.startswith("[")] == ["[1] first text", "[2] second (1)", "[3] third text"]
    assert lines[0].endswith("how long")
    assert "Search query: how long" in lines
    assert lines[-1].startswith("List all 3 numbers")
    (again,) = listwise_messages("how long", ["first\ntext", "second [1] text", "third text"], 2, 1, "single")
    assert again["content"].startswith(message["content"])
    assert "earlier answer" in again["content"]
    with pytest.raises(InputError, match="unknown prompt 'twice'; expected one of conversation, single"):
        listwise_messages("q", ["a", "b"], prompt="twice")


def test_a_teacher_is_asked_in_the_chosen_form():
    teacher = Scripted(lambda *_: "[2] > [1]")
    ordering = ListwiseRanker(teacher, ListwiseOptions(prompt="single")).order("q", ["a", "b"])
    assert ordering.permutation == [1, 0]
    assert [len(messages) for messages, _ in teacher.asked] == [1]
    assert ListwiseOptions(prompt="single").describe()["prompt"].startswith("single")


@pytest.mark.parametrize(("count", "outcome"), [(3, "clean"), (4, "failed")])
def test_counting_is_no_answer_where_it_is_refused(count, outcome):
    def counts(*_):
        return " > ".join(f"[{number}]" for number in range(1, count + 1))

    texts = ["text"] * count
    assert ListwiseRanker(Scripted(counts)).order("q", texts).outcome == "clean"
    teacher = Scripted(counts)
    ordering = ListwiseRanker(teacher, ListwiseOptions(refuse_given_order=True)).order("q", texts)
    assert ordering.outcome == outcome
    if outcome == "failed":
        assert len(ordering.answers) == 2
        assert "keeps the given order" in ordering.reason
        assert ordering.permutation is None
        for prompt, copied in (("conversation", "[2] > [1] > [3] > [4]"), ("single", "[3] > [1] > [2]")):
            copies = ListwiseOptions(prompt=prompt, refuse_given_order=True)
            assert copied[:9] in listwise_messages("q", texts, prompt=prompt)[-1]["content"]
            assert ListwiseRanker(Scripted(lambda *_, c=copied: c), copies).order("q", texts).outcome == "failed"

    def thinks_again(messages, attempt, _):
        return "[2] > [1] > [4] > [3]" if attempt else counts()

    ordering = ListwiseRanker(Scripted(thinks_again), ListwiseOptions(refuse_given_order=True)).order("q", ["a"] * 4)
    assert (ordering.outcome, ordering.permutation) == ("clean", [1, 0, 3, 2])


def test_passages_are_cut_to_words_and_one_line():
    assert passage_text("a  b\nc d", 3) == "a b c"
    assert len(passage_text("w " * 1000).split()) == 300
    with pytest.raises(InputError, match="at least two"):
        listwise_messages("q", ["only one"])
    with pytest.raises(InputError, match="words must be a whole number of at least 1"):
        listwise_messages("q", ["a", "b"], max_words=0)


def test_windows_run_from_the_back_and_always_reach_the_front():
    assert window_bounds(30, None) == [(0, 30)]
    assert window_bounds(20, 20) == [(0, 20)]
    assert window_bounds(100, 20, 10) == [(start, start + 20) for start in range(80, -1, -10)]
    assert window_bounds(10, 4) == [(6, 10), (4, 8), (2, 6), (0, 4)]
    assert window_bounds(10, 4, 3) == [(6, 10), (3, 7), (0, 4)]
    assert window_bounds(9, 4, 3) == [(5, 9), (2, 6), (0, 4)]


@given(st.integers(2, 60), st.integers(2, 25), st.data())
def test_windows_overlap_and_cover_everything(count, window, data):
    step = data.draw(st.integers(1, window - 1))
    bounds = window_bounds(count, window, step)
    assert {place for start, end in bounds for place in range(start, end)} == set(range(count))
    assert bounds[0][1] == count
    assert bounds[-1][0] == 0
    for (start, _), (_, next_end) in itertools.pairwise(bounds):
        assert next_end > start, "neighbours share a passage, which can rise further"


def test_a_list_in_one_prompt():
    teacher = Scripted(by_value)
    ordering = ListwiseRanker(teacher).order("q", ["is 3", "is 9", "is 5"])
    assert ordering.outcome == "clean"
    assert ordering.permutation == [1, 2, 0]
    assert ordering.raw_answer == "[2] > [3] > [1]"
    assert len(teacher.asked) == 1


def test_the_best_passage_rises_through_all_windows():
    values = [5, 3, 8, 1, 9, 2, 7, 4, 6, 10]
    teacher = Scripted(by_value)
    ordering = ListwiseRanker(teacher, ListwiseOptions(window=4, step=2)).order("q", [f"is {v}" for v in values])
    ordered = [values[place] for place in ordering.permutation]
    assert sorted(ordered) == sorted(values)
    assert ordered[:2] == [10, 9], "a step of two carries the best two to the front"
    assert len(teacher.asked) == 4
    assert [len(passages_of(messages)) for messages, _ in teacher.asked] == [4] * 4
    assert len(json.loads(ordering.raw_answer)) == 4


def test_repairs_are_marked():
    ordering = ListwiseRanker(Scripted(lambda *_: "[3] > [3] > [1]")).order("q", ["a", "b", "c"])
    assert (ordering.outcome, ordering.permutation) == ("repaired", [2, 0, 1])


def test_an_unusable_answer_is_asked_for_again():
    teacher = Scripted(lambda messages, attempt, _: by_value(messages) if attempt == 1 else "I would rather not.")
    ordering = ListwiseRanker(teacher, ListwiseOptions(attempts=3)).order("q", ["is 1", "is 2"])
    assert (ordering.outcome, ordering.permutation) == ("clean", [1, 0])
    assert [attempt for _, attempt in teacher.asked] == [0, 1]
    assert ordering.answers == ["I would rather not.", "[2] > [1]"]


def test_one_unusable_window_fails_the_whole_list():
    teacher = Scripted(lambda messages, attempt, number: "no" if number >= 2 else by_value(messages))
    options = ListwiseOptions(window=4, step=2, attempts=2)
    ordering = ListwiseRanker(teacher, options).order("q", [f"is {value}" for value in range(10)])
    assert ordering.outcome == "failed"
    assert ordering.permutation is None
    assert "passages 3 to 6; the last names 0 of 4" in ordering.reason
    assert len(ordering.answers) == 4, "nothing that was said is lost"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(RequestRefusedError("too long"), "refused"), (UnreachableError("gone"), "unanswered")],
)
def test_lists_that_are_not_answered(error, outcome):
    def answer(*_):
        raise error

    ordering = ListwiseRanker(Scripted(answer)).order("q", ["a", "b"])
    assert (ordering.outcome, ordering.permutation, ordering.reason) == (outcome, None, str(error))


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"step": 2},
        {"window": 4, "step": 4},
        {"window": 4, "step": 0},
        {"attempts": 0},
        {"passage_words": 0},
        {"prompt": "none"},
    ],
    ids=str,
)
def test_wrong_options(options):
    with pytest.raises(InputError):
        ListwiseOptions(**options)


def test_the_description_names_prompt_and_windows():
    assert ListwiseOptions(window=20).describe()["step"] == 10
    assert ListwiseOptions().describe()["step"] is None
    assert ListwiseOptions().describe()["prompt"].startswith("rankgpt")

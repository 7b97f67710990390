"""What an answer says: the reading rules, and the counts of what was mended."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_tsarank.rankers.listwise_answers import read_answer, without_reasoning
from modeling_tsarank.trainers.rows import to_row


@pytest.mark.parametrize(
    ("answer", "permutation", "repaired", "in_form"),
    [
        ("[2] > [4] > [1] > [3]", (1, 3, 0, 2), False, True),
        (" [2]>[4] > [1] >\n[3]. ", (1, 3, 0, 2), False, True),
        ("[2] > [2] > [4] > [1] > [3]", (1, 3, 0, 2), True, True),
        ("[2] > [4]", (1, 3, 0, 2), True, True),
        ("[9] > [2] > [0] > [4] > [1] > [3]", (1, 3, 0, 2), True, True),
        ("The best is [4] > [2]; I am not sure of the rest.", (3, 1, 0, 2), True, False),
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
        f"[{'9' * 10_000}] > [1]",
        "2, 4, 1, 3",
        "[2], [4], [1], [3]",
        "2 > 4 > 1 > 3",
        "1. [2]\n2. [4]\n3. [1]\n4. [3]",
        '{"ranking": [2, 4, 1, 3]}',
        "[2] > … > [3]",
        "[2] ... [3]",
        "[1-4]",
        "The best is [4], then [2]; I am not sure of the rest.",
        "<think>[2] > [4] > [1] > [3]",
        "<think>[2] > [4] > [1] > [3]</think>",
        "[2] > [4] > [1] > [3] <think>or rather",
        "[2] > [4] > [1] > [3] </think>",
        "<THINKING>[2] > [4] > [1] > [3]",
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
    assert read_answer("[2]", 2).permutation == (1, 0)
    assert not read_answer("[1] is about bread, [2] is not.", 2).usable


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


RUN = "[2] > [4] > [1] > [3]"


@pytest.mark.parametrize(
    "answer",
    [
        f"Here are the 4 passages ranked: {RUN}",
        f"{RUN}\n\n[3] is about ships in 1912, 4 of them; passage 1 is short.",
        f"<think>3 beats 1, so [3] > [1] > [2] > [4]?</think>\n{RUN}",
        f"so perhaps [3] > [1] > [2] > [4].</think>{RUN}",
        f"<think>a<think>[3] > [1] > [2] > [4]</think>b</think>{RUN}",
        f"<think>{'[3] > [1] > [2] > [4] ' * 3}</think>{RUN}<think>[1] > [2] > [3] > [4]</think>",
        f"First I thought [1] > [2] > [3] > [4], but no: {RUN}",
        f"{RUN}, though [3] > [17] > [18] > [19] was near",
        f"```\n{RUN}\n```",
        f'```json\n{{"ranking": "{RUN}", "passages": 4}}\n```',
        "**[2]** > **[4]** > **[1]** > **[3]**",
        "**[2] > [4] > [1] > [3]**",
        "`[2]` > `[4]` > `[1]` > `[3]`",
        "\\[2\\] > \\[4\\] > \\[1\\] > \\[3\\]",
        "[2] >\n[4] >\n[1] >\n[3]",
        "[2]\n> [4]\n> [1]\r\n> [3]",
        "\u3010\uff12\u3011 \uff1e \u3010\uff14\u3011 \uff1e \u3010\uff11\u3011 \uff1e \u3010\uff13\u3011",
        "\uff3b2\uff3d\uff1e\uff3b4\uff3d\uff1e\uff3b1\uff3d\uff1e\uff3b3\uff3d",
        "[2]\u200b > [4]\u00a0>\u2009[1] > [3]",
        "[2] &gt; [4] &gt; [1] &gt; [3]",
        "<answer>[2] > [4] > [1] > [3]</answer>",
        "The best 2 of 4: [1-4] ranked as [2] > [4] > [1] > [3] (100 %).",
    ],
    ids=lambda answer: answer[:30].encode("ascii", "replace").decode(),
)
def test_prose_reasoning_and_decoration_never_move_a_passage(answer):
    read = read_answer(answer, 4)
    assert read.permutation == (1, 3, 0, 2)
    assert not read.repaired
    assert (read.named, read.repeated, read.out_of_range, read.missing) == (4, 0, 0, 0)


def test_what_an_ellipsis_or_a_range_leaves_out_is_repaired_or_fails():
    assert read_answer("[4] > [3] > ... > [2]", 4).permutation == (3, 2, 0, 1)
    assert read_answer("[4] > [3] > [1-2]", 4).permutation == (3, 2, 0, 1)
    assert read_answer("[1] > [2] > … > [20]", 20).named == 2
    assert not read_answer("[1] > [2] > … > [20]", 20).usable


PROSE = st.text(
    st.characters(exclude_characters="[]<>\u3010\u3011\uff3b\uff3d\uff1c\uff1e", exclude_categories=["Cs"]),
    max_size=40,
).filter(lambda text: "&gt;" not in text)
SEPARATORS = st.sampled_from([" > ", ">", " >\n", "\n> ", " \uff1e ", " &gt; "])
ITEMS = st.sampled_from(["[{}]", "**[{}]**", "`[{}]`", "[ {} ]", "\u3010{}\u3011", "\uff3b{}\uff3d", "**[{}**]"])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_full_run_is_read_through_any_prose_around_it(data):
    count = data.draw(st.integers(2, 30))
    order = data.draw(st.permutations(range(count)))
    item, separator = data.draw(ITEMS), data.draw(SEPARATORS)
    run = separator.join(item.format(index + 1) for index in order)
    other = " > ".join(f"[{index + 1}]" for index in data.draw(st.permutations(range(count))))
    before = data.draw(
        st.sampled_from(["", other, f"<think>{other}</think>", f"{other}</think>", "<think>1 2</think>"])
    )
    after = data.draw(
        st.sampled_from(["", "<think>" + other + "</think>", f"[{order[0] + 1}] is the best of {count}."])
    )
    # The colon: prose that is an operator, such as "|", would make the run the rest of a broken one.
    answer = f"{before}{data.draw(PROSE)}:\n{run}\n{data.draw(PROSE)} {after}"
    read = read_answer(answer, count)
    assert (list(read.permutation), read.repaired) == (list(order), False)


@settings(max_examples=200, deadline=None)
@given(PROSE, st.lists(st.integers(0, 40), max_size=30), st.integers(2, 12))
def test_numbers_outside_a_run_are_no_answer(prose, numbers, count):
    assert not read_answer(prose + " and ".join(map(str, numbers)), count).usable
    assert not read_answer(f"<think>{prose} " + " > ".join(f"[{number}]" for number in numbers), count).usable


def test_long_answers_are_read_in_linear_time():
    for piece in ("<think>", "</think>", "[1] > ", "[1]", "[ ", "[1 ", "&gt;", "*_", "<think>[1] > [2]</think>"):
        read_answer(piece * 100_000, 4)
    read_answer("[1]" + " " * 1_000_000, 4)
    read_answer(" " * 1_000_000, 4)


def test_stored_answers_keep_their_order():
    documents = [{"docid": str(n), "text": "x"} for n in range(4)]
    stored = {"query": "q", "documents": documents, "permutation": "Here are the 4 passages: [2] > [1] > [3]"}
    assert to_row(stored)["permutation"] == [3, 1, 0, 2]
    row = {"query": "q", "documents": documents, "permutation": [1, 0, 2, 3], "answer": "the 4: [4] > [3]"}
    assert to_row(row)["permutation"] == [1, 0, 2, 3]
    long = {"query": "q", "documents": documents, "permutation": f"[2] > [1] > [3] > [4] > {'9' * 5000}"}
    assert to_row(long)["permutation"] == [1, 0, 2, 3]


@pytest.mark.parametrize(
    "answer",
    [
        "[2] = [1] > [3] > [4]",
        "[id 2] > [1] > [3] > [4]",
        "[Passage 2] > [Passage 1] > [3] > [4]",
        "[2.] > [1] > [3] > [4]",
        "[2] > … > [3] > [4]",
        "[2, 1] > [3] > [4]",
    ],
)
def test_the_rest_of_a_broken_run_is_no_ranking(answer):
    assert not read_answer(answer, 4).usable


def test_what_stands_before_the_break_of_a_run_is_kept():
    assert read_answer("[2] > [4] >= [1] > [3]", 4).permutation == (1, 3, 0, 2)
    assert read_answer("Ranking [4]: [2] > [4] > [1] > [3]", 4).permutation == (1, 3, 0, 2)


@pytest.mark.parametrize(
    "opened",
    [
        "<think\n>",
        "< think>",
        "<THINK >",
        "<think id='1'>",
        "<seed:think>",
        "[THINK]",
        "\u25c1think\u25b7",
        "<analysis>",
    ],
)
def test_unclosed_reasoning_is_no_answer_however_its_tag_is_written(opened):
    assert not read_answer(f"{opened}[3] > [1] > [2] > [4]", 4).usable
    closed = f"{opened}[3] > [1] > [2] > [4]{opened[0]}/{opened[1:]}"
    assert not read_answer(closed, 4).usable
    assert read_answer(closed + RUN, 4).permutation == (1, 3, 0, 2)


ANALYSIS = "We need to rank: [3] > [1] > [2] > [4] perhaps."


@pytest.mark.parametrize(
    "unclosed",
    [
        f"<|channel|>analysis<|message|>{ANALYSIS}",
        f"<|channel|>commentary<|message|>{ANALYSIS}",
        f"<|start|>assistant<|channel|>analysis<|message|>{ANALYSIS}<|end|>",
        f"<|channel|>analysis<|message|>{ANALYSIS}<|end|><|start|>assistant<|channel|>analysis<|message|>{ANALYSIS}",
        f"analysis{ANALYSIS}",
        f"<|START_THINKING|>{ANALYSIS}",
    ],
)
def test_an_unclosed_channel_is_no_answer(unclosed):
    assert not read_answer(unclosed, 4).usable
    assert without_reasoning(unclosed) == ""


@pytest.mark.parametrize(
    "answer",
    [
        f"<|channel|>analysis<|message|>{ANALYSIS}<|end|><|start|>assistant<|channel|>final<|message|>{RUN}<|return|>",
        f"<|channel|>final<|message|>{RUN}",
        f"analysis{ANALYSIS}assistantfinal{RUN}",
        f"<|START_THINKING|>{ANALYSIS}<|END_THINKING|>{RUN}",
        f"Analysis: passage 2 comes first. {RUN}",
        f"analysis of the passages: {RUN}",
    ],
)
def test_the_final_channel_is_the_answer(answer):
    assert read_answer(answer, 4).permutation == (1, 3, 0, 2)

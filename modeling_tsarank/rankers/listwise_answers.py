"""From a model's answer to an order: the reading rules in one place, and what had to be repaired, counted.

An answer is read from its last run `[2] > [1] > [3]` that names at least half of the passages. In it, repeated and
out-of-range numbers are dropped and missing passages appended in the first stage's order. Everything else in an answer
is prose, whose numbers count for nothing: bare numbers, numbers joined by commas or written one a line without `>`,
ranges (`[1-4]`), what an ellipsis leaves out, and the rest of a run that something else has broken
(`[2] = [1] > [3]`), for its first number is not the best. So is the model's reasoning, `<think>…</think>`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


_ITEM = r"[\[【]\s*\d+\s*[\]】]"
_NEXT = rf"(?:\s*(?:>|&gt;)\s*{_ITEM})"
_RUN = re.compile(rf"{_ITEM}{_NEXT}+")
_WHOLE = re.compile(rf"\s*{_ITEM}{_NEXT}*\s*\.?\s*")
_NUMBER = re.compile(r"\d+")
# What stands before a run that goes on where a broken one ended: `[2] = [1] > [3]`, `[id 2] > [1] > [3]`, `… > [3]`.
_BEFORE = re.compile(
    r"(?:[\[【][^\[\]【】\n]{0,40}\d[^\[\]【】\n]{0,40}[\]】]|\.\.)\s*(?:[>=<≥≤≻≈~,;/&|]|&gt;){1,4}\s*\Z"
)
# Tags that models put around their reasoning; what closes one has a group. gpt-oss names a channel instead, of which
# only `final` is an answer; where special tokens were left out of the text, the bare names are left.
_REASONING = re.compile(
    r"<\|channel\|>\s*(final)\b(?:\s*<\|message\|>)?|<\|channel\|>\s*\w*|<\|START_THINKING\|>|<\|(END)_THINKING\|>"
    r"|\A\s*(?:analysis|commentary)(?=[a-z\[])|assistant(final)(?=\S)"
    r"|<\s*(/?)\s*(?:seed:)?(?:think|thinking|thought|reasoning|reflection|analysis|scratchpad)\b[^<>]{0,40}>"
    r"|\[(?=/?THINK\])(/?)\w+\]|◁(?=/?think▷)(/?)\w+▷",
    re.IGNORECASE,
)
# Markdown's emphasis and code, escapes, and characters without width, which change nothing in what a run says.
_DECORATION = re.compile(r"[*_`~\\\u200b-\u200d\u2060\ufeff]+")


@dataclass(frozen=True)
class ReadAnswer:
    """What an answer says.

    Attributes:
        permutation: Indexes from 0, best first, each of the n exactly once; empty for a failure.
        repaired: Whether anything was dropped or appended. False for a failure.
        in_form: Whether the whole answer is of the form `[2] > [1] > [3]`; one with prose around it may be usable too.
        named: How many of the n passages the run names: the one that was read, for a failure the longest.
        repeated: Numbers that the run names again.
        out_of_range: Numbers of the run that are no passage's.
        missing: Passages that the run does not name.
    """

    permutation: tuple[int, ...]
    repaired: bool
    in_form: bool
    named: int
    repeated: int
    out_of_range: int
    missing: int

    @property
    def usable(self) -> bool:
        """Whether a run names at least half of the passages."""
        return bool(self.permutation)

    @property
    def unchanged(self) -> bool:
        """Whether the answer keeps the given order, which a model that only counts does."""
        return self.usable and self.permutation == tuple(range(len(self.permutation)))


def read_answer(answer: str, count: int) -> ReadAnswer:
    """Reads an answer about `count` passages; never raises.

    A single `[1]` is a run only where it is the whole answer. A wrong reading is worse than none: a failed answer is
    asked for again.
    """
    text = _DECORATION.sub("", unicodedata.normalize("NFKC", without_reasoning(answer)))
    found = [run for run in _RUN.finditer(text) if not _BEFORE.search(text[max(run.start() - 100, 0) : run.start()])]
    runs = [text] if _WHOLE.fullmatch(text) else [run.group() for run in found]
    # From 0. More than nine digits are no passage's number, and Python refuses to convert thousands of them.
    read = [[int(one) - 1 if len(one) <= 9 else -1 for one in _NUMBER.findall(run)] for run in runs]
    usable = [numbers for numbers in read if complete_order(numbers, count)]
    numbers = usable[-1] if usable else max(read, key=lambda one: _named(one, count), default=[])
    permutation = complete_order(numbers, count)
    named = _named(numbers, count)
    inside = sum(0 <= number < count for number in numbers)
    return ReadAnswer(
        permutation=tuple(permutation),
        repaired=bool(permutation) and permutation != numbers,
        in_form=_WHOLE.fullmatch(answer) is not None,
        named=named,
        repeated=inside - named,
        out_of_range=len(numbers) - inside,
        missing=count - named,
    )


def complete_order(numbers: Sequence[int], count: int) -> list[int]:
    """An order of `count` passages out of numbers from 0, best first, as RankGPT's code does.

    Repeated and out-of-range numbers are dropped and missing passages appended in the given order. Unlike there, fewer
    than half of the passages are a failure and give an empty list.
    """
    named = list(dict.fromkeys(number for number in numbers if 0 <= number < count))
    if 2 * len(named) < count:
        return []
    known = set(named)
    return named + [place for place in range(count) if place not in known]


def without_reasoning(answer: str) -> str:
    """The answer without `<think>…</think>`; empty where a `<think>` is never closed.

    A closing tag alone ends reasoning as well: some chat templates put the opening one into the prompt.
    """
    spoken: list[str] = []
    start, reasons = 0, False
    for tag in _REASONING.finditer(answer):
        if not any(tag.groups()):
            if not reasons:
                spoken.append(answer[start : tag.start()])
            reasons = True
        else:
            if not reasons:
                spoken.clear()
            reasons = False
        start = tag.end()
    return "" if reasons else "".join([*spoken, answer[start:]])


def begun_reasoning(prompt: str) -> str:
    """The opening tag that a prompt ends with, as some chat templates have it; else an empty text."""
    tag = next(reversed(list(_REASONING.finditer(prompt[-100:]))), None)
    return tag.group() if tag and not any(tag.groups()) and not prompt[-100:][tag.end() :].strip() else ""


def _named(numbers: Sequence[int], count: int) -> int:
    return len({number for number in numbers if 0 <= number < count})

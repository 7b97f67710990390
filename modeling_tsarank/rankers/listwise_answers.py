"""From a model's answer to an order: all parsing rules, and counts of the repairs.

The parser uses the answer's last run `[2] > [1] > [3]` that names at least half of the passages. Repeated and
out-of-range numbers in it are dropped and missing passages appended in the first stage's order. Everything else in an
answer is prose, whose numbers are ignored: bare numbers, numbers joined by commas or listed one per line without `>`,
ranges (`[1-4]`), numbers that an ellipsis omits, and the rest of a run after other symbols (`[2] = [1] > [3]`),
because its first number is not the best. So is the model's reasoning, `<think>…</think>`.
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
# What precedes a run that continues a broken one: `[2] = [1] > [3]`, `[id 2] > [1] > [3]`, `… > [3]`.
_BEFORE = re.compile(
    r"(?:[\[【][^\[\]【】\n]{0,40}\d[^\[\]【】\n]{0,40}[\]】]|\.\.)\s*(?:[>=<≥≤≻≈~,;/&|]|&gt;){1,4}\s*\Z"
)
# Tags that models put around their reasoning; closing tags have a group. gpt-oss names a channel instead, of which
# only `final` is an answer; if special tokens were removed from the text, the bare names remain.
_REASONING = re.compile(
    r"<\|channel\|>\s*(final)\b(?:\s*<\|message\|>)?|<\|channel\|>\s*\w*|<\|START_THINKING\|>|<\|(END)_THINKING\|>"
    r"|\A\s*(?:analysis|commentary)(?=[a-z\[])|assistant(final)(?=\S)"
    r"|<\s*(/?)\s*(?:seed:)?(?:think|thinking|thought|reasoning|reflection|analysis|scratchpad)\b[^<>]{0,40}>"
    r"|\[(?=/?THINK\])(/?)\w+\]|◁(?=/?think▷)(/?)\w+▷",
    re.IGNORECASE,
)
# Markdown's emphasis and code, escapes, and zero-width characters, which do not change the meaning of a run.
_DECORATION = re.compile(r"[*_`~\\\u200b-\u200d\u2060\ufeff]+")


@dataclass(frozen=True)
class ReadAnswer:
    """A parsed answer.

    Attributes:
        permutation: Indexes from 0, best first, each of the n exactly once; empty for a failure.
        repaired: Whether anything was dropped or appended. False for a failure.
        in_form: Whether the whole answer has the form `[2] > [1] > [3]`; one with prose around it may be usable too.
        named: How many of the n passages the parsed run names; for a failure, the longest run.
        repeated: Numbers that the run names again.
        out_of_range: Numbers of the run without a passage.
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
        """Whether the answer is the given order, as from a model that only counts."""
        return self.usable and self.permutation == tuple(range(len(self.permutation)))


def read_answer(answer: str, count: int) -> ReadAnswer:
    """Parses an answer about `count` passages; never raises.

    A single `[1]` is a run only if it is the whole answer. A wrong parse is worse than none: failed answers are
    requested again.
    """
    text = _DECORATION.sub("", unicodedata.normalize("NFKC", without_reasoning(answer)))
    found = [run for run in _RUN.finditer(text) if not _BEFORE.search(text[max(run.start() - 100, 0) : run.start()])]
    runs = [text] if _WHOLE.fullmatch(text) else [run.group() for run in found]
    # From 0. Passage numbers have at most nine digits, and Python refuses to convert thousands of them.
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
    """An order of `count` passages from numbers counted from 0, best first, as in RankGPT's code.

    Repeated and out-of-range numbers are dropped and missing passages appended in the given order. Unlike RankGPT,
    less than half of the passages is a failure and returns an empty list.
    """
    named = list(dict.fromkeys(number for number in numbers if 0 <= number < count))
    if 2 * len(named) < count:
        return []
    known = set(named)
    return named + [place for place in range(count) if place not in known]


def without_reasoning(answer: str) -> str:
    """The answer without `<think>…</think>`; empty if a `<think>` is never closed.

    A closing tag alone ends reasoning as well: some chat templates have the opening one in the prompt.
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
    """The opening tag at the end of a prompt, from some chat templates; else an empty string."""
    tag = next(reversed(list(_REASONING.finditer(prompt[-100:]))), None)
    return tag.group() if tag and not any(tag.groups()) and not prompt[-100:][tag.end() :].strip() else ""


def _named(numbers: Sequence[int], count: int) -> int:
    return len({number for number in numbers if 0 <= number < count})

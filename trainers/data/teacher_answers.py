"""From a teacher's answer to an order: the reading rules in one place, and what had to be mended, counted.

The reading itself is `trainers.training_data.parse_permutation`: integers in order, repeated and out-of-range ones
dropped, missing ones appended in the first stage's order; an answer that names fewer than half is a failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modeling_tsarank.trainers.training_layouts import parse_permutation


_NUMBER = re.compile(r"\d+")
_PROTOCOL = re.compile(r"\s*\[\s*\d+\s*\](?:\s*>\s*\[\s*\d+\s*\])*\s*\.?\s*")


@dataclass(frozen=True)
class ReadAnswer:
    """What an answer says.

    Attributes:
        permutation: Indexes from 0, best first, each of the n exactly once; empty for a failure.
        repaired: Whether anything was dropped or appended. False for a failure.
        in_form: Whether the whole answer is of the form `[2] > [1] > [3]`; an answer in prose may still be usable.
        named: How many of the n passages it names.
        repeated: Numbers that were named again.
        out_of_range: Numbers that are no passage's.
        missing: Passages that it does not name.
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
        """Whether at least half of the passages are named."""
        return bool(self.permutation)

    @property
    def unchanged(self) -> bool:
        """Whether the answer keeps the given order, which a teacher that only counts does."""
        return self.usable and self.permutation == tuple(range(len(self.permutation)))


def read_answer(answer: str, count: int) -> ReadAnswer:
    """Reads an answer about `count` passages; never raises."""
    # Digits beyond a passage's number are no number of a passage; Python also refuses to convert thousands of them.
    limited = _NUMBER.sub(lambda found: found.group() if len(found.group()) <= 9 else "0", answer)
    permutation, repaired = parse_permutation(limited, count)
    numbers = [int(digits) for digits in _NUMBER.findall(limited)]
    inside = [number for number in numbers if 1 <= number <= count]
    named = len(set(inside))
    return ReadAnswer(
        permutation=tuple(permutation),
        repaired=bool(permutation) and repaired,
        in_form=_PROTOCOL.fullmatch(answer) is not None,
        named=named,
        repeated=len(inside) - named,
        out_of_range=len(numbers) - len(inside),
        missing=count - named,
    )

"""Putting a list in order by asking a chat model: in one prompt, or with sliding windows from the back to the front.

Reference: Sun et al., Is ChatGPT Good at Search?, EMNLP 2023, section 3.2.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ranking_errors import InputError
from ..ranking_options import check_choice, settle_whole_numbers
from .endpoint import RequestRefusedError, UnreachableError
from .listwise_answers import ReadAnswer, read_answer
from .listwise_prompt import DEFAULT_PASSAGE_WORDS, EXAMPLES, PROMPTS, listwise_messages
from .protocols import PromptRanker, ordered_rows


OUTCOMES = ("clean", "repaired", "failed", "refused", "unanswered")
"""What can become of a list: ordered by a faultless answer, by a repaired one, left without a usable answer after all
attempts, not taken by the model, or not answered at all (which a later run asks again)."""


LEAST_TO_COUNT = 4
"""Of so many passages on, an answer in the given order is taken for counting where that is to be refused: of fewer,
a model that reads them agrees with the first stage too often."""


@dataclass(frozen=True)
class WindowOptions:
    """How a window moves over a list; see `ListwiseOptions` and `FirstOptions`."""

    window: int | None = None
    step: int | None = None
    passage_words: int = DEFAULT_PASSAGE_WORDS

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "window", least=2)
        settle_whole_numbers(self, "step", "passage_words")
        if self.step is not None and (self.window is None or not self.step < self.window):
            raise InputError(f"the step must be at least 1 and less than the window ({self.window}), got {self.step}")


@dataclass(frozen=True)
class ListwiseOptions(WindowOptions):
    """How lists are asked about.

    Attributes:
        window: Passages in one prompt; None for the whole list.
        step: How far the window moves towards the front (RankGPT: half a window).
        passage_words: Words of a passage that are shown.
        attempts: How often one prompt is asked before its answers count as a failure.
        prompt: One of `listwise_prompt.PROMPTS`.
        refuse_given_order: Whether an answer that keeps the given order of at least `LEAST_TO_COUNT` passages is
            unusable, also behind a copy of the prompt's example: it teaches nothing but the first stage's order, and a
            weak model gives it by counting.

    Raises:
        InputError: a value out of range.
    """

    attempts: int = 2
    prompt: str = "conversation"
    refuse_given_order: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        settle_whole_numbers(self, "attempts")
        check_choice("prompt", self.prompt, tuple(PROMPTS))

    def describe(self) -> dict[str, Any]:
        """For a card."""
        return {
            "prompt": PROMPTS[self.prompt],
            "window": self.window,
            "step": self.window and (self.step or max(self.window // 2, 1)),
            "max_words": self.passage_words,
            "attempts": self.attempts,
            "refuse_given_order": self.refuse_given_order,
        }

    def accepts(self, reading: ReadAnswer) -> bool:
        """Whether an answer, as it was read, orders its passages."""
        if not self.refuse_given_order or len(reading.permutation) < LEAST_TO_COUNT:
            return reading.usable
        example = [number - 1 for number in EXAMPLES[self.prompt]]
        copied = (*example, *range(len(example), len(reading.permutation)))
        return not reading.unchanged and reading.permutation != copied


@dataclass
class Ordering:
    """What a model made of one list.

    Attributes:
        outcome: One of `OUTCOMES`.
        permutation: Indexes from 0, best first; None unless the outcome is `clean` or `repaired`.
        answers: Every raw answer in the order of asking, the unusable ones included.
        reason: Why there is no permutation.
        reading: How the answers were read, the used ones.
        scores: One score a document, of a model that gives scores.
        tokens: Tokens read and written, where the model tells.
        unusable: Windows without a usable answer.
    """

    outcome: str
    permutation: list[int] | None = None
    answers: list[str] = field(default_factory=list)
    reason: str | None = None
    reading: list[ReadAnswer] = field(default_factory=list)
    scores: list[float] | None = None
    tokens: int = 0
    unusable: int = 0

    @property
    def raw_answer(self) -> str:
        """The answer as it came; several (windows, attempts) as a JSON array."""
        return self.answers[0] if len(self.answers) == 1 else json.dumps(self.answers, ensure_ascii=False)


def window_bounds(count: int, window: int | None, step: int | None = None) -> list[tuple[int, int]]:
    """The windows (start, end) over `count` passages in the order of asking, from the back to the front.

    The last one always begins at 0, so every passage is asked about, also where the steps do not divide the list.
    """
    if window is None or window >= count:
        return [(0, count)]
    step = step or max(window // 2, 1)
    bounds = []
    start = count - window
    while start > 0:
        bounds.append((start, start + window))
        start -= step
    return [*bounds, (0, window)]


class ListwiseRanker(PromptRanker):
    """Orders lists with a chat model (RankGPT); an unusable answer leaves a window as it was.

    Args:
        model: A `ChatModel`.
        options: `ListwiseOptions`.
    """

    options_class = ListwiseOptions

    def _rows(self, query: str, documents: Sequence[str], tally: Counter[str]) -> list[dict[str, Any]]:
        ordering = self.order(query, documents, fall_back=True)
        tally.update(calls=len(ordering.answers), tokens=ordering.tokens, unusable=ordering.unusable)
        if ordering.outcome == "unanswered":
            raise UnreachableError(str(ordering.reason))
        return ordered_rows(ordering.permutation or range(len(documents)))

    def order(self, query: str, documents: Sequence[str], fall_back: bool = False) -> Ordering:
        """The order of n documents, given in the first stage's order.

        Args:
            query: The query.
            documents: The texts.
            fall_back: Whether a window without a usable answer stays as it was. Otherwise it makes the whole list a
                failure: half of it would be in the model's order and half in the first stage's.

        Raises:
            TSARankError: the model cannot be asked anything at all; see `ChatModel.complete`.
        """
        result = Ordering("clean")
        order = list(range(len(documents)))
        windows = window_bounds(len(documents), self.options.window, self.options.step) if len(order) > 1 else []
        for start, end in windows:
            shown = order[start:end]
            try:
                reading = self._ask(query, [documents[index] for index in shown], result)
            except RequestRefusedError as error:
                result.outcome, result.reason = "refused", str(error)
            except UnreachableError as error:
                result.outcome, result.reason = "unanswered", str(error)
                return result
            else:
                if self.options.accepts(reading):
                    result.reading.append(reading)
                    order[start:end] = [shown[place] for place in reading.permutation]
                    continue
                fault = (
                    "keeps the given order or the example"
                    if reading.usable
                    else f"names {reading.named} of {end - start} in the form [2] > [1]"
                )
                result.outcome = "failed"
                result.reason = (
                    f"{self.options.attempts} answers about passages {start + 1} to {end}; the last {fault}"
                )
            result.unusable += 1
            if not fall_back:
                return result
        result.permutation = order
        if not result.unusable:
            result.outcome = "repaired" if any(reading.repaired for reading in result.reading) else "clean"
        return result

    def _ask(self, query: str, documents: Sequence[str], result: Ordering) -> ReadAnswer:
        """The first usable reading, else the last attempt's."""
        for attempt in range(self.options.attempts):
            messages = listwise_messages(query, documents, self.options.passage_words, attempt, self.options.prompt)
            answer = self.model.complete(messages, attempt)
            result.answers.append(answer.text)
            result.tokens += (answer.prompt_tokens or 0) + (answer.completion_tokens or 0)
            reading = read_answer(answer.text, len(documents))
            if self.options.accepts(reading):
                break
        return reading

"""Listwise ranking with a chat model: in one prompt, or with sliding windows from the end of the list to its top.

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
"""Outcomes of a list: ordered by a valid answer, by a repaired one, no usable answer after all attempts, rejected by
the model, or not answered at all (a later run tries again)."""


LEAST_TO_COUNT = 4
"""From this number of passages on, an answer in the given order counts as mere counting, if that is to be refused:
with fewer, a model that does compare them agrees with the first stage too often."""


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
            raise InputError(f"step must be at least 1 and less than the window ({self.window}), got {self.step}")


@dataclass(frozen=True)
class ListwiseOptions(WindowOptions):
    """Settings of the ranking of a list.

    Attributes:
        window: Passages in one prompt; None for the whole list.
        step: How far the window moves towards the top (RankGPT: half a window).
        passage_words: Maximum words of a passage in the prompt.
        attempts: Maximum attempts for one prompt before it counts as a failure.
        prompt: One of `listwise_prompt.PROMPTS`.
        refuse_given_order: Whether an answer in the given order of at least `LEAST_TO_COUNT` passages is unusable,
            also after a copy of the prompt's example: it teaches nothing but the first stage's order, and weak
            models give it by counting.

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
        """Whether a parsed answer orders its passages."""
        if not self.refuse_given_order or len(reading.permutation) < LEAST_TO_COUNT:
            return reading.usable
        example = [number - 1 for number in EXAMPLES[self.prompt]]
        copied = (*example, *range(len(example), len(reading.permutation)))
        return not reading.unchanged and reading.permutation != copied


@dataclass
class Ordering:
    """The result of a model for one list.

    Attributes:
        outcome: One of `OUTCOMES`.
        permutation: Indexes from 0, best first; None unless the outcome is `clean` or `repaired`.
        answers: All raw answers in order, including unusable ones.
        reason: Why there is no permutation.
        reading: How the used answers were parsed.
        scores: One score per document, for models with scores.
        tokens: Prompt and generated tokens, if the model reports them.
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
        """The raw answer; several (windows, attempts) as a JSON array."""
        return self.answers[0] if len(self.answers) == 1 else json.dumps(self.answers, ensure_ascii=False)


def window_bounds(count: int, window: int | None, step: int | None = None) -> list[tuple[int, int]]:
    """The windows (start, end) over `count` passages in processing order, from the end to the top.

    The last one always begins at 0, so every passage is covered, also if the steps do not divide the list evenly.
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
    """Orders lists with a chat model (RankGPT); an unusable answer leaves a window unchanged.

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
            fall_back: Whether a window without a usable answer stays unchanged. Otherwise it makes the whole list a
                failure: half of it would be in the model's order and half in the first stage's.

        Raises:
            TSARankError: no request can succeed; see `ChatModel.complete`.
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

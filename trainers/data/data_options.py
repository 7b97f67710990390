"""How data are made: choices that are options of commands, and of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import settle_whole_numbers
from modeling_tsarank.trainers.options import check_choices


@dataclass(frozen=True)
class MiningOptions:
    """Which negatives are taken.

    Attributes:
        depth: Documents of the first stage that are looked at.
        count: m, negatives of a query.
        rank_min: Ranks skipped at the top, counted after the positives are taken out.
        absolute_margin: A candidate is dropped if its score is above the positive's minus this.
        relative_margin: The same with this share of the positive's score, by its magnitude. Of several positives the
            lowest score counts (the safe side, as in sentence-transformers).
        sampling: `random` from the window, or the `top` of it.
        seed: Of the sampling.

    Raises:
        InputError: a value out of range.
    """

    depth: int = 1000
    count: int = 48
    rank_min: int = 0
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: Literal["random", "top"] = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.rank_min <= self.depth - self.count:
            raise InputError(f"{self.count} negatives do not fit in the ranks {self.rank_min} to {self.depth}")
        check_choices(self)
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name} must be 0 or more, got {value}")

    @property
    def has_margin(self) -> bool:
        """Whether scores of positives matter."""
        return self.absolute_margin is not None or self.relative_margin is not None

    def threshold(self, positives: Sequence[float]) -> float:
        """The highest score a negative may have beside positives with these.

        `positive - |positive| * relative`, as sentence-transformers has it, is a margin for negative scores as well:
        log-probabilities are never above 0.
        """
        positive = min(positives)
        limits = [positive]
        if self.absolute_margin is not None:
            limits.append(positive - self.absolute_margin)
        if self.relative_margin is not None:
            limits.append(positive - abs(positive) * self.relative_margin)
        return min(limits)


@dataclass(frozen=True)
class SamplingOptions:
    """How queries are sampled.

    Attributes:
        top_k: Most likely tokens to sample from (docT5query: 10); 0 for all.
        temperature: Of sampling; 0 takes the most likely token.
        max_new_tokens: Longest query in tokens; one that is not finished by then is not taken.
        per_passage: Queries of one passage.
        max_passage_tokens: Prompt and passage together; a longer passage is cut.
        batch_size: Passages at a time.
        seed: Of passages and sampling.

    Raises:
        InputError: a value out of range.
    """

    top_k: int = 10
    temperature: float = 1.0
    max_new_tokens: int = 32
    per_passage: int = 1
    max_passage_tokens: int = 384
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "max_new_tokens", "per_passage", "batch_size", "max_passage_tokens")
        settle_whole_numbers(self, "top_k", "seed", least=0)
        if max(self.per_passage, self.max_new_tokens, self.max_passage_tokens) > 65_536:
            raise InputError("per_passage, max_new_tokens and max_passage_tokens are at most 65,536")
        if not self.temperature >= 0:
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.temperature == 0 and self.per_passage > 1:
            raise InputError("several queries of a passage need sampling: give a temperature above 0")

    def for_generate(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "max_new_tokens": self.max_new_tokens}
        return {
            "do_sample": True,
            "top_k": self.top_k,
            "temperature": self.temperature,
            "num_return_sequences": self.per_passage,
            "max_new_tokens": self.max_new_tokens,
        }

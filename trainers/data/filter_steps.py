"""What a filter is: a step that makes an outcome of every pair."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

from modeling_tsarank.trainers.data.weak_types import Pair


Outcome: TypeAlias = "Pair | str"
"""What a step makes of a pair: the pair, perhaps mended, or the reason why it is dropped."""


class Step:
    """Base of all filters: a dataclass whose fields are the options.

    Attributes:
        name: Name in recipes.
    """

    name: ClassVar[str]

    def apply(self, pairs: list[Pair]) -> list[Outcome]:
        """One outcome for each pair, in order."""
        return [self.judge(pair) for pair in pairs]

    def judge(self, pair: Pair) -> Outcome:
        """The outcome of one pair; for steps that look at each pair alone."""
        raise NotImplementedError(f"{type(self).__name__} judges batches")

    def facts(self) -> dict[str, Any]:
        """What else the provenance is to say of this step."""
        return {}

    def public_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The declared options as the provenance may show them: without paths of one machine."""
        return options

    def close(self) -> None:
        """Lets go of files and models."""

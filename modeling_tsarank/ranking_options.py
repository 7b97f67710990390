"""The ranking options of a checkpoint: small validated dataclasses in config.json under the key `tsarank`.

A ranking model has no weights of its own: everything that makes a plain language model a reranker (prompt, score,
truncation, answer tokens) is an option here; each family adds its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral
from typing import Any, ClassVar, TypeVar

from .ranking_errors import InputError, ModelError


CONFIG_KEY = "tsarank"

OptionsT = TypeVar("OptionsT", bound="RankingOptions")


def whole_number(value: Any, what: str, least: int = 1) -> int:
    """`value` as an `int`; NumPy integers are accepted, `True` is not.

    Raises `InputError` for anything else or a number below `least`; `what` is its name in the message ("top_k").
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{what} must be a whole number of at least {least}, got {value!r:.80}")
    return int(value)


def settle_whole_numbers(options: Any, *names: str, least: int = 1) -> None:
    """Checks fields of a dataclass, frozen or not, with `whole_number` and converts them to `int`, for JSON.

    A field whose default is `None` may stay `None`.
    """
    defaults = {field.name: field.default for field in fields(options)}
    for name in names:
        value = getattr(options, name)
        if value is not None or defaults[name] is not None:
            object.__setattr__(options, name, whole_number(value, name, least))


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises `InputError` unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}")


def check_template(name: str, template: Any, needed: tuple[str, ...]) -> None:
    """Raises `InputError` unless `template` has each placeholder once."""
    if not isinstance(template, str):
        raise InputError(f"{name} must be a string, got {type(template).__name__}")
    for placeholder in needed:
        if template.count(placeholder) != 1:
            raise InputError(f"{name} must contain {placeholder} exactly once, got {template!r}")


@dataclass(frozen=True)
class RankingOptions:
    """Options shared by all model families.

    Parameters:
        max_length (`int`): maximum tokens of a sequence, query included; only the document is truncated.
        max_query_length (`int`): maximum tokens of a query; longer ones are truncated on the right with a warning.
        add_bos (`bool`, *optional*): whether to prepend the tokenizer's BOS; `None` is the tokenizer's own behaviour.
    """

    family: ClassVar[str] = ""

    max_length: int = 512
    max_query_length: int = 256
    add_bos: bool | None = None

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "max_length", "max_query_length")
        if self.max_query_length >= self.max_length:
            raise InputError(
                f"max_query_length ({self.max_query_length}) must be smaller than max_length ({self.max_length}), "
                "or no token is left for the document"
            )
        if self.add_bos not in (None, True, False):
            raise InputError(f"add_bos must be true, false or null, got {self.add_bos!r}")

    def to_dict(self) -> dict[str, Any]:
        """The options as stored in config.json, with the family's name."""
        return {"family": self.family, **asdict(self)}

    @classmethod
    def from_dict(cls: type[OptionsT], values: dict[str, Any]) -> OptionsT:
        """The inverse of `to_dict`. Raises `ModelError` for another family or an unknown field."""
        if not isinstance(values, dict):
            raise ModelError(f"config key {CONFIG_KEY!r} must be an object, got {type(values).__name__}")
        values = dict(values)
        family = values.pop("family", cls.family)
        if family != cls.family:
            raise ModelError(f"this checkpoint was saved for the family {family!r}, not {cls.family!r}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ModelError(
                f"unknown ranking option {', '.join(unknown)} in config key {CONFIG_KEY!r}; known: {', '.join(known)}"
            )
        return cls(**values)

    def override(self: OptionsT, **changes: Any) -> OptionsT:
        """A validated copy with some fields changed. Raises `InputError` naming an unknown field."""
        known = [field.name for field in fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise InputError(f"unknown ranking option {', '.join(unknown)}; known: {', '.join(known)}")
        return replace(self, **changes)


@dataclass(frozen=True)
class Explanation:
    """Why a document got its score.

    Attributes:
        parts: text and value, in order: tokens of the query, answers, or whatever the family splits a score into;
            empty if it cannot.
        unit: of the values: "log-probability" (at most 0) or "logit".
        score: the score, as in a ranking.
        rule: how the score follows from the parts, in words.
    """

    parts: tuple[tuple[str, float], ...]
    unit: str
    score: float
    rule: str

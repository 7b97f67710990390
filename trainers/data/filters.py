"""Filters as a declared, ordered list: each is a step with options, and counts its input and output pairs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from fnmatch import fnmatchcase
from itertools import compress, islice
from numbers import Integral, Real
from typing import Any

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters_duplicates import LexicalRelatedness, NearDuplicates, Repeats
from modeling_tsarank.trainers.data.filters_leakage import Leakage
from modeling_tsarank.trainers.data.filters_text import Boilerplate, Clean, Exclude, Language, Length
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES, Pair, Step


BATCH = 2048
"""Number of pairs in memory at once."""


def step_classes() -> dict[str, type[Step]]:
    """Every filter by its name."""
    text = (Clean, Exclude, Length, Boilerplate, Language)
    return {one.name: one for one in (*text, LexicalRelatedness, Repeats, NearDuplicates, Leakage)}


@dataclass
class DeclaredStep:
    """A filter with the pairs it applies to, and its counts: pairs in = out + dropped.

    Attributes:
        step: The filter.
        options: Options as declared.
        types: Types of pairs it applies to; all if empty.
        sources: Patterns (`reuters*`) of the sources it applies to; all if empty.
        pairs_in, pairs_out: Numbers of input and output pairs.
        mended: Number of output pairs that were modified.
        dropped, dropped_by_type: Numbers of dropped pairs by reason, and by type.
    """

    step: Step
    options: dict[str, Any] = field(default_factory=dict)
    types: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    pairs_in: int = 0
    pairs_out: int = 0
    mended: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_by_type: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """Name of the filter."""
        return self.step.name

    def concerns(self, pair: Pair) -> bool:
        """Whether the filter applies to this pair."""
        fits = any(fnmatchcase(pair.source, pattern) for pattern in self.sources or ("*",))
        return fits and (not self.types or pair.type in self.types)

    def record(self) -> dict[str, Any]:
        """The counts for the provenance record."""
        scope = {name: list(value) for name in ("types", "sources") if (value := getattr(self, name))}
        return {
            "filter": self.name,
            "options": self.step.public_options(self.options),
            **scope,
            "in": self.pairs_in,
            "out": self.pairs_out,
            "mended": self.mended,
            "dropped": dict(sorted(self.dropped.items())),
            "dropped_by_type": dict(sorted(self.dropped_by_type.items())),
            **self.step.facts(),
        }


def declare_steps(declared: Sequence[Any]) -> list[DeclaredStep]:
    """Steps from a declared list such as `["length", {"near_duplicates": {"threshold": 0.7, "types":
    ["title_body"]}}]`.

    In addition to its own options, every filter has `types` and `sources`, which select the pairs it applies to.

    Raises:
        InputError: an unknown filter or option, or an invalid value of an option.
        ResourceError: a filter needs a package that is not installed.
    """
    if isinstance(declared, (str, Mapping)) or not isinstance(declared, Sequence):
        raise InputError(f"filters must be a list, got {type(declared).__name__}")
    return [_declare(item, f"filter {number}") for number, item in enumerate(declared, start=1)]


def _declare(item: Any, where: str) -> DeclaredStep:
    item = {item: {}} if isinstance(item, str) else item
    if not isinstance(item, Mapping) or len(item) != 1:
        raise InputError(f"{where}: expected a name, or one name with its options, got {item!r:.80}")
    name, options = next(iter(item.items()))
    classes = step_classes()
    if name not in classes:
        raise InputError(f"{where}: no filter {name!r}; there are {', '.join(classes)}")
    where, options = f"{where}, {name}", {} if options is None else options
    own = dict(options) if isinstance(options, Mapping) else options
    types, sources = (own.pop(key, ()) if isinstance(own, dict) else () for key in ("types", "sources"))
    step = build_options(classes[name], own, where)
    return DeclaredStep(step, own, _names(types, f"{where}: types", PAIR_TYPES), _names(sources, f"{where}: sources"))


def _names(value: Any, where: str, known: Iterable[str] | None = None) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value or ()
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: expected names, got {value!r:.80}")
    wrong = [name for name in names if known is not None and name not in known]
    if wrong:
        raise InputError(f"{where}: no {wrong[0]!r}; there are {', '.join(known or ())}")
    return tuple(names)


_KINDS: dict[str, Any] = {
    **{"str": str, "int": Integral, "float": Real, "bool": bool, "list": list, "dict": Mapping, "Literal": str},
    "tuple": (list, tuple),
}


def build_options(cls: type[Any], options: Mapping[str, Any], where: str) -> Any:
    """A dataclass instance from options by name, type-checked against its fields; lists become tuples.

    Raises:
        InputError: an unknown or missing option, or a value of the wrong type.
    """
    known = {one.name: one for one in _options(cls)}
    if not isinstance(options, Mapping):
        raise InputError(f"{where}: expected options by name, got {options!r:.60}")
    for name in options:
        if name not in known:
            raise InputError(f"{where}: no option {name!r}; there are {', '.join(known) or 'none'}")
    missing = [name for name, one in known.items() if name not in options and _default(one) is MISSING]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing")
    values = {name: _checked(value, str(known[name].type), f"{where}: {name}") for name, value in options.items()}
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _checked(value: Any, kind: str, where: str) -> Any:
    """The value if it is of a field's type; whole numbers are accepted for floats."""
    name, texts = kind.partition("[")[0], kind == "tuple[str, ...]"
    if name not in _KINDS:
        return value
    fits = isinstance(value, _KINDS[name]) and isinstance(value, bool) == (name == "bool")
    if not fits or (texts and not all(isinstance(one, str) for one in value)):
        name = "list of strings" if texts else name.replace("tuple", "list")
        raise InputError(f"{where} must be of type {name}, got {value!r:.60}")
    return tuple(value) if name == "tuple" else value


def option_defaults(cls: type[Any]) -> list[tuple[str, Any]]:
    """The options of a dataclass with their defaults."""
    return [(one.name, _default(one)) for one in _options(cls)]


def _options(cls: type[Any]) -> list[Field[Any]]:
    return [one for one in fields(cls) if one.init and not one.name.startswith("_")]


def _default(one: Field[Any]) -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


class Pipeline:
    """Passes pairs through steps in order, batch by batch.

    Args:
        steps: The declared list.
        examples: Number of dropped pairs of each step and reason for `dropped_examples`, sampled uniformly.
        seed: Seed of that sampling.
    """

    def __init__(self, steps: Sequence[DeclaredStep], examples: int = 0, seed: int = 0) -> None:
        self.steps = list(steps)
        self.dropped_examples: dict[tuple[int, str], list[Pair]] = {}
        self._examples = examples
        self._random = random.Random(seed)

    def run(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yields the pairs that no step drops; memory is `BATCH` pairs plus the state of the steps."""
        left = iter(pairs)
        while batch := list(islice(left, BATCH)):
            for number, declared in enumerate(self.steps):
                batch = self._run_step(number, declared, batch)
            yield from batch

    def _run_step(self, number: int, declared: DeclaredStep, pairs: list[Pair]) -> list[Pair]:
        concerned = [declared.concerns(pair) for pair in pairs]
        outcomes = iter(declared.step.apply(list(compress(pairs, concerned))))
        kept = []
        for pair, is_in in zip(pairs, concerned, strict=True):
            outcome = next(outcomes) if is_in else pair
            if isinstance(outcome, str):
                declared.dropped[outcome] += 1
                declared.dropped_by_type[pair.type] += 1
                self._keep_example(number, outcome, declared.dropped[outcome], pair)
            else:
                declared.mended += outcome is not pair
                kept.append(outcome)
        declared.pairs_in += len(pairs)
        declared.pairs_out += len(kept)
        return kept

    def _keep_example(self, number: int, reason: str, seen: int, pair: Pair) -> None:
        """Reservoir sampling (Vitter's algorithm R)."""
        examples = self.dropped_examples.setdefault((number, reason), [])
        if len(examples) < self._examples:
            examples.append(pair)
        elif (place := self._random.randrange(seen)) < self._examples:
            examples[place] = pair

    def close(self) -> None:
        """Closes the files and models of the steps."""
        for declared in self.steps:
            declared.step.close()

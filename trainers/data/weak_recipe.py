"""Recipes of weak pairs: a YAML file that declares sources, filters and how the set is drawn from what they keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from modeling_tsarank.files.reading import parse_yaml, read_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import settle_whole_numbers, whole_number
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.readers import Source
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES


DEFAULT_FILTERS: tuple[Any, ...] = (
    "clean",
    "length",
    "boilerplate",
    "language",
    {"lexical": {"types": [name for name in PAIR_TYPES if name != "entity_description"]}},
    "repeats",
    "near_duplicates",
)
"""What a recipe without `filters` does. The name of an entity need not occur in its description."""

_KEYS = ("title", "sources", "licences", "filters", "sampling")


@dataclass
class Sampling:
    """Balanced sampling over types.

    Attributes:
        rows: Rows of the finished set; 0 takes all that the caps leave.
        temperature: With `rows`: a type with n pairs gets a share in proportion to n^(1 / temperature). 1 keeps the
            proportions, a large number gives every type the same (Conneau et al., 2020, section 3.1, whose alpha is
            1 / temperature). What a type does not have goes to the others.
        caps: Most pairs of a type, by its name, or of every type not named, as `all`.
        validation: Rows of a validation split, drawn from the set with its proportions.
        seed: Seed of the draw and of the order of rows.
    """

    rows: int = 0
    temperature: float = 1.0
    caps: dict[str, int] = field(default_factory=dict)
    validation: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "rows", "validation", "seed", least=0)
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")
        if not self.rows and self.temperature != 1:
            raise InputError("a temperature needs rows: without a size of the set there are no shares to divide")
        for name, cap in self.caps.items():
            if name not in PAIR_TYPES and name != "all":
                raise InputError(f"caps: no type {name!r}; there are all, {', '.join(PAIR_TYPES)}")
            self.caps[name] = whole_number(cap, f"caps: {name}", 0)

    def allocate(self, counts: Mapping[str, int]) -> dict[str, int]:
        """How many pairs to take of each type, given how many there are."""
        most = {name: min(n, self.caps.get(name, self.caps.get("all", n))) for name, n in counts.items()}
        if not self.rows or self.rows >= sum(most.values()):
            return most
        return _shares(most, {name: n ** (1 / self.temperature) for name, n in counts.items()}, self.rows)


def _shares(most: dict[str, int], weights: dict[str, float], rows: int) -> dict[str, int]:
    """Divides `rows` by weight with no type above its most (water-filling), rounded by largest remainder."""
    fixed: dict[str, int] = {}
    while True:
        open_types = [name for name in most if name not in fixed]
        left = rows - sum(fixed.values())
        total = sum(weights[name] for name in open_types) or 1.0
        exact = {name: left * weights[name] / total for name in open_types}
        full = {name: most[name] for name in open_types if exact[name] >= most[name]}
        if not full:
            break
        fixed |= full
    whole = {name: math.floor(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (whole[name] - exact[name], name))
    for name in by_remainder[: left - sum(whole.values())]:
        whole[name] += 1
    return {name: fixed.get(name, whole.get(name, 0)) for name in most}


def choose(counts: Mapping[str, int], wanted: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Which pairs of each type are taken, and where each goes.

    Args:
        counts: Pairs there are, by type.
        wanted: Pairs to take, by type; none above its count.
        seed: Seed; the same counts, numbers and seed give the same choice.

    Returns:
        By type, int64 of shape `(count,)`: the place of each pair in the finished set, -1 where it is not taken. The
        places of all types together are a permutation.
    """
    generator = np.random.default_rng(seed)
    names = sorted(counts)
    places = {name: np.full(counts[name], -1, dtype=np.int64) for name in names}
    order = generator.permutation(sum(wanted[name] for name in names))
    start = 0
    for name in names:
        chosen = np.sort(generator.choice(counts[name], size=wanted[name], replace=False))
        places[name][chosen] = order[start : start + wanted[name]]
        start += wanted[name]
    return places


@dataclass
class Recipe:
    """A declared set of weak pairs.

    Attributes:
        sources: Where the pairs come from, in order.
        filters: The declared, ordered list.
        sampling: How the set is drawn from what the filters keep.
        licences: Licences by pattern of the source's name (`reuters*`), for tables of many sources; the first that
            fits is taken, where the pair itself says none.
        title: Title of the dataset, for its card.
    """

    sources: list[Source]
    filters: list[Any] = field(default_factory=lambda: list(DEFAULT_FILTERS))
    sampling: Sampling = field(default_factory=Sampling)
    licences: dict[str, str] = field(default_factory=dict)
    title: str = "Weakly supervised text pairs"

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("a recipe needs at least one source")

    def licence_of(self, source: str) -> str | None:
        """The licence declared for a source's name."""
        return next((licence for pattern, licence in self.licences.items() if fnmatchcase(source, pattern)), None)


def read_recipe(path: Path) -> dict[str, Any]:
    """The content of a recipe's file.

    Raises:
        InputError: there is no such file, it is not YAML, or it has keys that no recipe has.
    """
    content = parse_yaml(read_text(path), str(path))
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected {', '.join(_KEYS)}")
    return content


def build_recipe(content: Mapping[str, Any]) -> Recipe:
    """A recipe from its plain values.

    Raises:
        InputError: an unknown key, or a source or option that is wrong.
    """
    for key in content:
        if key not in _KEYS:
            raise InputError(f"a recipe has no {key!r}; it has {', '.join(_KEYS)}")
    declared = content.get("sources") or []
    if not isinstance(declared, Sequence) or isinstance(declared, str):
        raise InputError("sources must be a list")
    sources = [_source(item, f"source {number}") for number, item in enumerate(declared, start=1)]
    licences = content.get("licences") or {}
    if not isinstance(licences, Mapping) or not all(isinstance(one, str) for pair in licences.items() for one in pair):
        raise InputError("licences must map patterns of source names to licences")
    sampling = content.get("sampling") or {}
    if not isinstance(sampling, Mapping):
        raise InputError(f"sampling must hold options by name, got {sampling!r:.60}")
    filters = content.get("filters")
    return Recipe(
        sources,
        list(DEFAULT_FILTERS) if filters is None else filters,
        build_options(Sampling, sampling, "sampling"),
        dict(licences),
        str(content.get("title") or Recipe.title),
    )


def _source(item: Any, where: str) -> Source:
    if not isinstance(item, Mapping):
        raise InputError(f"{where}: expected its type, its path and so on, got {item!r:.60}")
    return build_options(Source, item, where)

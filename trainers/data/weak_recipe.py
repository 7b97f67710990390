"""Recipes of weak pairs: a YAML file that declares sources, filters and sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from modeling_tsarank.files.fields import without_nulls
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
"""The default filters. An entity's name need not occur in its description."""


@dataclass
class Sampling:
    """Balanced sampling over types.

    Attributes:
        rows: Rows of the finished dataset; 0 for all that the caps allow.
        temperature: With `rows`: a type with n pairs gets a share proportional to n^(1 / temperature). 1 keeps the
            proportions, a large number makes all types equal (Conneau et al., 2020, section 3.1, whose alpha is
            1 / temperature). If a type has too few pairs, the rest is divided among the others.
        caps: Maximum pairs of a type, by its name, or of every type not listed, as `all`.
        validation: Rows of a validation split, sampled from the dataset with the same proportions.
        seed: Seed of the sampling and of the order of rows.
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
            raise InputError("a temperature needs rows: without a dataset size there are no shares to compute")
        for name, cap in self.caps.items():
            if name not in PAIR_TYPES and name != "all":
                raise InputError(f"caps: no type {name!r}; there are all, {', '.join(PAIR_TYPES)}")
            self.caps[name] = whole_number(cap, f"caps: {name}", 0)

    def allocate(self, counts: Mapping[str, int]) -> dict[str, int]:
        """How many pairs of each type to take, from their available numbers."""
        most = {name: min(n, self.caps.get(name, self.caps.get("all", n))) for name, n in counts.items()}
        if not self.rows or self.rows >= sum(most.values()):
            return most
        return _shares(most, {name: n ** (1 / self.temperature) for name, n in counts.items()}, self.rows)


def _shares(most: dict[str, int], weights: dict[str, float], rows: int) -> dict[str, int]:
    """Divides `rows` by weight with no type above its maximum (water-filling), rounded by largest remainder."""
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
    """Which pairs of each type are selected, and their positions.

    Args:
        counts: Available pairs, by type.
        wanted: Pairs to take, by type; never above its count.
        seed: Seed; the same counts, numbers and seed give the same selection.

    Returns:
        By type, int64 of shape `(count,)`: the position of each pair in the finished dataset, -1 if it is not
        selected. The positions of all types together are a permutation.
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
    """A declared dataset of weak pairs, made of plain values.

    Attributes:
        sources: Sources of the pairs, in order: options of `Source`, converted to instances.
        filters: The declared, ordered list.
        sampling: How to sample from the pairs that pass the filters: options of `Sampling`.
        licences: Licences by pattern of the source's name (`reuters*`), for tables with many sources; the first match
            is used if the pair itself has no licence.
        title: Title of the dataset, for its card.
    """

    sources: list[Any]
    filters: Any = DEFAULT_FILTERS
    sampling: dict[str, Any] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    title: str = "Weakly supervised text pairs"

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("a recipe needs at least one source")
        self.sources = [build_options(Source, one, f"source {n}") for n, one in enumerate(self.sources, start=1)]
        self.drawn: Sampling = build_options(Sampling, self.sampling, "sampling")
        if not all(isinstance(one, str) for pair in self.licences.items() for one in pair):
            raise InputError("licences must map patterns of source names to licences")

    def licence_of(self, source: str) -> str | None:
        """The licence declared for a source's name."""
        return next((licence for pattern, licence in self.licences.items() if fnmatchcase(source, pattern)), None)


def build_recipe(content: Any, where: str = "the recipe") -> Recipe:
    """A recipe from the content of its file; null values count as absent.

    Raises:
        InputError: an unknown key, or an invalid source or option.
    """
    recipe: Recipe = build_options(Recipe, without_nulls(content) if isinstance(content, dict) else content, where)
    return recipe

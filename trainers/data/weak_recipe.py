"""Recipes of weak pairs: a YAML file, or the same by options on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from modeling_tsarank.files.reading import parse_yaml, read_text
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.data.filters import build_options
from modeling_tsarank.trainers.data.readers import Source
from modeling_tsarank.trainers.data.weak_sampling import Sampling
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


def source_from_option(text: str) -> dict[str, Any]:
    """A source from `TYPE=PATH` on the command line.

    Raises:
        InputError: it is not of that form.
    """
    type_, equals, path = text.partition("=")
    if not equals or type_ not in PAIR_TYPES or not path:
        raise InputError(f"--source must be TYPE=PATH with a type of {', '.join(PAIR_TYPES)}; got {text!r}")
    return {"type": type_, "path": path}


def filter_from_option(text: str) -> Any:
    """A filter from `NAME` or `NAME: {OPTION: VALUE, …}` on the command line."""
    return parse_yaml(text, f"--filter {text!r}")

"""Training objectives by name, and weighted sums of them.

An objective is a function of grids of shape `(groups, documents)`, one row per query. The parameters below are its
inputs; every other parameter is an option:

| parameter | meaning |
|---|---|
| `scores` | ranking scores, divided by the temperature of the configuration |
| `mask` | true for real documents, false for padding |
| `labels`, `teacher_scores`, … | targets of the rows: any of `rows.TARGETS` |
| `ranks` | 1 is best, 0 padding: from the row's permutation, else its teacher scores, else its labels |
| `log_likelihoods` | sum of log p over the query's tokens; needs a query-likelihood ranker |
| `divergences` | sum of KL(reference ‖ model) over the query's tokens; as above, and needs a reference model |
| `query_lengths` | tokens of the query in each document's sequence |

It returns a scalar: the mean of a value per group.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.losses_targets import scores_to_ranks


Loss = Callable[..., Tensor]

# Values of single query tokens, which only a query-likelihood ranker has.
TOKEN_VALUES = {"log_likelihoods", "divergences"}
# Sources of ranks; the first one present is used.
RANK_SOURCES = ("ranks", "teacher_scores", "labels")


@dataclass(frozen=True)
class Objective:
    """A loss function with the facts that a trainer needs.

    Attributes:
        name: name in configurations; its value is logged as `NAME_loss`.
        function: see the module docstring.
        description: one line for help texts.
        needs: required targets.
        positives: it needs to know which documents are relevant, so positives and negatives are converted to labels.
        labels_from_ranks: how to derive labels from ranks if there are none.
        linear: linear in the model's values, so that its gradient needs no first pass in gradient caching.
    """

    name: str
    function: Loss
    description: str
    needs: tuple[str, ...] = ()
    positives: bool = False
    labels_from_ranks: Callable[[Tensor, Tensor | None], Tensor] | None = None
    linear: bool = False

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of that name."""
        return name in inspect.signature(self.function).parameters

    def missing_targets(self, given: Collection[str]) -> list[str]:
        """The required targets that are neither in `given` nor derivable from it."""
        ranked = any(name in given for name in RANK_SOURCES)
        follows = {"ranks": ranked, "labels": ranked and self.labels_from_ranks is not None}
        return [name for name in self.needs if name not in given and not follows.get(name)]

    def __call__(self, grids: Mapping[str, Tensor], **options: Any) -> Tensor:
        """The loss on named grids, of which it uses those it needs.

        Raises:
            InputError: a required target is missing, or an error of the loss itself.
        """
        if missing := self.missing_targets(grids):
            raise InputError(f"the loss {self.name} needs {', '.join(missing)}, but the rows have none")
        found = dict(grids)
        if "ranks" not in found and any(name in found for name in RANK_SOURCES):
            found["ranks"] = derived_ranks(found)
        if "labels" not in found and "ranks" in found and self.labels_from_ranks is not None:
            found["labels"] = self.labels_from_ranks(found["ranks"], found.get("mask"))
        return self.function(**{name: value for name, value in found.items() if self.takes(name)}, **options)


def derived_ranks(grids: Mapping[str, Tensor]) -> Tensor:
    """The given ranks, else those of the teacher's scores, else those of the labels."""
    source = next(name for name in RANK_SOURCES if name in grids)
    return grids["ranks"] if source == "ranks" else scores_to_ranks(grids[source], grids.get("mask"))


def best_as_positive(ranks: Tensor, mask: Tensor | None) -> Tensor:
    """Labels of 1 for the documents of rank 1 and 0 for all others."""
    return (ranks == 1).float()


OBJECTIVES: dict[str, Objective] = {}


def objective(name: str, description: str, **facts: Any) -> Callable[[Loss], Loss]:
    """Registers a loss function under a name: `--objectives NAME:WEIGHT`. See `Objective` for the facts."""

    def register(function: Loss) -> Loss:
        OBJECTIVES[name] = Objective(name, function, description, **facts)
        return function

    return register


def get_objective(name: str) -> Objective:
    """The objective of that name. Raises `InputError`, listing the names, for an unknown one."""
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown loss {name!r}; {hint}expected one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def parse_objectives(given: Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """Weights by name, from `["ranknet:0.8", "next_token:0.2"]` or a mapping; the default weight is 1.

    Raises:
        InputError: an unknown or repeated name, or a weight that is not a positive number.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else [entry.rpartition(":") for entry in map(str, given)]
    weights: dict[str, float] = {}
    for pair in pairs:
        name, weight = (pair[-1], 1.0) if len(pair) == 3 and not pair[1] else (pair[0], pair[-1])
        get_objective(str(name))
        try:
            number = float(weight)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < math.inf:
            raise InputError(f"objectives: the weight of {name} must be a positive number, got {weight!r}")
        if name in weights:
            raise InputError(f"objectives: {name} is given twice")
        weights[str(name)] = number
    if not weights:
        raise InputError("objectives: give at least one, such as listwise_softmax:0.6")
    return weights

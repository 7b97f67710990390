"""Training objectives by name, and weighted mixtures of them.

An objective is a function of grids of shape `(groups, documents)`, one row per query. Its parameters say what it
takes; every other parameter is an option:

| parameter | what it is |
|---|---|
| `scores` | ranking scores, divided by the temperature of the configuration |
| `mask` | true for real documents, false for padding |
| `labels`, `teacher_scores`, … | targets of the rows: whatever `rows.TARGETS` names |
| `ranks` | 1 is best, 0 padding: of the row's permutation, else of its teacher scores, else of its labels |
| `log_likelihoods` | sum of log p over the query's tokens; needs a query-likelihood ranker |
| `divergences` | sum of KL(reference ‖ model) over the query's tokens; needs one too, and a reference model |
| `query_lengths` | tokens of the query in each document's sequence |

It returns a scalar: the mean over the groups of a value of each group.
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
# What ranks are read off, the first that is there.
RANK_SOURCES = ("ranks", "teacher_scores", "labels")


@dataclass(frozen=True)
class Objective:
    """A loss function with what a trainer has to know of it.

    Attributes:
        name: in configurations; its value is logged as `NAME_loss`.
        function: see the module's head.
        description: one line for help texts.
        needs: targets without which it cannot work.
        positives: it asks which documents are relevant, so that positives and negatives are read as labels.
        labels_from_ranks: how labels are made of ranks where there are none.
        linear: linear in the model's values, so that its gradient needs no first pass over a batch in chunks.
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
        """Which needed targets are neither among the names in `given` nor follow from them."""
        ranked = any(name in given for name in RANK_SOURCES)
        follows = {"ranks": ranked, "labels": ranked and self.labels_from_ranks is not None}
        return [name for name in self.needs if name not in given and not follows.get(name)]

    def __call__(self, grids: Mapping[str, Tensor], **options: Any) -> Tensor:
        """The loss of grids by name, of which it takes its own.

        Raises:
            InputError: a needed target is missing, or what the loss itself raises.
        """
        if missing := self.missing_targets(grids):
            raise InputError(f"the loss {self.name} needs {', '.join(missing)}, and the rows have none")
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
    """Makes a loss function known under a name: `--objectives NAME:WEIGHT`. See `Objective` for the facts."""

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
    """Weights by name, from `["ranknet:0.8", "next_token:0.2"]` or a mapping; a weight left out is 1.

    Raises:
        InputError: an unknown name, one that is there twice, or a weight that is no positive number.
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
            raise InputError(f"objectives: {name} is named twice")
        weights[str(name)] = number
    if not weights:
        raise InputError("objectives: name at least one, such as listwise_softmax:0.6")
    return weights

"""A scoring task of a language model: token ids, and the positions at which outputs are wanted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass


# A prefix is shared if that saves at least this share of the tokens; less would not pay for the smaller batches.
SAVED_SHARE = 0.25


@dataclass(frozen=True)
class Task:
    """One sequence to run through the model.

    Attributes:
        ids: Its token ids, without those after the last wanted position.
        at: Positions in `ids`, ascending, whose outputs are wanted.
        targets: For token log-probabilities, the target token at each of these positions.
        cached: Token ids under which a store caches the states of this task's document. `ids` begins with them, but
            may contain only the first of them: a long query leaves less room for the document.
        length: Number of tokens of the whole text, on which some rotary embeddings depend; at least `len(ids)`.
    """

    ids: tuple[int, ...]
    at: tuple[int, ...]
    targets: tuple[int, ...] = ()
    cached: tuple[int, ...] = ()
    length: int = 0


@dataclass(frozen=True)
class Group:
    """Tasks with a common beginning, by index, and the prefix whose states they use; empty if nothing is shared."""

    members: list[int]
    prefix: tuple[int, ...]


def common_length(prefix: Sequence[int], task: Task) -> int:
    """How many of a task's first tokens the prefix covers; the first wanted position is never included."""
    ids, limit = task.ids, min(len(prefix), task.at[0])
    if tuple(prefix[:limit]) == ids[:limit]:
        return limit
    return next(i for i in range(limit) if prefix[i] != ids[i])


def cached_groups(tasks: Sequence[Task], chosen: Sequence[int]) -> list[Group]:
    """Groups of the chosen tasks by the ids under which a store caches their document's states."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in chosen:
        found[tasks[i].cached].append(i)
    return [Group(members, prefix) for prefix, members in found.items()]


def prefix_groups(tasks: Sequence[Task], chosen: Sequence[int]) -> list[Group]:
    """Groups of the chosen tasks by common beginnings.

    Neighbours in the sorted order of ids share the most, so one pass over that order finds the groups.
    A member may share less than the whole prefix.
    """
    order = sorted(chosen, key=lambda i: tasks[i].ids)
    groups: list[Group] = []
    members: list[int] = []
    prefix: tuple[int, ...] = ()
    for place, i in enumerate(order):
        shared = 0
        if members:
            before, ids = tasks[order[place - 1]].ids, tasks[i].ids
            shared = common_length(before, tasks[i])
            if shared < SAVED_SHARE * max(len(before), len(ids)):
                groups.append(Group(members, prefix))
                members, prefix = [], ()
            elif shared > len(prefix):
                prefix = ids[:shared]
        members.append(i)
    if members:
        groups.append(Group(members, prefix))
    return groups


def by_regime(
    tasks: Sequence[Task],
    regimes: Sequence[int],
    group: Callable[[Sequence[Task], Sequence[int]], list[Group]],
) -> list[Group]:
    """Groups among the tasks of each regime (`rope_regimes`): their keys are rotated by the same angles."""
    alike: dict[int, list[int]] = defaultdict(list)
    for i, regime in enumerate(regimes):
        alike[regime].append(i)
    return [found for chosen in alike.values() for found in group(tasks, chosen)]

"""What is asked of a language model: token ids to read, and the positions at which something is read off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass


# A prefix is shared where that saves at least this part of the tokens; less would not pay for the smaller batches.
SAVED_SHARE = 0.25


@dataclass(frozen=True)
class Task:
    """One sequence to read.

    Attributes:
        ids: Its token ids. What stands behind the last wanted position is left out.
        at: Positions in `ids`, ascending, whose outputs are wanted.
        targets: For token log-probabilities, the token asked for at each of these positions.
        cached: Token ids under which a store keeps the states of this task's document. `ids` begins like them, but
            need not hold all of them: a long query leaves less room for the document.
        length: Tokens of the whole text, on which some rotary embeddings depend; at least `len(ids)`.
    """

    ids: tuple[int, ...]
    at: tuple[int, ...]
    targets: tuple[int, ...] = ()
    cached: tuple[int, ...] = ()
    length: int = 0


@dataclass(frozen=True)
class Group:
    """Tasks that begin alike, by index, and the prefix whose states serve them; empty where nothing is shared."""

    members: list[int]
    prefix: tuple[int, ...]


def common_length(prefix: Sequence[int], task: Task) -> int:
    """How many of a task's first tokens the prefix covers; the first wanted position is left to be read."""
    ids, limit = task.ids, min(len(prefix), task.at[0])
    if tuple(prefix[:limit]) == ids[:limit]:
        return limit
    return next(i for i in range(limit) if prefix[i] != ids[i])


def cached_groups(tasks: Sequence[Task], chosen: Sequence[int]) -> list[Group]:
    """Groups of the chosen tasks by the ids under which a store keeps their document's states."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i in chosen:
        found[tasks[i].cached].append(i)
    return [Group(members, prefix) for prefix, members in found.items()]


def prefix_groups(tasks: Sequence[Task], chosen: Sequence[int]) -> list[Group]:
    """Groups of the chosen tasks by what they begin with.

    Tasks next to each other in the order of their ids share the most, so one pass over that order finds the groups.
    Each member may share less than the whole prefix.
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
    """Groups among the tasks of each regime (`rope_regimes`): their keys are turned by the same angles."""
    alike: dict[int, list[int]] = defaultdict(list)
    for i, regime in enumerate(regimes):
        alike[regime].append(i)
    return [found for chosen in alike.values() for found in group(tasks, chosen)]

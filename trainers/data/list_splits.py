"""The deterministic split of a data set into training and validation, stratified by where its rows come from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from fractions import Fraction
from typing import TypeVar

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number
from modeling_tsarank.trainers.data.list_building import place_of


Item = TypeVar("Item")

VALIDATION_SHARE = Fraction(1, 20)
"""TWOLAR: 1,000 of 20,000."""


def stratified_split(
    items: Sequence[Item],
    identity: Callable[[Item], str],
    stratum: Callable[[Item], Hashable],
    share: float | Fraction = VALIDATION_SHARE,
    seed: int = 0,
) -> tuple[list[Item], list[Item]]:
    """Training and validation items, each in the given order.

    The validation set has `round(share * n)` items. Every stratum gives its share, rounded down, and the remaining
    places go to the strata with the largest remainders. Which items of a stratum it gives depends on their identities
    and the seed alone, not on the order of the items.

    Args:
        items: n items.
        identity: A text that no two items share.
        stratum: What an item is stratified by.
        share: Of the validation set, from 0 to below 1.
        seed: Of the choice.

    Raises:
        InputError: a share out of range, or two items of one identity.
    """
    if not 0 <= share < 1:
        raise InputError(f"the validation set's share must be from 0 to below 1, got {float(share)}")
    names = [identity(item) for item in items]
    if len(set(names)) < len(names):
        raise InputError(f"{len(names) - len(set(names))} of {len(names)} rows repeat an id; a split needs unique ids")
    strata: dict[Hashable, list[str]] = defaultdict(list)
    for item, name in zip(items, names, strict=True):
        strata[stratum(item)].append(name)
    # A decimal such as 0.05 is meant exactly, not as the binary number next to it.
    exact = share if isinstance(share, Fraction) else Fraction(str(share))
    wanted = {key: exact * len(members) for key, members in strata.items()}
    quota = {key: int(amount) for key, amount in wanted.items()}
    left = int(exact * len(items) + Fraction(1, 2)) - sum(quota.values())
    by_remainder = sorted(strata, key=lambda key: (quota[key] - wanted[key], place_of(seed, "stratum", repr(key))))
    for key in by_remainder[:left]:
        quota[key] += 1
    chosen: set[str] = set()
    for key, members in strata.items():
        chosen.update(sorted(members, key=lambda name: place_of(seed, "validation", name))[: quota[key]])
    pairs = list(zip(items, names, strict=True))
    return [item for item, name in pairs if name not in chosen], [item for item, name in pairs if name in chosen]


def spread(items: Sequence[Item], stratum: Callable[[Item], Hashable], limit: int) -> list[Item]:
    """At most `limit` items, one of each stratum in turn, in the given order inside a stratum and in the result.

    Raises:
        InputError: a limit below 1.
    """
    limit = whole_number(limit, "the limit")
    rounds: dict[Hashable, int] = defaultdict(int)
    turns = []
    for place, item in enumerate(items):
        key = stratum(item)
        turns.append((rounds[key], place))
        rounds[key] += 1
    kept = sorted(place for _, place in sorted(turns)[:limit])
    return [items[place] for place in kept]

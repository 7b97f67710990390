"""Work that is shared by several processes: all of it once, bounded, and no one waits for a peer that failed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from forked import together

from modeling_tsarank.jobs.pools import Pool, RanksPool, lead
from modeling_tsarank.ranking_errors import InputError


def worker(folder: Path, number: int) -> tuple[int, str]:
    time.sleep(0.02)
    (folder / f"by{os.environ['RANK']}").touch()
    return number * number, os.environ["RANK"]


def squares(count: int, pool: Pool) -> dict[str, int]:
    return {key: result[0] for key, result in pool.map((f"k{number}", number) for number in range(count))}


@pytest.mark.parametrize("tasks", [0, 1, 2, 40])
def test_every_task_is_done_once_and_all_processes_get_the_result(tmp_path: Path, tasks: int) -> None:
    outcomes = together(3, lambda: lead(partial(squares, tasks), partial(worker, tmp_path)), tmp_path)
    assert outcomes == [{f"k{number}": number * number for number in range(tasks)}] * 3
    assert len(list(tmp_path.glob("by?"))) == min(tasks, 3)


def test_several_jobs_follow_each_other_and_an_abandoned_one_leaves_nothing_behind(tmp_path: Path) -> None:
    def work(pool: Pool) -> list[dict[str, int]]:
        next(pool.map((number, number) for number in range(10)))
        return [squares(5, pool), squares(7, pool)]

    def call() -> list[Any]:
        return [lead(work, partial(worker, tmp_path)), lead(partial(squares, 3), partial(worker, tmp_path))]

    first = together(2, call, tmp_path)
    expected = [[{f"k{n}": n * n for n in range(5)}, {f"k{n}": n * n for n in range(7)}], {"k0": 0, "k1": 1, "k2": 4}]
    assert first == [expected] * 2


def test_few_payloads_are_taken_ahead(tmp_path: Path) -> None:
    def work(pool: Pool) -> int:
        taken = most = 0

        def tasks() -> Iterator[tuple[None, int]]:
            nonlocal taken
            for number in range(30):
                taken += 1
                yield None, number

        for done, _ in enumerate(pool.map(tasks()), start=1):
            most = max(most, taken - done)
        return most

    assert together(3, lambda: lead(work, partial(worker, tmp_path)), tmp_path)[0] <= 2 * 2 + 1


def test_large_values_travel_whole(tmp_path: Path) -> None:
    data = os.urandom(9 << 20)

    def work(pool: Pool) -> bool:
        return all(result == data + b"!" for _, result in pool.map([(0, data), (1, data)]))

    assert together(2, lambda: lead(work, lambda payload: payload + b"!"), tmp_path) == [True, True]


@pytest.mark.parametrize("place", ["leader", "worker"])
@pytest.mark.parametrize("error", [InputError("wrong"), ValueError("odd")])
def test_an_error_ends_all_processes(tmp_path: Path, place: str, error: Exception) -> None:
    def work(pool: Pool) -> None:
        list(pool.map((None, number) for number in range(10)))
        raise error

    def fail(_: int) -> None:
        if place == "worker" and os.environ["RANK"] == "1":
            raise error

    outcomes = together(2, lambda: lead(work, fail), tmp_path)
    assert [(type(outcome), str(outcome)) for outcome in outcomes] == [(type(error), str(error))] * 2


def test_an_error_that_cannot_travel_is_told(tmp_path: Path) -> None:
    class HomeMadeError(Exception):
        pass

    def fail(_: int) -> None:
        raise HomeMadeError("odd")

    outcomes = together(2, lambda: lead(partial(squares, 4), fail), tmp_path)
    assert [str(outcome) for outcome in outcomes] == ["HomeMadeError: odd"] * 2


def test_a_lone_process_works_by_itself() -> None:
    assert lead(partial(squares, 3), lambda number: (number * number, "")) == {"k0": 0, "k1": 1, "k2": 4}
    assert list(RanksPool(str).map([("a", 1)])) == [("a", "1")]

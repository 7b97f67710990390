"""The work of a job on a Ray cluster: actors hold the model, and get texts and give scores back.

Only the process that started the command reads inputs and writes results. A machine that dies loses the tasks it was
at; Ray starts its actor elsewhere and gives them to it again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from ..files.extras import require
from ..ranking_errors import ResourceError, TSARankError
from .pools import Worker


# How often a lost actor is started again, and its task given to it.
_RETRIES = 3


class _Actor:
    """A process of the cluster. An error that the user can mend is a result: no retry would change it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def work(self, number: int, payload: Any) -> tuple[int, Any, TSARankError | None]:
        try:
            return number, self._worker(payload), None
        except TSARankError as error:
            return number, None, error


@dataclass
class RayPool:
    """Does tasks on a Ray cluster, or on this machine where there is none.

    Args:
        worker: Does a task; it is copied into every actor.
        address: Of the cluster (`auto`, `ray://host:10001`); None starts Ray here unless `RAY_ADDRESS` names one.
        actors: How many processes hold the model.
        cpus: CPUs of each actor.
        gpus: GPUs of each actor.
    """

    worker: Worker
    address: str | None = None
    actors: int = 1
    cpus: float = 1
    gpus: float = 0

    def __enter__(self) -> RayPool:
        """Connects and starts the actors.

        Raises:
            ResourceError: Ray is not installed or cannot be reached.
        """
        ray, self._started = start_ray(self.address, max(self.actors * self.cpus, 1) + 1)
        self.size, self._numbers = self.actors, count()
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        remote = ray.remote(max_restarts=_RETRIES, max_task_retries=_RETRIES, **options)(_Actor)
        self._pool = ray.util.ActorPool([remote.remote(self.worker) for _ in range(self.actors)])
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            _import_ray().shutdown()

    def map(self, tasks: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """See `Pool`; each actor has one task at a time."""
        keys: dict[int, Any] = {}
        for number, (key, payload) in zip(self._numbers, tasks, strict=False):
            while not self._pool.has_free():
                yield self._next(keys)
            keys[number] = key
            self._pool.submit(lambda actor, task: actor.work.remote(*task), (number, payload))
        while keys:
            yield self._next(keys)

    def _next(self, keys: dict[int, Any]) -> tuple[Any, Any]:
        number, result, error = -1, None, None
        while number not in keys:  # what is left of a call that was given up is passed over
            try:
                number, result, error = self._pool.get_next_unordered()
            except _import_ray().exceptions.RayError as failure:
                lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
                raise ResourceError(
                    f"Ray gave the job up: {(lines or [type(failure).__name__])[-1]}; what is finished stays, run the "
                    "same command again to go on"
                ) from failure
        if error is not None:
            raise error
        return keys.pop(number), result


def start_ray(address: str | None, cpus: float) -> Any:
    """Ray, connected to a cluster, or started on this machine with so many CPUs; and whether that was done here.

    Args:
        address: `auto` or `ray://host:10001`; None starts Ray here unless `RAY_ADDRESS` names a cluster.

    Raises:
        ResourceError: Ray is not installed or cannot be reached.
    """
    ray = _import_ray()
    if ray.is_initialized():
        return ray, False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here = address is None and "RAY_ADDRESS" not in os.environ
    options: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False} if here else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises plain ones too, where a node does not start in time
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ResourceError(f"no Ray at {where}: {str(error).strip().splitlines()[0]}") from error
    return ray, True


def _import_ray() -> Any:
    require("ray.util", "ray", "--ray")
    return require("ray")

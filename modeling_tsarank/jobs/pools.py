"""The processes of a job: this one, all started by accelerate or torchrun, or those of a Ray cluster.

A pool maps tasks, pairs of a key and a payload, to keys and results as they finish, in any order. One process leads:
it alone reads inputs and writes results. The others only process payloads, so that only rank 0 needs access to the
files. Payloads and results are sent through the store with which `torch.distributed` connects the processes; no
process group is created.

On Ray, actors load the model, receive texts and return scores. A machine that dies loses its current tasks; Ray
restarts its actor elsewhere and retries them.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, Protocol, TypeVar

from ..files.extras import require
from ..ranking_errors import ResourceError, TSARankError


Result = TypeVar("Result")
Worker = Callable[[Any], Any]
# A value of the store has at most 8 MiB.
_PIECE = 4 << 20
_CHECK_SECONDS = 0.02
# How often a lost actor is restarted and its task retried.
_RETRIES = 3
# A first stage may take hours in the leading process while the others wait.
_PATIENCE = timedelta(days=7)


class Pool(Protocol):
    """Runs tasks in `size` processes."""

    size: int

    def map(self, tasks: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yields (key, result) for each (key, payload), in any order; few payloads are in memory at a time.

        Raises:
            TSARankError: the error of the worker.
        """


def lead(work: Callable[[Pool], Result], worker: Worker) -> Result:
    """Calls `work` with a pool in one process; the other processes run the pool's tasks meanwhile.

    Every process calls this, and each gets the result.

    Args:
        work: Reads input, passes tasks to the pool, and writes results.
        worker: Runs a task: from payload to result, both picklable. Called in every process.

    Raises:
        TSARankError: the error of `work`, in every process.
    """
    size, rank = _place()
    if size == 1:
        return work(RanksPool(worker))
    _use_own_device()
    mailbox = _Mailbox(_rendezvous(), f"tsarank/{next(_leads)}")
    if rank:
        outcome = _serve(mailbox, rank, worker)
    else:
        pool = RanksPool(worker, size, mailbox)
        outcome = _outcome(work, pool)
        pool.end(outcome)
    result: Result = _opened(outcome)
    return result


def leads() -> bool:
    """Whether this process is the leading one, or the only one."""
    return _place()[1] == 0


def _place() -> tuple[int, int]:
    """The world size and the rank of this process, as set by torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return size, int(os.environ.get("RANK", "0")) if size > 1 else 0


_leads = count()


@cache
def _rendezvous() -> Any:
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
    return store


def _use_own_device() -> None:
    """Makes `cuda` the accelerator of this process, by `LOCAL_RANK`."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _outcome(work: Callable[[Any], Any], argument: Any) -> tuple[Any, BaseException | None]:
    """The result and the error, one of them `None`."""
    try:
        return work(argument), None
    except BaseException as error:  # any error: other processes must not wait forever for a result
        return None, error if _is_picklable(error) else RuntimeError(f"{type(error).__name__}: {error}")


def _is_picklable(error: BaseException) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def _opened(outcome: tuple[Any, BaseException | None]) -> Any:
    result, error = outcome
    if error is not None:
        raise error
    return result


class _Mailbox:
    """Values of any size by name, for all processes."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def put(self, name: str, value: Any) -> None:
        data, name = pickle.dumps(value), f"{self._prefix}/{name}"
        starts = range(0, len(data), _PIECE)
        for number, start in enumerate(starts):
            self._store.set(f"{name}.{number}", data[start : start + _PIECE])
        self._store.set(name, str(len(starts)))

    def has(self, name: str) -> bool:
        return bool(self._store.check([f"{self._prefix}/{name}"]))

    def take(self, name: str) -> Any:
        """Waits for a value and removes it."""
        from torch.distributed import DistNetworkError

        name = f"{self._prefix}/{name}"
        try:
            self._store.wait([name], _PATIENCE)
        except DistNetworkError as error:
            raise ResourceError("the leading process has ended, and the job with it") from error
        pieces = [f"{name}.{number}" for number in range(int(self._store.get(name)))]
        data = b"".join(self._store.get(piece) for piece in pieces)
        for piece in (*pieces, name):  # the name last: after that the process of the store may end
            self._store.delete_key(piece)
        return pickle.loads(data)


def _serve(mailbox: _Mailbox, rank: int, worker: Worker) -> Any:
    """Runs the tasks of a process that does not lead, until there are no more; returns the job's outcome."""
    for number in count():
        payload, outcome = mailbox.take(f"task/{rank}/{number}")
        if outcome is not None:
            return outcome
        if not mailbox.has("end"):
            done = _outcome(worker, payload)
            if isinstance(done[1], KeyboardInterrupt | SystemExit):
                raise done[1]
            mailbox.put(f"result/{rank}/{number}", done)
    raise AssertionError


class RanksPool:
    """The pool of rank 0, which runs tasks itself while the other processes, if any, run theirs."""

    def __init__(self, worker: Worker, size: int = 1, mailbox: Any = None) -> None:
        self._mailbox, self.size, self._worker = mailbox, size, worker
        self._sent = dict.fromkeys(range(1, size), 0)

    def map(self, tasks: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """See `Pool`."""
        tasks = iter(tasks)
        waiting: dict[int, deque[tuple[str, Any]]] = {rank: deque() for rank in self._sent}

        def send(most: int) -> None:
            for rank, own in waiting.items():
                if len(own) < most and (task := next(tasks, None)) is not None:
                    own.append((self._send(rank, (task[1], None)), task[0]))

        while True:
            for own in waiting.values():
                while own and self._mailbox.has(own[0][0]):
                    name, key = own.popleft()
                    yield key, _opened(self._mailbox.take(name))
            # One task for each process, including this one; then the next ones of the others.
            send(1)
            task = next(tasks, None)
            send(2)
            if task is not None:
                yield task[0], self._worker(task[1])
            elif any(waiting.values()):
                time.sleep(_CHECK_SECONDS)
            else:
                return

    def _send(self, rank: int, message: tuple[Any, Any]) -> str:
        """Sends a task, or the job's outcome; returns the name of its result."""
        number = self._sent[rank]
        self._mailbox.put(f"task/{rank}/{number}", message)
        self._sent[rank] += 1
        return f"result/{rank}/{number}"

    def end(self, outcome: tuple[Any, BaseException | None]) -> None:
        """Sends the outcome to the other processes; tasks that have not started are skipped."""
        self._mailbox.put("end", True)
        names = [self._send(rank, (None, outcome)).replace("result", "task") for rank in self._sent]
        # The store ends with this process.
        while not isinstance(outcome[1], KeyboardInterrupt) and any(map(self._mailbox.has, names)):
            time.sleep(_CHECK_SECONDS)


# ---- Ray ------------------------------------------------------------------------------------------


class _Actor:
    """A process of the cluster. Errors that the user can fix are results: retries would not help."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def work(self, number: int, payload: Any) -> tuple[int, Any, TSARankError | None]:
        try:
            return number, self._worker(payload), None
        except TSARankError as error:
            return number, None, error


@dataclass
class RayPool:
    """Runs tasks on a Ray cluster, or on this machine if there is none.

    Args:
        worker: Runs a task; it is copied to every actor.
        address: Of the cluster (`auto`, `ray://host:10001`); None starts Ray here unless `RAY_ADDRESS` is set.
        actors: Number of processes with the model.
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
        while number not in keys:  # skip the rest of an abandoned call
            try:
                number, result, error = self._pool.get_next_unordered()
            except _import_ray().exceptions.RayError as failure:
                lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
                raise ResourceError(
                    f"Ray gave the job up: {(lines or [type(failure).__name__])[-1]}; finished work is kept, run the "
                    "same command again to continue"
                ) from failure
        if error is not None:
            raise error
        return keys.pop(number), result


def start_ray(address: str | None, cpus: float) -> Any:
    """Ray, connected to a cluster, or started on this machine with so many CPUs; and whether it was started here.

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
    except Exception as error:  # Ray raises plain exceptions too if a node does not start in time
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise ResourceError(f"no Ray at {where}: {str(error).strip().splitlines()[0]}") from error
    return ray, True


def _import_ray() -> Any:
    require("ray.util", "ray", "--ray")
    return require("ray")

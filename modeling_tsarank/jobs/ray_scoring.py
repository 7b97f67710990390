"""Bulk scoring on a Ray cluster through Ray Data: actors hold the model, a shard is the unit of work and of retry.

The input and the output folder must be on a file system that all machines see. A machine that dies loses the shards it
was at; Ray gives them to another one, and a shard's file appears whole or not at all. The shards, and so the results,
are those of the local engine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from .. import ranking_errors
from ..ranking_errors import ResourceError, TSARankError
from .bulk_pairs import Shard, read_shards
from .bulk_scoring import PreparedJob, claim_for_model, load_model, score_shard


logger = logging.getLogger(__name__)

# How often Ray gives a shard to another actor when the one that had it is gone.
_RETRIES = 3


class ShardActor:
    """A process of the cluster that holds the model; Ray Data calls it with one shard at a time.

    An error that the user can mend is a result, not an exception: no retry would change it, and Ray would wrap it.
    """

    def __init__(self, prepared: PreparedJob) -> None:
        self.prepared = prepared
        self.model: Any = None
        self.digest = ""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(**{name: int(value) for name, value in row.items()})
        try:
            if self.model is None:
                self.model = load_model(self.prepared.job)
                self.digest = claim_for_model(self.prepared, self.model)
            # A shard without pairs stands for the check of the model alone.
            for _, rows in read_shards(self.prepared.files, [shard] if shard.rows else []):
                score_shard(self.prepared, self.model, shard, rows, self.digest)
        except TSARankError as error:
            return {**row, "error": type(error).__name__, "message": str(error)}
        return {**row, "error": "", "message": ""}


class RayEngine:
    """Does the shards of a job on a Ray cluster, or on this machine where there is none.

    Parameters:
        address: of the cluster (`auto`, `ray://host:10001`); `None` starts Ray here unless `RAY_ADDRESS` names one.
        actors: how many processes hold the model.
        cpus, gpus: of each actor.

    Raises `ResourceError` if Ray is not installed or cannot be reached; what an actor raises is raised here.
    """

    def __init__(self, address: str | None = None, actors: int = 1, cpus: float = 1, gpus: float = 0) -> None:
        self.address, self.actors, self.cpus, self.gpus = address, actors, cpus, gpus

    def __call__(self, prepared: PreparedJob, todo: Sequence[Shard], done: Callable[[Shard], None]) -> None:
        ray = _import_ray()
        started = not ray.is_initialized()
        if started:
            self._start(ray)
        # The actors need the job, not the list of all its shards.
        sent = replace(prepared, shards=[])
        todo = todo or [replace(prepared.shards[0], rows=0)]
        try:
            for row in self._rows(ray, sent, todo):
                kind, message = row.pop("error"), row.pop("message")
                if kind:
                    raise getattr(ranking_errors, kind)(message)
                done(Shard(**{name: int(value) for name, value in row.items()}))
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise ResourceError(
                f"Ray gave the job up: {lines[-1]}; what is finished stays, run the same command again to go on"
            ) from error
        finally:
            if started:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {}
        if self.address is None and "RAY_ADDRESS" not in os.environ:
            # Shards are read and written by the actors themselves: Ray carries only their numbers.
            options = {
                "num_cpus": max(self.actors * self.cpus, 1) + 1,
                "object_store_memory": 128 << 20,
                "include_dashboard": False,
            }
        try:
            ray.init(address=self.address, logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            where = self.address or os.environ.get("RAY_ADDRESS") or "this machine"
            raise ResourceError(f"no Ray at {where}: {str(error).strip().splitlines()[0]}") from error

    def _rows(self, ray: Any, prepared: PreparedJob, todo: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # One block a shard: blocks are what Ray Data schedules and repeats.
        shards = ray.data.from_items([asdict(shard) for shard in todo], override_num_blocks=len(todo))
        scored = shards.map(
            ShardActor,
            fn_constructor_kwargs={"prepared": prepared},
            compute=ray.data.ActorPoolStrategy(size=self.actors),
            num_cpus=self.cpus,
            num_gpus=self.gpus or None,
            max_restarts=_RETRIES,
            max_task_retries=_RETRIES,
        )
        yield from scored.iter_rows()


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ResourceError("--engine ray needs Ray Data: run pip install 'tsarank[ray]'") from error
    return ray

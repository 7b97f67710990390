"""The service on a Ray cluster (Ray Serve): several replicas of one application, scaled by waiting requests."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..jobs.pools import start_ray
from ..ranking_errors import ResourceError


logger = logging.getLogger("modeling_tsarank.serving")

# Concurrent requests of a replica, from which its batches are formed.
_ONGOING = 64
_NAME = "tsarank"


@dataclass(frozen=True)
class Replicas:
    """The settings of the application on Ray.

    Attributes:
        address: Of the cluster (`auto`, `ray://host:10001`); None starts Ray on this machine.
        least, most: Minimum and maximum number of replicas, scaled by waiting requests.
        cpus, gpus: Of each replica.
    """

    address: str | None = None
    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0


def serve_on_ray(make_app: Callable[[], Any], host: str, port: int, replicas: Replicas) -> int:
    """Serves until SIGINT or SIGTERM; 0 then.

    Args:
        make_app: Creates the ASGI application, in every replica; it is copied there.

    Raises:
        ResourceError: Ray is missing, cannot be reached, or no replica starts.
    """
    ray, started = start_ray(replicas.address, replicas.most * replicas.cpus + 1)
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _deploy(make_app, host, port, replicas)
        logger.info("%d replicas listen on %s, port %d", replicas.least, host, port)
        stopped.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        from ray import serve

        serve.delete(_NAME)
        if started:
            serve.shutdown()
            ray.shutdown()
    return 0


def _deploy(make_app: Callable[[], Any], host: str, port: int, replicas: Replicas) -> None:
    from ray import serve

    def build() -> Any:  # Ray Serve expects a plain function, which it calls in each replica
        return make_app()

    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        bounds = {"min_replicas": replicas.least, "max_replicas": replicas.most}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": 4}}
    application = serve.deployment(
        name=_NAME,
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=_ONGOING,
        **scaling,
    )(serve.ingress(build)())
    serve.start(http_options={"host": host, "port": port})
    try:
        serve.run(application.bind(), name=_NAME)
    except Exception as error:  # Ray raises plain exceptions; the replica's traceback is in its status
        found = serve.status().applications[_NAME].deployments.values()
        lines = [line.strip() for one in found for line in one.message.splitlines() if "Error: " in line]
        raise ResourceError(f"no replica started: {lines[-1] if lines else str(error)}") from error

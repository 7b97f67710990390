"""The command-line options for the processes of a job."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..cli.command_line import real, whole
from ..ranking_errors import InputError
from .pools import Pool, RayPool, Result, Worker, lead


def add_pool_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that can run in several processes; see `with_pool`."""
    group = parser.add_argument_group(
        "several processes or machines",
        "Started by accelerate launch or torchrun, all processes share the work. The result is the same, and only the "
        "first process reads and writes files.",
    )
    add_ray_arguments(group, "actor", "work on")


def add_ray_arguments(group: Any, process: str, work: str) -> None:
    """Adds `--ray`, and the number and resources of its processes: `--actors`, `--actor-cpus`, … for "actor"."""
    most = {"most": 65_536}
    group.add_argument(
        "--ray", metavar="ADDRESS", help=f"{work} a Ray cluster: auto, ray://host:10001, or local for this machine"
    )
    group.add_argument(f"--{process}s", type=whole(**most), default=1, metavar="N", help="Ray processes (default 1)")
    group.add_argument(
        f"--{process}-cpus", type=real(above=0, **most), default=1, metavar="N", help="CPUs of each (default 1)"
    )
    group.add_argument(
        f"--{process}-gpus", type=real(least=0, **most), default=0, metavar="N", help="GPUs of each (default 0)"
    )


def check_ray_arguments(args: argparse.Namespace, process: str) -> None:
    """Raises `InputError` for an option of `add_ray_arguments` that is given without `--ray`."""
    usual = {f"{process}s": 1, f"max_{process}s": None, f"{process}_cpus": 1, f"{process}_gpus": 0}
    for name, value in usual.items():
        if args.ray is None and getattr(args, name, value) != value:
            raise InputError(f"--{name.replace('_', '-')} has no effect without --ray; add --ray, or leave it out")


def with_pool(args: argparse.Namespace, work: Callable[[Pool], Result], worker: Worker) -> Result:
    """Calls `work` with the pool that `add_pool_arguments` describes; see `lead`."""
    check_ray_arguments(args, "actor")
    if args.ray is None:
        return lead(work, worker)
    address = None if args.ray == "local" else args.ray
    with RayPool(worker, address, args.actors, args.actor_cpus, args.actor_gpus) as pool:
        return work(pool)

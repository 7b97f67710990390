"""Calls in processes of their own, as torchrun numbers them: forked, so that nothing is imported again."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any


FORK = multiprocessing.get_context("fork")


def start(count: int, call: Callable[[int], Any]) -> list[BaseProcess]:
    """Starts `call` with the number of its process in each; of several, they find each other by the environment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    def run(rank: int) -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        call(rank)

    processes: list[BaseProcess] = [FORK.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def join(processes: list[BaseProcess], seconds: float = 120) -> None:
    """Waits for their ends and checks that each ended well."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * len(codes)


def together(count: int, call: Callable[[], Any], folder: Path) -> list[Any]:
    """What `call` returned or raised in each process."""

    def run(rank: int) -> None:
        try:
            outcome: Any = call()
        except BaseException as error:
            outcome = error
        (folder / f"outcome{rank}").write_bytes(pickle.dumps(outcome))

    join(start(count, run))
    return [pickle.loads((folder / f"outcome{rank}").read_bytes()) for rank in range(count)]

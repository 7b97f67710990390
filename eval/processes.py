"""The processes that `accelerate launch` starts, or the single one of an ordinary run."""

from __future__ import annotations

import atexit
import functools
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from modeling_tsarank.ranking_errors import TSARankError


Result = TypeVar("Result")
SETTLING_SECONDS = 0.5


def settle_gloo() -> None:
    """Gives Gloo's threads the time to drop the tensors of the last exchange, in a process that is one of several.

    A Gloo thread drops them some time after the exchange has returned, and needs Python's lock for it. A process that
    ends, or destroys its group, before that is aborted ("terminate called without an active exception"), or waits for
    the thread for ever (torch 2.13). Threads that have dropped them need the lock no more.
    """
    import torch.distributed as distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return
    if distributed.get_world_size() > 1 and "gloo" in distributed.get_backend():
        time.sleep(SETTLING_SECONDS)  # without the lock


@functools.cache
def settle_gloo_at_exit() -> None:
    """Calls `settle_gloo` when the process ends, while Python still runs; once, however often it is asked for."""
    atexit.register(settle_gloo)


class Processes:
    """This process's place among its peers, with the two meetings an evaluation needs.

    Attributes:
        index: Rank of this process, from 0.
        count: Number of processes.
        is_main: True for the process that reads inputs and writes results.
    """

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState

        # Without `cpu`, accelerate takes each of several processes on a machine without an accelerator for a lone one.
        cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
        # A first stage may take hours on the main process while the others wait: the default of 10 minutes is short.
        self._state = PartialState(cpu=cpu, timeout=timedelta(days=2))
        settle_gloo_at_exit()
        self.index: int = self._state.process_index
        self.count: int = self._state.num_processes
        self.is_main: bool = self._state.is_main_process

    @property
    def device(self) -> Any:
        """The device that belongs to this process, or None in an ordinary run, where the model chooses."""
        return self._state.device if self.count > 1 else None

    def wait(self) -> None:
        """Returns once every process has come here."""
        self._state.wait_for_everyone()

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Runs `work` in the main process and hands its (picklable) result to all.

        Raises:
            TSARankError: the error that `work` raised, in every process, so that none waits for a peer that failed.
        """
        if self.count == 1:
            return work()
        from accelerate.utils import broadcast_object_list

        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = work()
            except TSARankError as error:
                outcome[1] = error
        broadcast_object_list(outcome, from_process=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

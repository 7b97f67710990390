"""The processes that `accelerate launch` starts, or the single one of an ordinary run."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from modeling_tsarank.ranking_errors import TSARankError


Result = TypeVar("Result")


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

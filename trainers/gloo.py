"""How a process that is one of several ends, where they exchange tensors with Gloo."""

from __future__ import annotations

import atexit
import functools
import time


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

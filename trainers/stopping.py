"""Trainings stopped by a signal: all processes end, one line says how to resume, the exit status is a shell's."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# Set for the processes that `tsarank train` starts: the rank of the process that reports for them.
LAUNCHER = "TSARANK_LAUNCHER"
_PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


class StoppedError(KeyboardInterrupt):
    """A signal requested the end of this process; libraries treat it as a keyboard interrupt.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


def raise_stopped(number: int) -> NoReturn:
    """Default action of a process on its first signal."""
    raise StoppedError(number)


@contextlib.contextmanager
def stopping(act: Callable[[int], object] = raise_stopped) -> Iterator[list[int]]:
    """Calls `act` with the number of the first termination signal; later ones have no effect.

    Yields the list that receives the number. Ignored signals stay ignored (nohup). Outside the main thread, the only
    one that receives signals, nothing is changed.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if not received:
            received.append(number)
            act(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for one in SIGNALS:
            if signal.getsignal(one) is not signal.SIG_IGN:
                before[one] = signal.signal(one, handle)
    try:
        if hasattr(signal, "pthread_sigmask"):
            # A launcher starts this process with signals blocked; a pending one is handled here.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Blocks signals: a process started in the body receives none before it enters `stopping`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_launcher() -> None:
    """On Linux, lets the kernel terminate this process when its launcher is killed.

    Otherwise `accelerate launch` with one process, or any killed launcher, would leave it training.
    """
    parent = os.getppid()
    if sys.platform == "linux" and (os.environ.get(LAUNCHER) == str(parent) or _is_launcher(parent)):
        ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def _is_launcher(process: int) -> bool:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        return re.search(rb"accelerate|torchrun|torch[./]distributed", command) is not None
    return False


def exit_status(number: int) -> int:
    """A shell's exit status for a process ended by a signal."""
    return 128 + number


def stopped_line(number: int, arguments: Sequence[str]) -> str:
    """The one-line report of a stopped training, from its script's options."""
    from modeling_tsarank.ranking_errors import TSARankError
    from modeling_tsarank.trainers.recipe_files import config_options

    word = _WORDS.get(signal.Signals(number), f"stopped by {signal.Signals(number).name}")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--output_dir", "--output-dir")
    try:
        rest, options = config_options(list(arguments))
        folder = parser.parse_known_args(rest)[0].output_dir or options.get("output_dir") or "trainer_output"
    except (TSARankError, argparse.ArgumentError):
        return f"tsarank: {word}"
    # By name only: verifying them would take a while, and `auto` does so.
    steps = [int(path.name[11:]) for path in Path(str(folder)).glob("checkpoint-*") if path.name[11:].isdecimal()]
    if not steps:
        return f"tsarank: {word} before the first checkpoint; nothing was saved"
    return f"tsarank: {word}; the same command with --resume_from_checkpoint auto resumes from checkpoint-{max(steps)}"

"""Running batches: progress bar, cancellation, and one-line errors that say what to change."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from tqdm.auto import tqdm

from ..ranking_errors import ModelError, ResourceError
from ..ranking_scoring import RankingCancelled, plan_batches


# A bar is shown only for work that takes a while.
_PROGRESS_FROM = 64


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator has no exception class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def memory_errors(batch_tokens: int, longest: int) -> Iterator[None]:
    """Turns out-of-memory and unknown-token errors into one line that says what to change."""
    try:
        yield
    except IndexError as error:
        if "index out of range in self" not in str(error):  # torch's message for an unknown token id
            raise
        raise ModelError(
            "the tokenizer produced a token id beyond the model's embeddings; use the model's own tokenizer"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        advice = (
            f"lower batch_tokens (now {batch_tokens})"
            if batch_tokens > longest
            else "lower max_length or use a smaller model or dtype"
        )
        message = f"out of memory on a batch whose longest sequence has {longest} tokens; {advice}"
        raise ResourceError(message) from error


class Progress:
    """A progress bar, and a check for cancellation before every batch.

    Parameters:
        total: number of pairs.
        show_progress: `None` shows the bar on a terminal when the work takes a while.
        stop: called by `check`; true cancels.
    """

    def __init__(self, total: int, show_progress: bool | None = None, stop: Callable[[], bool] | None = None) -> None:
        shown = show_progress if show_progress is not None else (total >= _PROGRESS_FROM and sys.stderr.isatty())
        self._bar = tqdm(total=total, desc="scoring", unit="pair", disable=not shown, smoothing=0.1)
        self._stop = stop

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def check(self) -> None:
        """Raises `RankingCancelled` if `stop` returns true."""
        if self._stop is not None and self._stop():
            raise RankingCancelled("scoring was cancelled")

    def add(self, count: int) -> None:
        """Advances by `count` pairs."""
        self._bar.update(count)


def run_batches(
    lengths: Sequence[int], batch_tokens: int, run: Callable[[Sequence[int]], None], progress: Progress
) -> None:
    """Calls `run` on every planned batch of task indexes; `run` stores its results.

    Parameters:
        lengths: tokens of each task, counted against the budget.

    Raises `ResourceError` when memory runs out.
    """
    for batch in plan_batches(lengths, batch_tokens):
        progress.check()
        with memory_errors(batch_tokens, lengths[batch[0]]):
            run(batch)
        progress.add(len(batch))

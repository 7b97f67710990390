"""Running many scoring tasks through a model: batches under a token budget, progress, cancelling, honest failures."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from tqdm.auto import tqdm

from .ranking_errors import ModelError, NonFiniteScoreError, ResourceError
from .ranking_options import whole_number


# Measured on two CPU cores: larger batches gain nothing and cost memory. An accelerator wants more work at a time.
CPU_BATCH_TOKENS = 2048
ACCELERATOR_BATCH_TOKENS = 32768
# Rows whose numbers of read tokens differ by less count as reading the same.
SAME_READ = 8
# A bar is shown only when it would stay on screen for a while.
_PROGRESS_FROM = 64


class RankingCancelled(Exception):  # noqa: N818 - a request that was granted, not an error
    """The caller's `stop` returned true; no scores are returned, the model stays usable."""


def default_batch_tokens(device: torch.device) -> int:
    """Token budget of one batch where the user named none."""
    return CPU_BATCH_TOKENS if device.type == "cpu" else ACCELERATOR_BATCH_TOKENS


def check_batch_tokens(batch_tokens: int | None, device: torch.device) -> int:
    """The given budget or the default. Raises `InputError` unless it is a positive integer."""
    if batch_tokens is None:
        return default_batch_tokens(device)
    return whole_number(batch_tokens, "batch_tokens")


def plan_batches(
    lengths: Sequence[int], batch_tokens: int, padded: bool = True, read: Sequence[int] | None = None
) -> list[list[int]]:
    """Indexes grouped into batches whose rows × longest row is at most `batch_tokens` (or a single longer row).

    Rows are sorted by length, so hardly anything is padded; the longest come first, so a machine too small for the
    work says so at once and not at the end. With `padded=False` the budget bounds the sum of a batch's lengths.
    Where a length counts more than the tokens that its row reads, `read` gives these: rows that read about as many
    then come together, and by length only among them.
    """
    order = sorted(
        range(len(lengths)), key=lambda i: (-(read[i] // SAME_READ) if read is not None else 0, -lengths[i], i)
    )
    batches: list[list[int]] = []
    total = longest = 0
    for index in order:
        total += lengths[index]
        longest = max(longest, lengths[index])
        if batches and (total if not padded else (len(batches[-1]) + 1) * longest) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
            total = longest = lengths[index]
    return batches


def pad_right(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `(rows, longest)` filled up on the right with `value`, and their 0/1 mask."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), value, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def align_left(attention_mask: torch.Tensor, *rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each `(rows, length)` tensor with the positions that the mask keeps moved to the front, order kept.

    However a batch was padded, this makes it padded on the right. Left padding with a mask would ask every backbone to
    cope with rows that attend to nothing, which some (BLOOM, Gemma 2 in float64) answer with NaN.
    """
    order = torch.argsort((attention_mask == 0).to(torch.uint8), dim=1, stable=True)
    return tuple(row.gather(1, order) for row in rows)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator has no exception class of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def memory_errors(batch_tokens: int, longest: int) -> Iterator[None]:
    """Turns running out of memory, and tokens that the model does not know, into one line that says what to change."""
    try:
        yield
    except IndexError as error:
        if "index out of range in self" not in str(error):  # what torch says of an embedding
            raise
        raise ModelError(
            "the tokenizer gives a token that the model has no embedding of; are both of one model?"
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


def run_batches(
    lengths: Sequence[int],
    batch_tokens: int,
    run: Callable[[Sequence[int]], None],
    weights: Sequence[int] | None = None,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Calls `run` on every planned batch of task indexes.

    Parameters:
        lengths: tokens of each task, the measure of the budget.
        run: does the tasks with the given indexes and keeps their results.
        weights: what one task counts on the progress bar (default 1).
        show_progress: `None` shows the bar on a terminal when there is enough to do.
        stop: asked before every batch; `RankingCancelled` is raised when it answers true.

    Raises `ResourceError` when memory runs out.
    """
    total = sum(weights) if weights is not None else len(lengths)
    shown = show_progress if show_progress is not None else (total >= _PROGRESS_FROM and sys.stderr.isatty())
    with tqdm(total=total, desc="scoring", unit="pair", disable=not shown, smoothing=0.1) as bar:
        for batch in plan_batches(lengths, batch_tokens):
            if stop is not None and stop():
                raise RankingCancelled("scoring was cancelled")
            with memory_errors(batch_tokens, lengths[batch[0]]):
                run(batch)
            bar.update(len(batch) if weights is None else sum(weights[i] for i in batch))


def check_finite(scores: Sequence[float], describe: Callable[[int], str]) -> None:
    """Raises `NonFiniteScoreError` naming the first task whose score is NaN or infinite."""
    for i, score in enumerate(scores):
        if not math.isfinite(score):
            bad = sum(not math.isfinite(s) for s in scores)
            raise NonFiniteScoreError(
                f"the model gave the score {score} for {describe(i)} ({bad} of {len(scores)} scores are not finite); "
                "use dtype float32, or check the checkpoint for NaN weights"
            )


def gathered_log_probs(logits: torch.Tensor, targets: torch.Tensor, chunk: int | None = None) -> torch.Tensor:
    """log p(target) at each position, float32: logits `(positions, vocabulary)`, targets `(positions,)`.

    Chunked, so that no float32 copy of all positions × vocabulary is ever made; the normaliser is summed in float32
    whatever the dtype of the logits. On a CPU a chunk of 16 rows stays in the cache between the passes over it;
    an accelerator wants few and large ones. A row's result does not depend on the others.
    """
    chunk = chunk or (16 if logits.device.type == "cpu" else 2048)
    parts = []
    for start in range(0, len(targets), chunk):
        rows = logits[start : start + chunk].float()
        picked = rows.gather(-1, targets[start : start + chunk, None]).squeeze(-1)
        # The sum of a single row is split between a CPU's threads, that of one among several is not.
        whole = torch.cat([rows, rows]) if len(rows) == 1 and rows.device.type == "cpu" else rows
        parts.append(picked - whole.logsumexp(-1)[: len(rows)])
    return torch.cat(parts) if parts else logits.new_zeros(0, dtype=torch.float32)

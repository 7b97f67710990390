"""Gives every process the same number of batches; the rows that pad them do not count."""

from __future__ import annotations

import atexit
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader, Dataset
from transformers import Trainer

from modeling_tsarank.ranking_errors import InputError


class FilledBatches(BatchSampler):
    """Full batches, a multiple of `processes` of them; padding rows have indices from `rows` on.

    By default, accelerate pads the last batches with the first rows, which then count twice.

    Args:
        batch_sampler: yields the batches of one epoch, of which the last may be short.
        rows: length of the dataset.
        processes: number of processes that take batches in turn.
    """

    def __init__(self, batch_sampler: Any, rows: int, processes: int) -> None:
        super().__init__(batch_sampler.sampler, batch_sampler.batch_size, drop_last=False)
        self.batch_sampler, self.rows, self.processes = batch_sampler, rows, processes

    def __len__(self) -> int:
        return math.ceil(len(self.batch_sampler) / self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        count = 0
        for batch in self.batch_sampler:
            count += 1
            yield [*batch, *range(self.rows, self.rows + self.batch_size - len(batch))]
        for _ in range(-count % self.processes):
            yield list(range(self.rows, self.rows + self.batch_size))


@dataclass(eq=False)
class FillableRows(Dataset):
    """Rows of a dataset, plus marked padding rows for indices beyond its end.

    Args:
        rows: by index.
        filling: makes a padding row from a real one.
    """

    rows: Any
    filling: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        real = self.rows[index % len(self.rows)]
        return real if index < len(self.rows) else self.filling(real)


class EvenBatchesTrainer(Trainer):
    """A `Trainer` whose epoch contains every row exactly once, for any number of rows and processes."""

    def filling_row(self, row: Any) -> Any:
        """A padding row like this one that does not count."""
        raise NotImplementedError

    def _get_dataloader(  # type: ignore[override]
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, **kwargs: Any
    ) -> DataLoader:
        processes = self.accelerator.num_processes
        if processes == 1:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, **kwargs)
        if self.accelerator.dispatch_batches:
            raise InputError("dispatch_batches does not support batches of ragged lists; remove it")
        rows = self._remove_unused_columns(dataset, description) if hasattr(dataset, "column_names") else dataset
        loader = super()._get_dataloader(
            FillableRows(rows, self.filling_row),
            description,
            batch_size,
            None if sampler_fn is None else lambda _: sampler_fn(dataset),
            **kwargs,
        )
        shard: Any = loader.batch_sampler
        # Samplers that shard the rows themselves, or that drop the last batch, are not changed.
        if isinstance(shard, BatchSamplerShard) and shard.num_processes > 1 and not shard.drop_last:
            shard.batch_sampler = FilledBatches(
                shard.batch_sampler, len(rows), 1 if shard.split_batches else processes
            )
        return loader


# ---- the end of a process ------------------------------------------------------------------------------


SETTLING_SECONDS = 0.5


def settle_gloo() -> None:
    """Gives Gloo's threads time to release the tensors of the last collective, if there are several processes.

    A Gloo thread releases them some time after the collective has returned, and needs the GIL for it. A process that
    exits, or destroys its group, before that is aborted ("terminate called without an active exception"), or waits for
    the thread forever (torch 2.13). Threads that have released them no longer need the GIL.
    """
    import torch.distributed as distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return
    if distributed.get_world_size() > 1 and "gloo" in distributed.get_backend():
        time.sleep(SETTLING_SECONDS)  # releases the GIL


@functools.cache
def settle_gloo_at_exit() -> None:
    """Calls `settle_gloo` at process exit, while Python still runs; registered only once."""
    atexit.register(settle_gloo)

"""Every process gets equally many batches, and the rows that fill them up count for nothing."""

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
    """Full batches, a multiple of `processes` of them; what fills them up has indexes from `rows` on.

    accelerate, left to itself, fills the last batches with the first rows once more, and those count twice then.

    Args:
        batch_sampler: gives the batches of one epoch, of which the last may be short.
        rows: length of the dataset.
        processes: how many processes take a batch in turn.
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
    """Rows of a dataset, and for indexes beyond them a row that is marked as filling.

    Args:
        rows: by index.
        filling: makes a filling row of a real one.
    """

    rows: Any
    filling: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        real = self.rows[index % len(self.rows)]
        return real if index < len(self.rows) else self.filling(real)


class EvenBatchesTrainer(Trainer):
    """A `Trainer` whose epoch is every row once, for any number of rows and processes."""

    def filling_row(self, row: Any) -> Any:
        """A row like this one that counts for nothing."""
        raise NotImplementedError

    def _get_dataloader(  # type: ignore[override]
        self, dataset: Any, description: str, batch_size: int, sampler_fn: Any = None, **kwargs: Any
    ) -> DataLoader:
        processes = self.accelerator.num_processes
        if processes == 1:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, **kwargs)
        if self.accelerator.dispatch_batches:
            raise InputError("dispatch_batches does not go with batches of ragged lists; leave it out")
        rows = self._remove_unused_columns(dataset, description) if hasattr(dataset, "column_names") else dataset
        loader = super()._get_dataloader(
            FillableRows(rows, self.filling_row),
            description,
            batch_size,
            None if sampler_fn is None else lambda _: sampler_fn(dataset),
            **kwargs,
        )
        shard: Any = loader.batch_sampler
        # A sampler that shares out the rows itself is left alone, and so is one that drops what is short.
        if isinstance(shard, BatchSamplerShard) and shard.num_processes > 1 and not shard.drop_last:
            shard.batch_sampler = FilledBatches(
                shard.batch_sampler, len(rows), 1 if shard.split_batches else processes
            )
        return loader


# ---- the end of a process ------------------------------------------------------------------------------


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

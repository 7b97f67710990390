"""Failures of a batch that say what to change."""

from __future__ import annotations

import pytest
import torch

from modeling_tsarank.engine.batches import Progress, run_batches
from modeling_tsarank.ranking_errors import ModelError, ResourceError


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    ],
)
def test_running_out_of_memory_says_what_to_lower(error) -> None:
    def run(_):
        raise error

    with pytest.raises(ResourceError, match=r"lower batch_tokens \(now 100\)"):
        run_batches([7], 100, run, Progress(1))
    with pytest.raises(ResourceError, match="lower max_length"):
        run_batches([700], 100, run, Progress(1))


def test_a_real_allocation_failure_is_recognised() -> None:
    def run(_):
        torch.empty(1 << 60)

    with pytest.raises(ResourceError, match="out of memory"):
        run_batches([7], 100, run, Progress(1))


def test_a_token_that_the_model_has_no_embedding_of_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="beyond the model's embeddings"):
        run_batches([1], 10, lambda _: torch.nn.Embedding(4, 2)(torch.tensor([4])), Progress(1))
    with pytest.raises(IndexError):
        run_batches([1], 10, lambda _: [][1], Progress(1))


def test_other_errors_pass_through() -> None:
    def run(_):
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_batches([7], 100, run, Progress(1))

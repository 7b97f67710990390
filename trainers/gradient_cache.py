"""Exact gradients of a listwise loss over more documents than fit in memory at once.

A listwise loss couples all documents of a group, but only through one number (or a few) per document. So the batch is
split into chunks and processed in two passes:

1. every chunk runs without a graph, which gives the values v (token log-probabilities, or scores) of all documents;
   the loss L(v) and its gradient g = dL/dv are computed from these small vectors;
2. every chunk runs again with a graph, and the surrogate sum(v * g), g held constant, is back-propagated: by the
   chain rule its parameter gradient is that chunk's share of dL/dtheta.

The sum over the chunks is the exact gradient of the whole batch; memory is that of one chunk. The price is one more
forward pass. See Gao et al. 2021, Scaling deep contrastive learning batch size under memory limited setup (arXiv
2101.06983), who do this for contrastive losses; dropout masks are replayed as in their work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_scoring import plan_batches


Values = dict[str, Tensor]


@dataclass(frozen=True)
class Chunk:
    """A part of a batch's (query, document) pairs that runs at once.

    Attributes:
        pairs: indices of the pairs.
        slots: `(values,)` int64, indices of the chunk's values in the whole batch.
        idle: true for a chunk that repeats a pair to keep processes in step; its values do not count.
    """

    pairs: tuple[int, ...]
    slots: Tensor
    idle: bool = False


def plan_chunks(lengths: Sequence[int], values: Sequence[int], chunk_tokens: int | None) -> list[Chunk]:
    """Splits pairs into chunks of at most `chunk_tokens` padded tokens (a longer single pair is its own chunk).

    Args:
        lengths: tokens of each pair.
        values: number of values of each pair: its query's tokens, or 1 for one score.
        chunk_tokens: `None` puts everything in one chunk.

    Raises:
        InputError: the batch has no pair.
    """
    if not lengths:
        raise InputError("a batch has no (query, document) pair; at least one is needed")
    plan = [list(range(len(lengths)))] if chunk_tokens is None else plan_batches(lengths, chunk_tokens)
    if len(plan) == 1:
        plan = [sorted(plan[0])]
    starts = torch.tensor([0, *values]).cumsum(0).tolist()
    chunks = []
    for pairs in plan:
        slots = torch.cat([torch.arange(starts[pair], starts[pair + 1]) for pair in pairs])
        chunks.append(Chunk(tuple(pairs), slots))
    return chunks


def add_idle_chunks(chunks: Sequence[Chunk], count: int) -> list[Chunk]:
    """The same chunks, padded to `count` with idle ones at the front.

    With sharded parameters (FSDP, ZeRO-3) every forward is a collective operation, so all processes must run the same
    number of them. Idle chunks come first because gradients are synchronized at the last one.
    """
    idle = Chunk(chunks[-1].pairs[-1:], torch.zeros(0, dtype=torch.int64), idle=True)
    return [idle] * (count - len(chunks)) + list(chunks)


class RandomState:
    """The random generator states of the CPU and of one device, to replay dropout masks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.other = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Runs its body from this state, and restores the generators afterwards."""
        devices = [] if self.other is None else [self.device]
        device_type = "cuda" if self.other is None else self.device.type
        with torch.random.fork_rng(devices=devices, device_type=device_type):
            torch.set_rng_state(self.cpu)
            if self.other is not None:
                torch.get_device_module(self.device).set_rng_state(self.other, self.device)
            yield


def run_chunks(chunks: Sequence[Chunk], size: int, run: Callable[[Chunk], Values]) -> Values:
    """The values of all chunks in the batch's order, `(size,)` each; with their graph if gradients are enabled."""
    return _assemble(chunks, size, [run(chunk) for chunk in chunks])


def _assemble(chunks: Sequence[Chunk], size: int, parts: Sequence[Values]) -> Values:
    real = [(chunk, part) for chunk, part in zip(chunks, parts, strict=True) if not chunk.idle]
    # Index of the batch's slot i among the concatenated values.
    order = torch.empty(size, dtype=torch.int64)
    order[torch.cat([chunk.slots for chunk, _ in real])] = torch.arange(size)
    result = {}
    for name in real[0][1]:
        values = torch.cat([part[name] for _, part in real])
        result[name] = values[order.to(values.device)]
    return result


def cached_backward(
    chunks: Sequence[Chunk],
    size: int,
    run: Callable[[Chunk, bool], Values],
    objective: Callable[[Values], Tensor],
    backward: Callable[[Tensor], None],
    synchronizing: Callable[[bool], AbstractContextManager[None]],
    device: torch.device,
    linear: Sequence[str] = (),
    first_pass: bool = True,
) -> Values:
    """Adds the gradient of `objective` on the whole batch to the parameters, chunk by chunk.

    Args:
        chunks: the parts of the batch.
        size: number of values in the whole batch.
        run: `run(chunk, second_pass)` returns the values of the chunk's slots; in the second pass with their graph,
            and including the values listed in `linear`.
        objective: scalar loss of the batch's values, `(size,)` each.
        backward: back-propagates a scalar.
        synchronizing: `synchronizing(last)` is entered around the forward and backward pass of a chunk; processes must
            synchronize gradients if `last` is true, in the last chunk only.
        device: device whose random generator is replayed, in addition to the CPU's.
        linear: names of values in which the objective is linear: its gradient does not depend on their value, so they
            are not computed in the first pass (the Differential Penalty needs the reference model only once).
        first_pass: off if the objective is linear in all values, so that every chunk runs only once.

    Returns:
        All values, without graph, for the loss and the log.
    """
    states, values = [], {}
    template = torch.zeros(size, device=device, dtype=torch.float32 if device.type == "mps" else torch.float64)
    if first_pass:
        parts = []
        with torch.no_grad():
            for chunk in chunks:
                states.append(RandomState(device))
                parts.append(run(chunk, False))
        values = _assemble(chunks, size, parts)
        template = torch.zeros_like(next(iter(values.values())))
    leaves = {**values, **dict.fromkeys(linear, template)}
    leaves = {name: value.detach().clone().requires_grad_() for name, value in leaves.items()}
    with torch.enable_grad():
        loss = objective(leaves)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))
    parts = []
    for number, chunk in enumerate(chunks):
        replayed = states[number].replayed() if first_pass else contextlib.nullcontext()
        with replayed, synchronizing(number == len(chunks) - 1):
            outputs = run(chunk, True)
            backward(_surrogate(chunk, outputs, gradients))
        parts.append({name: value.detach() for name, value in outputs.items()})
    # The first pass's values are those the gradient was computed from.
    return {**_assemble(chunks, size, parts), **values}


def _surrogate(chunk: Chunk, outputs: Values, gradients: Mapping[str, Tensor | None]) -> Tensor:
    """sum(v * dL/dv) of one chunk; 0, with its graph, for an idle one."""
    total: Tensor | None = None
    for name, value in outputs.items():
        gradient = gradients[name]
        if chunk.idle:
            term = (value * 0).sum()
        elif gradient is None:
            continue
        else:
            term = (value * gradient[chunk.slots.to(value.device)]).sum()
        total = term if total is None else total + term
    if total is None:
        raise InputError("the loss does not depend on the model's scores; give one of its terms a weight above 0")
    return total

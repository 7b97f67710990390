"""bfloat16 scores on a CPU that do not depend on the other rows of the batch.

The order of summation changes the last digits of a sum. In float32 that changes a score by 1e-6; in bfloat16 it flips
roundings, each flip changes everything after it, and thirty blocks later scores differ by several hundredths. So here
a row is always summed in the same order, whatever the shape of its batch:

- Libraries choose the kernel of a matrix product by the number of rows. `agreeing_rows` tests which numbers of rows
  have agreeing kernels, and `invariant_product` multiplies in blocks of these sizes, padded with zero rows.
- The attention kernel sums whole tiles of 32 positions differently from an incomplete one, and on some processors the
  number of keys decides where a sum is split. `grouped_attention` pads to whole tiles and to numbers of keys that
  agree (`agreeing_keys`), and a key is always at its own position, whether just computed or cached (`StateBlocks`).

All other operations work on each row separately.

Which kernels exist and agree depends on the processor and on torch's number of threads: scores are bitwise equal on
one machine with one number of threads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch


# Positions in a tile of the attention kernel, and keys that it processes at a time.
TILE = 32
KEY_BLOCK = 512
# Tested numbers of rows; the second for wide weights such as the output head's, which get few rows. For the embedded
# default model, all tests cost as many multiplications as a forward pass of 500 tokens.
_TRIED = (32, 64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 1792, 2048)
_TRIED_WIDE = (32, 128, 256, 512)
_WIDE = 8192
# Fixed cost of a product, in rows: its weights are repacked.
_PRODUCT_ROWS = 128
_PRODUCT_ROWS_WIDE = 256
# Number of distinct rows in a test; they repeat, so that each occurs at many places within a tile.
_DISTINCT = 23


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware; otherwise bfloat16 is several times slower."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def takes(tensor: torch.Tensor) -> bool:
    """Whether this module applies to a tensor: bfloat16 on a CPU that has it, outside of training."""
    if tensor.dtype != torch.bfloat16 or tensor.device.type != "cpu" or torch.is_grad_enabled():
        return False
    return cpu_has_bfloat16()


def whole_tiles(length: int) -> int:
    """The next multiple of `TILE`."""
    return -(-length // TILE) * TILE


@functools.cache
def agreeing_keys(width: int) -> tuple[int, ...]:
    """Numbers of keys, ascending, whose weighted sums the attention kernel computes in the order of `KEY_BLOCK` keys.

    Multiples of `TILE` up to `KEY_BLOCK`, tested as in `agreeing_rows`: keys come in pairs of equal weight and
    opposite value, so that only rounding errors remain.

    Parameters:
        width: of a head, a multiple of `TILE`.
    """
    generator = torch.Generator().manual_seed(0)
    # The kernel processes 32, 64 or 256 rows at a time: when there are fewer than 192 or 768.
    query = torch.randn(1, 1, 768, width, generator=generator).bfloat16()
    found = []
    for count in range(TILE, KEY_BLOCK, TILE):
        place = torch.randperm(count, generator=generator)
        half = torch.randn(2, count // 2, width, generator=generator)
        key, value = torch.zeros(2, KEY_BLOCK, width)
        key[place], value[place] = half[0].repeat(2, 1), torch.cat([half[1], -half[1]])
        key, value = key.bfloat16()[None, None], value.bfloat16()[None, None]
        results = []
        for rows, keys in ((TILE, KEY_BLOCK), (TILE, count), (192, count), (768, count)):
            mask = (torch.arange(keys) < count).expand(1, 1, rows, -1)
            output = torch.nn.functional.scaled_dot_product_attention(
                query[:, :, :rows], key[:, :, :keys], value[:, :, :keys], attn_mask=mask
            )
            results.append(output[:, :, :TILE])
        if all(torch.equal(result, results[0]) for result in results):
            found.append(count)
    return (*found, KEY_BLOCK)


def whole_keys(length: int, width: int) -> int:
    """The next number of keys whose sums agree; `width` is that of a head."""
    blocks, rest = divmod(length, KEY_BLOCK)
    return blocks * KEY_BLOCK + (next(count for count in agreeing_keys(width) if count >= rest) if rest else 0)


def causal_agrees(length: int, width: int) -> bool:
    """Whether the causal kernel, which skips masked tiles of keys, sums in the same order as the masked one."""
    return all(count in agreeing_keys(width) for count in range(TILE, min(length, KEY_BLOCK) + 1, TILE))


@functools.cache
def agreeing_rows(inputs: int, outputs: int, threads: int) -> tuple[int, ...]:
    """Numbers of rows, ascending, for which products with weights `(outputs, inputs)` give the same sums.

    Tested with sums whose terms cancel: only rounding errors remain, so another order of summation changes most
    results, not one in ten thousand. Of several agreeing sets, the one with the least padding.

    Parameters:
        threads: torch's number of threads, on which the choice of kernels depends too.
    """
    tried = _TRIED_WIDE if outputs > _WIDE else _TRIED
    generator = torch.Generator().manual_seed(0)
    # Columns repeat for wide weights: drawing random numbers would take longer than the products.
    columns = min(outputs, 512)
    half = torch.randn(_DISTINCT, inputs // 2, generator=generator)
    weights = torch.randn(columns, inputs // 2, generator=generator)
    place = torch.randperm(inputs // 2 * 2, generator=generator)
    rows = torch.zeros(_DISTINCT, inputs)
    rows[:, place] = torch.cat([half, half], 1)
    weight = torch.zeros(columns, inputs)
    weight[:, place] = torch.cat([weights, -weights], 1)
    rows = rows.bfloat16().repeat(-(-max(tried) // _DISTINCT), 1)
    weight = weight.bfloat16().repeat(-(-outputs // columns), 1)[:outputs].contiguous()
    found: list[tuple[torch.Tensor, list[int]]] = []
    for count in tried:
        result = torch.mm(rows[:count], weight.t())
        first = result[: min(count, _DISTINCT)]
        if not all(torch.equal(part, first[: len(part)]) for part in result.split(_DISTINCT)):
            continue  # the sums of a row depend on its place
        for reference, counts in found:
            if torch.equal(reference, first):
                counts.append(count)
                break
        else:
            found.append((first.clone(), [count]))
    # No known kernel depends on a row's place for every number of rows.
    sets = [tuple(counts) for _, counts in found] or [tried[-1:]]
    # Large batches take most of the time.
    return min(sets, key=lambda sizes: sum(count * _cost(_plan(count, sizes, outputs), outputs) for count in tried))


def _cost(plan: Sequence[int], outputs: int) -> int:
    return sum(plan) + (_PRODUCT_ROWS_WIDE if outputs > _WIDE else _PRODUCT_ROWS) * len(plan)


@functools.lru_cache(maxsize=4096)
def _plan(rows: int, sizes: tuple[int, ...], outputs: int) -> tuple[int, ...]:
    """The products, each with one of these numbers of rows, that cover `rows` rows at the lowest cost."""
    if rows <= 0:
        return ()
    if rows > 2 * sizes[-1]:
        largest = rows // sizes[-1] - 1
        return (sizes[-1],) * largest + _plan(rows - largest * sizes[-1], sizes, outputs)
    # In steps of the smallest unit, from below.
    best: list[tuple[int, ...]] = [()]
    for part in range(1, -(-rows // TILE) + 1):
        plans = ((size, *best[max(part - size // TILE, 0)]) for size in sizes)
        best.append(min(plans, key=lambda plan: _cost(plan, outputs)))
    return best[-1]


def invariant_product(rows: torch.Tensor, weight: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
    """`rows @ weight.T`, each row as if multiplied alone: `(rows, in)` and `(out, in)` give `(rows, out)`.

    The result is written to `memory`, `(at least rows, out)`, if given and large enough for the zero padding rows.
    """
    count = len(rows)
    sizes = agreeing_rows(weight.shape[1], weight.shape[0], torch.get_num_threads())
    plan = sorted(_plan(count, sizes, len(weight)), reverse=True)
    if plan == [count] and memory is None:
        return torch.mm(rows, weight.t())
    if memory is None or len(memory) < sum(plan):
        memory = rows.new_empty(sum(plan), len(weight))
    start = 0
    for size in plan:
        part = rows[start : start + size]
        if len(part) < size:
            part = torch.cat([part, part.new_zeros(size - len(part), part.shape[1])])
        torch.mm(part, weight.t(), out=memory[start : start + size])
        start += size
    return memory[:count]


class RowInvariantLinear(torch.nn.Linear):
    """A linear layer whose result for a row does not depend on the other rows, where `takes` is true."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # A quantized weight is a tensor subclass with its own products.
        plain = type(self.weight) is torch.nn.Parameter and self.weight.dtype == input.dtype
        if not (plain and takes(input) and input.numel()):
            return super().forward(input)
        result = invariant_product(input.reshape(-1, input.shape[-1]), self.weight)
        if self.bias is not None:
            result += self.bias
        return result.view(*input.shape[:-1], -1)


def make_linears_invariant(backbone: Any) -> None:
    """Turns the plain linear layers of a model into `RowInvariantLinear`; weights and names are unchanged."""
    for module in backbone.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = RowInvariantLinear

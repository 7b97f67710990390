"""Suffixes read in rows of their own, each behind its copy of the states of what it shares with others.

`SuffixRows` is what both families have of that: reading prefixes for their states, and reading on behind these.
`ranking_states` puts states from a store in the place of the first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from .document_blocks import PlacedLayer, StateBlocks, Workspace, grouped_heads, make_invariant
from .document_encoding import Groups, Layers, Shape, fill_groups, shapes_of, stack_layers
from .document_states import common_length
from .modeling_ranker import accepts
from .ranking_engine import pad_right, plan_batches
from .ranking_text import EncodedPair
from .rope_regimes import in_regimes
from .shared_prefixes import SharedPrefixes, longest_prompt, suffix


# How many kept tokens count as one read token in a batch's budget, unless the states of a batch would take more bytes.
# Every batch streams all weights from memory, so fewer batches of more rows are faster.
KEPT_WEIGHT = 16
CPU_KEPT_BYTES = 1 << 30
ACCELERATOR_KEPT_BYTES = 4 << 30


def kept_weight(shapes: Sequence[Shape], dtype: torch.dtype, batch_tokens: int, device: torch.device) -> int:
    """How many kept tokens count as one read token; at least 1, so a batch never holds fewer than when reading."""
    token = sum(shape.layers * shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes) * dtype.itemsize
    limit = CPU_KEPT_BYTES if device.type == "cpu" else ACCELERATOR_KEPT_BYTES
    return max(1, min(KEPT_WEIGHT, limit // (token * batch_tokens)))


class SuffixRows(SharedPrefixes):
    """Reading in two passes, prefixes and what stands behind them; mixed into the ranking models, whose parts it uses.

    The memory of a batch's states is kept for the next call: at most `CPU_KEPT_BYTES` at the usual `batch_tokens`.
    """

    def _document_states(
        self: Any, rows: Sequence[tuple[int, ...]], regimes: Sequence[int] | None = None
    ) -> list[Layers]:
        """Keys and values `(1, heads, tokens, head size)` of every layer for each row of token ids.

        `regimes` are those of the pairs that begin with the rows (`rope_regimes`), by default the usual one.
        """
        ids, _ = pad_right(rows, self.pad_id, self.device)
        keep = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        keep[0, 0] = True  # the head must run on something; its logits are not wanted
        cache = DynamicCache(config=self.backbone.config)
        with in_regimes(self.backbone, regimes or [0]):
            self._logits_at(ids, keep, past_key_values=cache, use_cache=True)
        layers: Sequence[Any] = cache.layers
        states = [
            [(layer.keys[i : i + 1, :, : len(row)], layer.values[i : i + 1, :, : len(row)]) for layer in layers]
            for i, row in enumerate(rows)
        ]
        self.between_calls["shapes"] = shapes_of(states[0])
        return states

    def _few_suffixes(
        self: Any,
        groups: Sequence[Sequence[EncodedPair]],
        batch_tokens: int,
        reads: Sequence[tuple[int, ...]] | None = None,
    ) -> list[list[torch.Tensor]]:
        """What `_values_at` gives for groups of few pairs whose prompts begin alike, in two passes for all groups.

        The pairs of a group are of one regime (`rope_regimes`).

        What the pairs of a group share (of `reads`, by default their longest prompts) is read in one padded batch;
        then every pair's suffix is read in a row of its own behind a copy of those states. One group after another
        would multiply few rows by all weights, twice.
        """
        reads = reads or [longest_prompt(group)[:-1] for group in groups]
        weight = kept_weight(self._state_shapes(), self.dtype, batch_tokens, self.device)
        results: list[list[torch.Tensor]] = [[] for _ in groups]
        # The states that are copied lie in memory beside their copies, so they get a quarter of what those may take.
        for part in plan_batches([len(read) for read in reads], max(batch_tokens * weight // 4, 1)):
            states: list[Groups] = [[] for _ in part]
            for few in plan_batches([len(reads[g]) for g in part], batch_tokens):
                regimes = [self._pair_regime(groups[part[k]][0]) for k in few]
                found = self._document_states([reads[part[k]] for k in few], regimes)
                for k, layers in zip(few, found, strict=True):
                    states[k] = stack_layers(layers)
            rows = [
                (pair, place, common_length(reads[g], pair.prompt))
                for place, g in enumerate(part)
                for pair in groups[g]
            ]
            behind = self._rows_behind(rows, states, weight, batch_tokens)
            for (_, place, _), values in zip(rows, behind, strict=True):
                results[part[place]].append(values)
        return results

    def _rows_behind(
        self: Any,
        rows: Sequence[tuple[EncodedPair, int, int]],
        states: Sequence[Groups],
        weight: int,
        batch_tokens: int,
    ) -> list[torch.Tensor]:
        """What `_values_at` gives for rows of (pair, index into `states`, how many tokens of those it sees)."""
        reads = [len(suffix(pair, count)) for pair, _, count in rows]
        lengths = [count // weight + read for (_, _, count), read in zip(rows, reads, strict=True)]
        found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        # Taken away for the time being, so that another thread makes one of its own.
        workspace = self.between_calls.pop("workspace", None) or Workspace()
        for part in plan_batches(lengths, batch_tokens, read=reads):
            pairs, counts = [rows[i][0] for i in part], [rows[i][2] for i in part]
            room = max(reads[i] for i in part)
            blocks = StateBlocks(self._state_shapes(), counts, room, self.dtype, self._is_invariant())
            workspace.reserve(blocks.size, self.device)
            blocks.allocate(workspace)
            for row, i in enumerate(part):
                fill_groups(states[rows[i][1]], blocks.targets(row))
            for i, values in zip(part, self._rows_from_states(pairs, blocks.cache(), counts), strict=True):
                found[i] = values
        self.between_calls["workspace"] = workspace
        return found

    def _state_shapes(self: Any) -> list[Shape]:
        """Shapes of the layers' states; where nothing was read yet, one token is read to learn them."""
        if "shapes" not in self.between_calls:
            self._document_states([(self.pad_id,)])
        return self.between_calls["shapes"]

    def _rows_from_states(
        self: Any, pairs: Sequence[EncodedPair], cache: DynamicCache, counts: Sequence[int]
    ) -> list[torch.Tensor]:
        """Each pair's query behind its own row of the cache, which holds `counts` states (`StateBlocks`)."""
        ids, mask = pad_right(
            [suffix(pair, count) for pair, count in zip(pairs, counts, strict=True)], self.pad_id, self.device
        )
        seen = torch.tensor(counts, device=self.device)
        inputs: dict[str, Any] = {}
        placed = [layer for layer in cache.layers if isinstance(layer, PlacedLayer)]
        if placed:
            ends = seen[:, None] + torch.arange(ids.shape[1], device=self.device)
            hidden = torch.arange(placed[0].get_seq_length(), device=self.device) > ends[..., None]
            scores = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            inputs["attention_mask"] = scores.masked_fill_(hidden, torch.finfo(self.dtype).min)[:, None]
        else:
            longest = max(counts)
            real = torch.arange(longest, device=self.device) >= longest - seen[:, None]
            inputs["attention_mask"] = torch.cat([real.to(mask.dtype), mask], dim=1)
        if accepts(self.backbone.forward, "position_ids"):
            inputs["position_ids"] = seen[:, None] + torch.arange(ids.shape[1], device=self.device)
        keep = mask.bool()
        for row, (pair, count) in enumerate(zip(pairs, counts, strict=True)):
            keep[row, : len(pair.prompt) - 1 - count] = False
        if self._is_invariant():
            make_invariant(self.backbone)  # for good, before attention is switched for the time being
        regimes = [self._pair_regime(pair) for pair in pairs]
        with in_regimes(self.backbone, regimes), grouped_heads(self.backbone):
            return self._values_at(pairs, ids, keep, past_key_values=cache, use_cache=True, **inputs)

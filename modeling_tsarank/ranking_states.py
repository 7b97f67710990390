"""Ranking from kept document states: what a document costs is paid once, a query pays for its own tokens.

`KeptStates` is the part of `TSARankModel` that fills a store of document states (`document_memory.StateStore`) and
scores from it. What is kept and under which key says `document_states`; a store answers with no other states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from .document_states import common_length, kept_ids, model_identity, state_key
from .modeling_ranker import accepts
from .ranking_engine import check_batch_tokens, pad_right, run_batches
from .ranking_errors import ModelError
from .ranking_text import EncodedPair, document_text


Layers = Sequence[tuple[torch.Tensor, torch.Tensor]]


def suffix(pair: EncodedPair, seen: int) -> tuple[int, ...]:
    """What a pair still reads behind the states of its first `seen` tokens; its last token predicts nothing."""
    return (*pair.prompt[seen:], *pair.query[:-1])


def longest_prompt(pairs: Sequence[EncodedPair]) -> tuple[int, ...]:
    """The prompt of the pair whose document was cut least."""
    return max((pair.prompt for pair in pairs), key=len)


def partial_attention(config: Any) -> str:
    """What keeps a model's layers from attending to every position: kinds of layers, a window; empty if nothing."""
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    window = getattr(config, "sliding_window", None)
    return ", ".join([*kinds, *([f"a window of {window} tokens"] if window is not None else [])])


class KeptStates:
    """`index`, and scoring from kept states; mixed into `TSARankModel`, whose parts it uses."""

    # What `predict` and `rank` read states from and put into it what it lacks; `index` sets it, `None` turns it off.
    document_store: Any = None

    def index(
        self: Any,
        documents: Sequence[Any],
        store: Any,
        *,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Reads documents ahead of any query and keeps their states: ranking them then costs the query's tokens only.

        Parameters:
            documents: strings, or mappings with `text` and optionally `title`.
            store: where the states go, a `MemoryStore` or a `FolderStore`. It becomes the model's `document_store`:
                `rank` and `predict` then read from it, and put into it what it lacks.
            batch_tokens, show_progress, stop: as in `predict`.

        Returns:
            How many documents were read; those that the store already held are not read again.

        Raises `ModelError` for a backbone whose states cannot be kept, otherwise like `predict` and the store.
        """
        self.check_keeps_states()
        texts = [document_text(document, f"document {i}") for i, document in enumerate(documents)]
        budget = check_batch_tokens(batch_tokens, self.device)
        identity = model_identity(self)
        prompts = self.encoder.prompts(list(dict.fromkeys(texts)))
        ids = [kept_ids(prompt, self.options) for prompt in prompts]
        wanted = {state_key(identity, kept): kept for kept in ids if kept}
        missing = store.missing(wanted)

        def run(batch: Sequence[int]) -> None:
            keys = [missing[i] for i in batch]
            for key, layers in zip(keys, self._document_states([wanted[key] for key in keys]), strict=True):
                store.put(key, layers)

        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                run_batches([len(wanted[key]) for key in missing], budget, run, None, show_progress, stop)
        finally:
            store.flush()
            self.train(was_training)
        self.document_store = store
        return len(missing)

    def check_keeps_states(self: Any) -> None:
        """Raises `ModelError` where a layer does not keep every position (sliding windows, recurrent layers)."""
        config = self.config.get_text_config()
        found = partial_attention(config)
        if found:
            raise ModelError(
                f"the document states of this {config.model_type} cannot be kept: only full attention keeps every "
                f"position, and its layers have {found}"
            )

    def _document_states(self: Any, rows: Sequence[tuple[int, ...]]) -> list[Layers]:
        """Keys and values `(1, heads, tokens, head size)` of every layer for each row of token ids."""
        ids, _ = pad_right(rows, self.pad_id, self.device)
        keep = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        keep[0, 0] = True  # the head must run on something; its logits are not wanted
        cache = DynamicCache(config=self.backbone.config)
        self._logits_at(ids, keep, past_key_values=cache, use_cache=True)
        return [_first_tokens(cache.layers, i, len(row)) for i, row in enumerate(rows)]

    def _score_from_states(
        self: Any,
        pairs: Sequence[EncodedPair],
        batch_tokens: int,
        show: bool | None,
        stop: Callable[[], bool] | None,
    ) -> list[torch.Tensor]:
        """Log-probabilities of each pair's query tokens. States that the store lacks are computed and put into it."""
        self.check_keeps_states()
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, pair in enumerate(pairs):
            groups[kept_ids(pair.source, self.options)].append(i)
        kept, tasks = list(groups), list(groups.values())
        identity, packed = model_identity(self), self._packs_queries()
        results: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
        read = 0

        def run(batch: Sequence[int]) -> None:
            nonlocal read
            states, new = self._states_of([kept[t] for t in batch], identity)
            read += new
            rows: list[tuple[int, Layers, int]] = []
            for t, layers in zip(batch, states, strict=True):
                seen = {i: common_length(kept[t], pairs[i].prompt) for i in tasks[t]}
                read += sum(len(suffix(pairs[i], seen[i])) for i in tasks[t])
                shared: dict[int, list[int]] = defaultdict(list)
                for i in tasks[t]:
                    shared[0 if packed else seen[i]].append(i)
                for members in shared.values():
                    counts = [seen[i] for i in members]
                    if len(members) == 1 or max(counts) == 0:
                        rows += [(i, layers, seen[i]) for i in members]
                        continue
                    cache = self._cache_of([_first_tokens(layers, 0, max(counts))])
                    values = self._shared_states([pairs[i] for i in members], cache, counts, batch_tokens)
                    for i, found in zip(members, values, strict=True):
                        results[i] = found
            if rows:
                values = self._rows_from_states([pairs[i] for i, _, _ in rows], [row[1:] for row in rows])
                for (i, _, _), found in zip(rows, values, strict=True):
                    results[i] = found

        # The states of a batch's documents lie in memory together: their tokens are what the budget bounds.
        lengths = [max(len(ids), 1) + len(pairs[task[0]].query) for ids, task in zip(kept, tasks, strict=True)]
        try:
            run_batches(lengths, batch_tokens, run, [len(task) for task in tasks], show, stop)
        finally:
            self.document_store.flush()
        self.last_stats["tokens"] = read
        return results

    def _states_of(self: Any, rows: Sequence[tuple[int, ...]], identity: str) -> tuple[list[Layers], int]:
        """The states of token ids, out of the store or computed, and how many tokens had to be read for that."""
        keys = [state_key(identity, row) for row in rows]
        store = self.document_store
        states: list[Any] = [
            store.get(key, dtype=self.dtype, device=self.device) if row else []
            for key, row in zip(keys, rows, strict=True)
        ]
        absent = [i for i, found in enumerate(states) if found is None]
        if absent:
            for i, made in zip(absent, self._document_states([rows[i] for i in absent]), strict=True):
                states[i] = made
                store.put(keys[i], made)
        return states, sum(len(rows[i]) for i in absent)

    def _cache_of(self: Any, states: Sequence[Layers]) -> DynamicCache:
        """One cache whose rows are documents' states, aligned on the right and filled up with zeros on the left."""
        cache = DynamicCache(config=self.backbone.config)
        longest = max(layers[0][0].shape[2] if layers else 0 for layers in states)
        if longest == 0:
            return cache
        model = next(layers for layers in states if layers)
        for number, layer in enumerate(model):
            blocks = [part.new_zeros((len(states), part.shape[1], longest, part.shape[3])) for part in layer]
            for i, layers in enumerate(states):
                for block, part in zip(blocks, layers[number] if layers else (), strict=bool(layers)):
                    block[i, :, longest - part.shape[2] :] = part[0]
            cache.update(blocks[0], blocks[1], number)
        return cache

    def _rows_from_states(
        self: Any, pairs: Sequence[EncodedPair], states: Sequence[tuple[Layers, int]]
    ) -> list[torch.Tensor]:
        """One query behind the first `seen` tokens of each document's states, `states` being (layers, seen)."""
        cache = self._cache_of([_first_tokens(layers, 0, seen) if seen else [] for layers, seen in states])
        ids, mask = pad_right(
            [suffix(pair, seen) for pair, (_, seen) in zip(pairs, states, strict=True)], self.pad_id, self.device
        )
        seen = torch.tensor([count for _, count in states], device=self.device)
        longest = int(seen.max())
        real = torch.arange(longest, device=self.device) >= longest - seen[:, None]
        inputs: dict[str, Any] = {"attention_mask": torch.cat([real.to(mask.dtype), mask], dim=1)}
        if accepts(self.backbone.forward, "position_ids"):
            inputs["position_ids"] = seen[:, None] + torch.arange(ids.shape[1], device=self.device)
        keep = mask.bool()
        for row, (pair, (_, count)) in enumerate(zip(pairs, states, strict=True)):
            keep[row, : len(pair.prompt) - 1 - count] = False
        return self._split(self._logits_at(ids, keep, past_key_values=cache, use_cache=True, **inputs), pairs)


def _first_tokens(layers: Any, row: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The states of the first `count` tokens of one row; `layers` are a cache's or kept ones."""
    pairs = [(layer.keys, layer.values) if hasattr(layer, "keys") else layer for layer in layers]
    return [(keys[row : row + 1, :, :count], values[row : row + 1, :, :count]) for keys, values in pairs]

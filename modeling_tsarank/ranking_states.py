"""Ranking from kept document states: what a document costs is paid once, a query pays for its own tokens.

`KeptStates` is the part of the ranking models that fills a store of document states (`document_memory.StateStore`) and
scores from it. What is kept and under which key says `document_states`; a store answers with no other states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from .document_blocks import StateBlocks, Workspace
from .document_encoding import Groups, fill_groups
from .document_states import common_length, is_cut, kept_ids, model_identity, state_key
from .ranking_calls import evaluating, snapshot
from .ranking_engine import check_batch_tokens, plan_batches, run_batches
from .ranking_errors import ModelError
from .ranking_text import EncodedPair, document_list, document_text, warn_of_cuts
from .shared_prefixes import partial_attention, suffix
from .suffix_rows import SuffixRows, kept_weight


# Token ids whose states are kept, and the regime of the pairs that read them (`rope_regimes`).
Kept = tuple[tuple[int, ...], int]


class KeptStates(SuffixRows):
    """`index`, and scoring from kept states; mixed into the ranking models, whose parts it uses."""

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
        call = snapshot(self)
        call.check_keeps_states()
        texts = [document_text(document, f"document {i}") for i, document in enumerate(document_list(documents))]
        budget = check_batch_tokens(batch_tokens, self.device)
        identity = model_identity(call)
        prompts = call.encoder.prompts(list(dict.fromkeys(texts)))
        cut = sum(is_cut(prompt, call.options) for prompt in prompts)
        warn_of_cuts(cut, len(prompts), call.options.max_length)
        ids = [kept_ids(prompt, call.options) for prompt in prompts]
        wanted = {state_key(identity, kept, call._document_regime(kept)): kept for kept in ids if kept}
        missing = store.missing(wanted)

        def run(batch: Sequence[int]) -> None:
            rows = [wanted[missing[i]] for i in batch]
            for part in call._read_together(rows, budget):
                read = [rows[k] for k in part]
                states = call._document_states(read, [call._document_regime(row) for row in read])
                for k, layers in zip(part, states, strict=True):
                    store.put(missing[batch[k]], layers)

        try:
            with evaluating(self), torch.inference_mode():
                run_batches([len(wanted[key]) for key in missing], budget, run, None, show_progress, stop)
        finally:
            store.flush()
        self.document_store = store
        read = sum(len(wanted[key]) for key in missing)
        self.last_stats = {"documents": len(missing), "tokens": read, "cut_documents": cut}
        return len(missing)

    def check_keeps_states(self: Any) -> None:
        """Raises `ModelError` where a layer does not keep every position (sliding windows, recurrent layers)."""
        config = self.config.get_text_config()
        found = partial_attention(self.backbone)
        if found:
            raise ModelError(
                f"the document states of this {config.model_type} cannot be kept: only full attention keeps every "
                f"position, and its layers have {found}"
            )

    def _score_from_states(
        self: Any,
        pairs: Sequence[EncodedPair],
        batch_tokens: int,
        show: bool | None,
        stop: Callable[[], bool] | None,
    ) -> list[torch.Tensor]:
        """What `_few_suffixes` gives for each pair. States that the store lacks are computed and put into it."""
        self.check_keeps_states()
        groups: dict[Kept, list[int]] = defaultdict(list)
        for i, pair in enumerate(pairs):
            groups[kept_ids(pair.source, self.options), self._pair_regime(pair)].append(i)
        kept, tasks = list(groups), list(groups.values())
        identity, packed, invariant = model_identity(self), self._packs_queries(), self._is_invariant()
        results: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
        read = 0
        # What is read is few tokens a pair, and multiplying few rows is slow, so batches are to hold many; but the
        # states of their documents lie in memory together, which bounds them.
        weight = kept_weight(self._state_shapes(), self.dtype, batch_tokens, self.device)
        counts = [0] * len(pairs)
        for (ids, _), task in groups.items():
            for i in task:
                counts[i] = common_length(ids, pairs[i].prompt)
        costs = [count // weight + len(suffix(pair, count)) for pair, count in zip(pairs, counts, strict=True)]

        def run_part(single: Sequence[tuple[int, int]], shared: Sequence[tuple[list[int], int]]) -> None:
            nonlocal read
            chosen = [i for i, _ in single]
            read += sum(len(suffix(pairs[i], counts[i])) for i in chosen)
            read += sum(len(suffix(pairs[i], counts[i])) for members, _ in shared for i in members)
            wanted = [[(kept[t], counts[i]) for i, t in single]]
            wanted += [[(kept[t], max(counts[i] for i in members))] for members, t in shared]
            rooms = [max((len(suffix(pairs[i], counts[i])) for i in chosen), default=0), *(0 for _ in shared)]
            # Taken away for the time being, so that another thread makes one of its own.
            workspace = self.between_calls.pop("workspace", None) or Workspace()
            caches, new = self._caches_of(wanted, rooms, identity, batch_tokens, workspace)
            read += new
            if chosen:
                values = self._rows_from_states([pairs[i] for i in chosen], caches[0], [counts[i] for i in chosen])
                for i, found in zip(chosen, values, strict=True):
                    results[i] = found
            for (members, _), cache in zip(shared, caches[1:], strict=True):
                seen = [counts[i] for i in members]
                values = self._shared_states([pairs[i] for i in members], cache, seen, batch_tokens)
                for i, found in zip(members, values, strict=True):
                    results[i] = found
            self.between_calls["workspace"] = workspace

        def run(batch: Sequence[int]) -> None:
            single: list[tuple[int, int]] = []  # pair, document
            shared: list[tuple[list[int], int]] = []  # the same of many pairs of one document
            for t in batch:
                parts: dict[int, list[int]] = defaultdict(list)
                for i in tasks[t]:
                    parts[0 if packed else counts[i]].append(i)
                for members in parts.values():
                    if invariant or len(members) == 1 or not any(counts[i] for i in members):
                        single += [(i, t) for i in members]
                    else:
                        shared.append((members, t))
            # Each row has its own copy of its document's states: one document's queries may be too many for a batch.
            rows = plan_batches([costs[i] for i, _ in single], batch_tokens)
            run_part([single[k] for k in rows[0]] if rows else [], shared)
            for part in rows[1:]:
                run_part([single[k] for k in part], [])

        lengths = [sum(costs[i] for i in task) if invariant else max(costs[i] for i in task) for task in tasks]
        try:
            run_batches(lengths, batch_tokens, run, [len(task) for task in tasks], show, stop)
        finally:
            self.document_store.flush()
        self.last_stats["tokens"] = read
        return results

    def _read_together(self: Any, rows: Sequence[tuple[int, ...]], batch_tokens: int) -> list[list[int]]:
        """Indexes of documents that are read in one batch on their way into a store.

        A last digit that changes with the batch can flip a rounding of the store, so that scores would depend on which
        documents it lacked. On a CPU, where a document alone fills the cores, each is therefore read by itself, unless
        batches change nothing (`batch_invariance`). An accelerator needs batches: there the last digits may differ.
        """
        if self.device.type == "cpu" and not self._is_invariant():
            return [[i] for i in range(len(rows))]
        return plan_batches([len(row) for row in rows], batch_tokens)

    def _caches_of(
        self: Any,
        wanted: Sequence[Sequence[tuple[Kept, int]]],
        rooms: Sequence[int],
        identity: str,
        batch_tokens: int,
        workspace: Workspace,
    ) -> tuple[list[DynamicCache], int]:
        """Caches filled with kept states, and how many tokens had to be read because the store lacked theirs.

        `wanted` has for each cache the rows it holds: (token ids that are kept and their regime, how many of them are
        wanted); `rooms` how many tokens will be read behind them. The caches lie in the workspace.
        """
        caches: list[StateBlocks | None] = []
        absent: dict[Kept, list[Groups]] = defaultdict(list)
        shapes, placed = self._state_shapes(), self._is_invariant()
        for places, room in zip(wanted, rooms, strict=True):
            counts = [count for _, count in places]
            blocks = StateBlocks(shapes, counts, room, self.dtype, bool(room) and placed) if any(counts) else None
            caches.append(blocks)
        workspace.reserve(sum(blocks.size for blocks in caches if blocks is not None), self.device)
        for places, blocks in zip(wanted, caches, strict=True):
            if blocks is None:
                continue
            blocks.allocate(workspace)
            filled: dict[tuple[Kept, int], Groups] = {}
            for row, (ids, count) in enumerate(places):
                target = blocks.targets(row)
                if (ids, count) in filled:
                    # Another query for the same document: copying is cheaper than checking and decoding again.
                    fill_groups(filled[ids, count], target)
                elif count and self.document_store.fill(state_key(identity, *ids), target):
                    filled[ids, count] = target
                elif count:
                    absent[ids].append(target)
        lacking = list(absent)
        for part in self._read_together([ids for ids, _ in lacking], batch_tokens):
            rows = [lacking[i] for i in part]
            made = self._document_states([ids for ids, _ in rows], [regime for _, regime in rows])
            for ids, layers in zip(rows, made, strict=True):
                # Scores come from what the store makes of the states, whether they were in it before or not.
                self.document_store.put(state_key(identity, *ids), layers, absent[ids])
        found = [DynamicCache(config=self.backbone.config) if blocks is None else blocks.cache() for blocks in caches]
        return found, sum(map(len, absent))

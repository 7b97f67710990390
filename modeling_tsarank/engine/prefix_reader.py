"""The planner: batches tasks under one token budget, whole or after a shared or cached prefix."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from transformers import PreTrainedModel

from ..ranking_errors import ModelError, ResourceError
from ..ranking_scoring import plan_batches
from .batches import Progress, memory_errors, run_batches
from .forward import Forward, Prefix, Sharing
from .read_outs import PairLogits, ReadOut
from .state_blocks import Groups, Layers, Shape, fill_groups, split_layers
from .state_keys import model_identity, state_key
from .tasks import Group, Task, by_regime, cached_groups, common_length, prefix_groups
from .torch_forward import TorchForward
from .whole_forward import WholeForward


logger = logging.getLogger(__name__)

# How many tokens of cached states count as one token of a batch's token budget, unless a batch's states would take
# more than these bytes. Each batch streams all weights from memory, so fewer batches with more rows are faster.
STATE_WEIGHT = 16
CPU_STATE_BYTES = 1 << 30
ACCELERATOR_STATE_BYTES = 4 << 30
# With shared prefixes, the tasks of this many batches are planned together.
SHARED_BATCHES = 4

# A prefix, and the target tensors for the states of its first tokens, as many as fit.
Want = tuple[Prefix, Groups]


class StateStore(Protocol):
    """The planner's interface to a store of document states; `MemoryStore` and `FolderStore` document the methods."""

    def fill(self, key: str, targets: Groups) -> bool: ...
    def put(self, key: str, layers: Layers, targets: Sequence[Groups] = ()) -> None: ...
    def missing(self, keys: Iterable[str]) -> list[str]: ...
    def flush(self) -> None: ...


def state_weight(shapes: Sequence[Shape], dtype: torch.dtype, batch_tokens: int, device: torch.device) -> int:
    """How many tokens of states count as one token of the budget; at least 1, so states never shrink a batch."""
    token = sum(shape.layers * shape.heads * (shape.key_dim + shape.value_dim) for shape in shapes) * dtype.itemsize
    limit = CPU_STATE_BYTES if device.type == "cpu" else ACCELERATOR_STATE_BYTES
    return max(1, min(STATE_WEIGHT, limit // (token * batch_tokens)))


class PrefixReader:
    """Runs tasks on a model, with as few forward passes and tokens as the budget allows.

    Args:
        backbone: A model of transformers, or another backend's `Forward`.
        read_out: What to compute at the wanted positions.
        store: Caches document states, and receives missing ones; `None` for no store.
        pad_id: Token id for padding.

    Attributes:
            tokens: How many tokens were encoded: a shared prefix counts once, one from the store not at all.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | Forward,
        read_out: ReadOut,
        store: StateStore | None = None,
        *,
        pad_id: int = 0,
    ) -> None:
        self._forward: Forward
        if isinstance(backbone, PreTrainedModel):
            whole = backbone.config.is_encoder_decoder or isinstance(read_out, PairLogits)
            self._forward = (WholeForward if whole else TorchForward)(backbone, read_out, pad_id)
        else:
            self._forward = backbone
        self._store = store
        self._identity = ""
        if store is not None:
            if torch.is_autocast_enabled(self._forward.device.type):
                raise ModelError("document states cannot be cached under autocast; leave autocast, or pass no store")
            if not isinstance(backbone, PreTrainedModel):
                raise ModelError("only the document states of torch models can be cached; pass no store")
            self._identity = model_identity(backbone)
        self.tokens = 0

    def close(self) -> None:
        """Returns memory for reuse by the next call."""
        self._forward.close()

    # ---- scoring -----------------------------------------------------------------------------------

    def read(
        self,
        tasks: Sequence[Task],
        batch_tokens: int,
        show_progress: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[torch.Tensor]:
        """For each task the values `(positions, values)` at its wanted positions.

        Args:
            tasks: The tasks.
            batch_tokens: Maximum number of tokens in a batch.
            show_progress, stop: See `Progress`.
        """
        longest = max(len(task.ids) for task in tasks)
        if self._store is not None:
            self.check_store(longest)
        groups, sharing = self._groups(tasks, longest)
        counts = self._counts(tasks, groups, sharing)
        results: list[torch.Tensor] = [torch.empty(0)] * len(tasks)
        weight = self._weight(sharing, batch_tokens)
        lengths = [self._cost(tasks, group, counts, weight) for group in groups]
        budget = SHARED_BATCHES * batch_tokens if self._store is None and any(counts) else batch_tokens
        try:
            with Progress(len(tasks), show_progress, stop) as progress:
                for batch in plan_batches(lengths, budget):
                    chosen = [groups[g] for g in batch]
                    progress.check()
                    with memory_errors(batch_tokens, max(len(tasks[i].ids) for one in chosen for i in one.members)):
                        for members, values in self._read_groups(tasks, chosen, counts, sharing, batch_tokens):
                            for i, value in zip(members, values, strict=True):
                                results[i] = value
                            progress.add(len(members))
                            progress.check()
        finally:
            if self._store is not None:
                with _store_errors_as_warnings():
                    self._store.flush()
        self.close()
        return results

    def _read_groups(
        self,
        tasks: Sequence[Task],
        groups: Sequence[Group],
        counts: Sequence[int],
        sharing: Sharing | None,
        batch_tokens: int,
    ) -> Iterable[tuple[list[int], list[torch.Tensor]]]:
        """Indexes and values of the groups' tasks, batch by batch."""
        alone = [i for group in groups for i in group.members if not counts[i]]
        for part in plan_batches([len(tasks[i].ids) for i in alone], batch_tokens):
            members = [alone[k] for k in part]
            self.tokens += sum(len(tasks[i].ids) for i in members)
            yield members, self._forward.read([tasks[i] for i in members])
        behind = [group for group in groups if any(counts[i] for i in group.members)]
        if behind and sharing is not None:
            yield from self._read_behind(tasks, behind, counts, sharing, batch_tokens)

    def _groups(self, tasks: Sequence[Task], longest: int) -> tuple[list[Group], Sharing | None]:
        """Groups of tasks and how they share prefixes; the backend is queried only if there is something to share."""
        regimes = [self._forward.regime(task.length) for task in tasks]
        groups = by_regime(tasks, regimes, prefix_groups if self._store is None else cached_groups)
        if self._store is not None or len(groups) < len(tasks):
            sharing = self._forward.shares(longest)
            if sharing is not None:
                return groups, sharing
        return [Group([i], ()) for i in range(len(tasks))], None

    def _counts(self, tasks: Sequence[Task], groups: Sequence[Group], sharing: Sharing | None) -> list[int]:
        """How many of each task's first tokens come from the states of its group's prefix; 0: none, it runs whole."""
        counts = [0] * len(tasks)
        for group in groups:
            if sharing is None or not group.prefix or (self._store is None and len(group.members) == 1):
                continue
            found = [common_length(group.prefix, tasks[i]) for i in group.members]
            for i, count in zip(group.members, found, strict=True):
                counts[i] = count if sharing.unequal else min(found)
        return counts

    def _weight(self, sharing: Sharing | None, batch_tokens: int) -> int:
        if sharing is None:
            return STATE_WEIGHT
        return state_weight(sharing.shapes, self._forward.dtype, batch_tokens, self._forward.device)

    def _cost(self, tasks: Sequence[Task], group: Group, counts: Sequence[int], weight: int) -> int:
        """A group's cost in the token budget: its prefix, if it has to be encoded, and each task's own tokens."""
        own = sum(len(tasks[i].ids) - counts[i] for i in group.members)
        if self._store is None:
            return own + max(counts[i] for i in group.members)
        return own + sum(counts[i] // weight for i in group.members)

    def _read_behind(
        self,
        tasks: Sequence[Task],
        groups: Sequence[Group],
        counts: Sequence[int],
        sharing: Sharing,
        batch_tokens: int,
    ) -> Iterable[tuple[list[int], list[torch.Tensor]]]:
        """Indexes and values of the groups' tasks that continue from states, batch by batch."""
        weight = self._weight(sharing, batch_tokens)
        if self._store is not None:

            def from_store(wants: Sequence[Want]) -> None:
                self._fill_from_store(wants, batch_tokens)

            yield from self._rows_behind(tasks, groups, counts, sharing, from_store, batch_tokens)
            return
        # The states are in memory along with their copies, so they get a quarter of the copies' budget.
        sizes = [max(counts[i] for i in group.members) for group in groups]
        for part in plan_batches(sizes, max(batch_tokens * weight // 4, 1)):
            chosen = [groups[g] for g in part]
            states = self._read_prefixes(tasks, chosen, [sizes[g] for g in part], batch_tokens)

            def fill(wants: Sequence[Want], states: dict[Prefix, Groups] = states) -> None:
                for prefix, target in wants:
                    fill_groups(states[prefix], target)

            yield from self._rows_behind(tasks, chosen, counts, sharing, fill, batch_tokens)

    def _prefix(self, tasks: Sequence[Task], group: Group) -> Prefix:
        return group.prefix, self._forward.regime(tasks[group.members[0]].length)

    def _read_prefixes(
        self, tasks: Sequence[Task], groups: Sequence[Group], sizes: Sequence[int], batch_tokens: int
    ) -> dict[Prefix, Groups]:
        """States of the groups' prefixes, encoded in padded batches; valid until the next call."""
        parts = plan_batches(sizes, batch_tokens)
        order = [g for part in parts for g in part]
        prefixes = [self._prefix(tasks, group) for group in groups]
        cut = [(ids[:size], regime) for (ids, regime), size in zip(prefixes, sizes, strict=True)]
        states = self._forward.states([[cut[g] for g in part] for part in parts])
        self.tokens += sum(sizes)
        return {prefixes[g]: found for g, found in zip(order, states, strict=True)}

    def _rows_behind(
        self,
        tasks: Sequence[Task],
        groups: Sequence[Group],
        counts: Sequence[int],
        sharing: Sharing,
        fill: Callable[[Sequence[Want]], None],
        batch_tokens: int,
    ) -> Iterable[tuple[list[int], list[torch.Tensor]]]:
        """Each task in a row of its own after a copy of its prefix's states.

        One batch per group would have few rows, and stream all weights each time.
        """
        rows = [(i, self._prefix(tasks, group)) for group in groups for i in group.members if counts[i]]
        weight = self._weight(sharing, batch_tokens)
        for alike in _apart(rows, counts, sharing):
            reads = [len(tasks[i].ids) - counts[i] for i, _ in alike]
            lengths = [counts[i] // weight + read for (i, _), read in zip(alike, reads, strict=True)]
            for part in plan_batches(lengths, batch_tokens, read=reads):
                members = [alike[k][0] for k in part]
                blocks = self._forward.blocks([counts[i] for i in members], max(reads[k] for k in part))
                fill([(alike[k][1], blocks.targets(row)) for row, k in enumerate(part)])
                self.tokens += sum(reads[k] for k in part)
                yield members, self._forward.read_behind([tasks[i] for i in members], blocks)

    # ---- the store ---------------------------------------------------------------------------------

    def check_store(self, longest: int) -> None:
        """Raises `ModelError` if texts of up to `longest` tokens cannot continue from the states of a prefix."""
        if self._forward.shares(longest) is None:
            raise ModelError(f"the document states of this model cannot be cached: {self._forward.describe(longest)}")

    def index(
        self,
        prefixes: Sequence[tuple[tuple[int, ...], int]],
        batch_tokens: int,
        show_progress: bool | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Adds the states of prefixes that the store lacks; returns how many were encoded.

        Args:
            prefixes: Token ids, and the token count of the shortest text that begins with them.
            batch_tokens, show_progress, stop: See `read`.
        """
        store = self._store
        assert store is not None
        regime = self._forward.regime
        wanted = {self.key(ids, length): (ids, regime(length)) for ids, length in prefixes if ids}
        missing = store.missing(wanted)

        def run(batch: Sequence[int]) -> None:
            rows = [wanted[missing[i]] for i in batch]
            for part in self._read_together([ids for ids, _ in rows], batch_tokens):
                states = self._forward.states([[rows[k] for k in part]])
                self.tokens += sum(len(rows[k][0]) for k in part)
                for k, found in zip(part, states, strict=True):
                    store.put(missing[batch[k]], split_layers(found))

        try:
            lengths = [len(wanted[key][0]) for key in missing]
            with Progress(len(lengths), show_progress, stop) as progress:
                run_batches(lengths, batch_tokens, run, progress)
        finally:
            store.flush()
        self.close()
        return len(missing)

    def key(self, ids: tuple[int, ...], length: int) -> str:
        """The store's key of a prefix, as `index` takes it."""
        return state_key(self._identity, ids, self._forward.regime(length))

    def shapes(self) -> list[Shape]:
        """Shapes of the states. Raises `ModelError` like `check_store`."""
        sharing = self._forward.shares(1)
        if sharing is None:
            self.check_store(1)
        return sharing.shapes if sharing is not None else []

    def _read_together(self, rows: Sequence[tuple[int, ...]], batch_tokens: int) -> list[list[int]]:
        """Batches, as indexes, of documents to encode for a store.

        A last digit that changes with the batch can flip a rounding of the store, so that scores would depend on which
        documents were missing. On a CPU, where one document fills the cores, each is therefore encoded alone, unless
        results are batch-invariant (`batch_invariance`). An accelerator needs batches, so last digits may differ.
        """
        if self._forward.device.type == "cpu" and not self._forward.invariant:
            return [[i] for i in range(len(rows))]
        return plan_batches([len(row) for row in rows], batch_tokens)

    def _fill_from_store(self, wants: Sequence[Want], batch_tokens: int) -> None:
        """Copies states into the targets. States missing from the store are computed and added to it."""
        store = self._store
        assert store is not None
        filled: dict[tuple[Prefix, int], Groups] = {}
        absent: dict[Prefix, list[Groups]] = defaultdict(list)
        for prefix, target in wants:
            count = target[0][0].shape[2]
            if (prefix, count) in filled:
                # Another query for the same document: a copy is cheaper than checking and decoding again.
                fill_groups(filled[prefix, count], target)
            elif prefix not in absent and store.fill(state_key(self._identity, *prefix), target):
                filled[prefix, count] = target
            else:
                absent[prefix].append(target)
        lacking = list(absent)
        for part in self._read_together([ids for ids, _ in lacking], batch_tokens):
            prefixes = [lacking[k] for k in part]
            states = self._forward.states([prefixes])
            self.tokens += sum(len(ids) for ids, _ in prefixes)
            for prefix, found in zip(prefixes, states, strict=True):
                # Scores use the states as the store returns them (rounded), whether they were cached before or not.
                with _store_errors_as_warnings():  # the targets are filled before anything is written
                    store.put(state_key(self._identity, *prefix), split_layers(found), absent[prefix])


@contextmanager
def _store_errors_as_warnings() -> Iterator[None]:
    """Ranking continues if states cannot be stored: a full disk must not stop a service."""
    try:
        yield
    except ResourceError as error:
        logger.warning("%s; documents are ranked, but their states are not stored", error)


def _apart(
    rows: Sequence[tuple[int, Prefix]], counts: Sequence[int], sharing: Sharing
) -> list[list[tuple[int, Prefix]]]:
    """Rows that may be in one batch."""
    if sharing.unequal:
        return [list(rows)]
    found: dict[int, list[tuple[int, Prefix]]] = defaultdict(list)
    for row in rows:
        found[counts[row[0]]].append(row)
    return list(found.values())

"""A decoder's forward passes in torch: whole rows, prefixes for their states, and rows that continue from states."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache, PreTrainedModel

from ..modeling_cross_encoder import ScoreHead
from ..ranking_scoring import accepts, head_place, pad_right
from .batch_invariance import make_linears_invariant, takes
from .forward import Forward, Prefix, Sharing
from .grouped_attention import GROUPED, takes_grouped
from .last_block import Wanted, pick_positions
from .private_view import hooked, private_view
from .read_outs import ClassLogits, ReadOut
from .rope_regimes import rope_limits, rope_regime, use_regimes
from .state_blocks import Groups, Shape, StateBlocks, Workspace, fill_groups, shapes_of
from .tasks import Task


logger = logging.getLogger(__name__)

# Architectures whose logits are the head's output, neither scaled nor capped afterwards, and whose KV cache is known
# to work for rows with prefixes of unequal lengths. Others are tested before anything is shared.
ARCHITECTURES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "smollm3"),
    *("gpt2", "gpt_neox", "opt", "bloom"),
)
# Names of the number of experts in configurations.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Tolerances of that test, relative to the largest value, in half precision and in others.
_HALF_TOLERANCE, _TOLERANCE = 0.1, 1e-3


@dataclass
class _Memory:
    """What calls on one model pass on to the next one."""

    sharing: dict[Any, Sharing | None] = field(default_factory=dict)
    workspaces: list[tuple[Workspace, Workspace, Workspace]] = field(default_factory=list)


_memories: WeakKeyDictionary[PreTrainedModel, _Memory] = WeakKeyDictionary()


@functools.cache
def keep_freed_memory() -> None:
    """Makes glibc keep up to 64 MiB of freed memory for later allocations; elsewhere it does nothing.

    glibc returns freed memory to the system beyond a threshold, which it raises by itself to twice the largest block
    that was mapped and freed, of up to 32 MiB. With a lower threshold, the activations of every layer are returned and
    mapped again, at a page fault for every 4 KiB.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


def longest_full_attention(config: Any) -> int | None:
    """Length up to which every layer attends to every position: `None` for any length, 0 for recurrent layers."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    chunk = getattr(config, "attention_chunk_size", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    reach = {"full_attention": None, "sliding_attention": window, "chunked_attention": chunk}
    limits = [reach.get(kind, 0) for kind in kinds]
    return min((limit for limit in limits if limit is not None), default=None)


class TorchForward(Forward):
    """`Forward` on a private view of a decoder-only model of transformers.

    Args:
        backbone: In evaluation mode. It is not changed.
        read_out: What to compute at the wanted positions.
        pad_id: Token id for padding, which is never attended to.
    """

    def __init__(self, backbone: PreTrainedModel, read_out: ReadOut, pad_id: int) -> None:
        self.device, self.dtype = backbone.device, backbone.dtype
        if self.device.type == "cpu":
            keep_freed_memory()
        self._read_out, self._pad_id = read_out, pad_id
        self._config = backbone.config.get_text_config()
        self._memory = _memories.setdefault(backbone, _Memory())
        free = self._memory.workspaces
        self._workspaces = free.pop() if free else (Workspace(), Workspace(), Workspace())
        self._head_memory, self._prefix_memory, self._state_memory = self._workspaces
        view = private_view(backbone)
        self._model: Any = backbone if view is None else view
        self._is_view = view is not None
        ours = type(backbone).__module__.startswith("transformers.models.")
        # Wrappers of a known architecture (speech and image models) may not pass on all arguments.
        self._known = self._is_view and ours and backbone.config.model_type in ARCHITECTURES
        self._accepts = {
            name for name in ("logits_to_keep", "position_ids", "past_key_values") if accepts(backbone.forward, name)
        }
        self.invariant = self._is_view and self._can_be_invariant()
        self._wanted = Wanted()
        self._rotary = use_regimes(self._model) if self._is_view else []
        self._head: torch.nn.Module | None = None
        if self._is_view:
            self._prepare()
        if isinstance(read_out, ClassLogits):
            self._model = ScoreHead(self._model)
            self._accepts.add("logits_to_keep")

    def _can_be_invariant(self) -> bool:
        """Not with experts, whose number of rows varies, nor if the positions of keys depend on the batch."""
        config = self._config
        return (
            takes(torch.empty(0, dtype=self.dtype, device=self.device))
            and self._has_own_positions()
            and longest_full_attention(config) is None
            and takes_grouped(self._model)
            and not any(getattr(config, name, None) for name in _EXPERTS)
        )

    def _has_own_positions(self) -> bool:
        """Whether positions come from `position_ids` alone: ALiBi counts keys."""
        rotary = bool(getattr(self._config, "rope_parameters", None)) and not getattr(self._config, "alibi", False)
        return rotary and "position_ids" in self._accepts

    def _prepare(self) -> None:
        """Adds to the view what makes forward passes fast and exact."""
        if takes_grouped(self._model):
            self._model.config.get_text_config()._attn_implementation = GROUPED
        if self.invariant:
            make_linears_invariant(self._model)
        pick_positions(self._model, self._wanted)
        place = head_place(self._model)
        if place is not None and not hooked(self._model, self._model._modules[place]):
            self._head = self._read_out.head(self._model._modules[place], self._known, self._head_memory)
            self._model._modules[place] = self._head or self._model._modules[place]

    def close(self) -> None:
        """Returns memory for reuse by the next call; after an error it is dropped."""
        self._memory.workspaces.append(self._workspaces)

    # ---- forward passes ----------------------------------------------------------------------------

    def read(self, tasks: Sequence[Task]) -> list[torch.Tensor]:
        """Tasks in one right-padded batch: causal attention never attends to the padding."""
        if not self._is_view and rope_limits(self._config) and len(tasks) > 1:
            return [found for task in tasks for found in self.read([task])]
        ids, _ = pad_right([task.ids for task in tasks], self._pad_id, self.device)
        return self._values(tasks, [0] * len(tasks), ids)

    def read_behind(self, tasks: Sequence[Task], blocks: StateBlocks) -> list[torch.Tensor]:
        """Each task continues from its own row of the blocks, which hold the states of its first tokens."""
        counts = blocks.counts
        ids, mask = pad_right(
            [task.ids[count:] for task, count in zip(tasks, counts, strict=True)], self._pad_id, self.device
        )
        seen, cache = torch.tensor(counts, device=self.device), blocks.cache()
        ends = seen[:, None] + torch.arange(ids.shape[1], device=self.device)
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if blocks.placed:
            hidden = torch.arange(cache.get_seq_length(), device=self.device) > ends[..., None]
            scores = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            inputs["attention_mask"] = scores.masked_fill_(hidden, torch.finfo(self.dtype).min)[:, None]
        else:
            longest = max(counts)
            real = torch.arange(longest, device=self.device) >= longest - seen[:, None]
            inputs["attention_mask"] = torch.cat([real.to(mask.dtype), mask], dim=1)
        if "position_ids" in self._accepts:
            inputs["position_ids"] = ends
        return self._values(tasks, counts, ids, **inputs)

    def _values(
        self, tasks: Sequence[Task], counts: Sequence[int], ids: torch.Tensor, **inputs: Any
    ) -> list[torch.Tensor]:
        lengths = [len(task.at) for task in tasks]
        rows = [row for row, length in enumerate(lengths) for _ in range(length)]
        places = [at - count for task, count in zip(tasks, counts, strict=True) for at in task.at]
        keep = torch.zeros(ids.shape, dtype=torch.bool)
        keep[rows, places] = True
        targets = torch.tensor([target for task in tasks for target in task.targets], device=self.device)
        regimes = [self.regime(task.length) for task in tasks]
        found = self._pass(ids, keep.to(self.device), regimes, targets, **inputs)
        if self._head is None or not getattr(self._head, "answered", True):
            found = self._read_out.of_logits(found, targets)
        return list(found.cpu().split(lengths))

    def _pass(
        self, ids: torch.Tensor, keep: torch.Tensor, regimes: Sequence[int], targets: torch.Tensor, **inputs: Any
    ) -> torch.Tensor:
        """The output of the head, or of its replacement, at the positions to keep."""
        if self._head is not None:
            self._head.targets = targets
        for rotary in self._rotary:
            rotary.regimes = regimes if len(set(regimes)) > 1 else regimes[:1]
        self._wanted.set(keep)
        inputs = {"use_cache": False, **inputs, "input_ids": ids}
        if "logits_to_keep" in self._accepts:
            kept: torch.Tensor = self._model(**inputs, logits_to_keep=keep).logits
            return kept
        logits: torch.Tensor = self._model(**inputs).logits[keep]
        return logits

    # ---- states ------------------------------------------------------------------------------------

    def regime(self, length: int) -> int:
        """See `Forward.regime`; the default one if the embedding is unknown."""
        return rope_regime(self._config, length) if self._rotary else 0

    def states(self, batches: Sequence[Sequence[Prefix]]) -> list[Groups]:
        """Keys and values of every prefix, in the memory of the last call, whose states become invalid."""
        sharing = self._sharing()
        assert sharing is not None
        return self._states(sharing.shapes, batches)

    def _states(self, shapes: Sequence[Shape], batches: Sequence[Sequence[Prefix]]) -> list[Groups]:
        longest = [max(len(ids) for ids, _ in batch) for batch in batches]
        made = [
            StateBlocks(shapes, [0] * len(batch), room, self.dtype)
            for batch, room in zip(batches, longest, strict=True)
        ]
        self._prefix_memory.reserve(sum(blocks.size for blocks in made), self.device)
        found: list[Groups] = []
        for batch, blocks in zip(batches, made, strict=True):
            blocks.allocate(self._prefix_memory)
            self._fill_cache(batch, blocks.cache())
            found += [blocks.tokens(row, 0, len(ids)) for row, (ids, _) in enumerate(batch)]
        return found

    def _fill_cache(self, batch: Sequence[Prefix], cache: DynamicCache) -> None:
        """Runs prefixes to fill the cache with their keys and values."""
        ids, _ = pad_right([row for row, _ in batch], self._pad_id, self.device)
        keep = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
        keep[0, 0] = True  # the head needs a position; its output is not used
        regimes = [regime for _, regime in batch]
        self._pass(ids, keep, regimes, ids[0, :1], past_key_values=cache, use_cache=True)

    def _shapes(self) -> list[Shape]:
        cache = DynamicCache()
        self._fill_cache([((self._pad_id,), 0)], cache)
        layers: Sequence[Any] = cache.layers
        return shapes_of([(layer.keys, layer.values) for layer in layers])

    def blocks(self, counts: Sequence[int], room: int) -> StateBlocks:
        """Blocks in the memory of the last batch, whose states become invalid."""
        sharing = self._sharing()
        assert sharing is not None
        blocks = StateBlocks(sharing.shapes, counts, room, self.dtype, self.invariant)
        self._state_memory.reserve(blocks.size, self.device)
        blocks.allocate(self._state_memory)
        return blocks

    def shares(self, longest: int) -> Sharing | None:
        """How tasks may continue from states; nothing is shared before a test of the model's cache."""
        full = longest_full_attention(self._config)
        if full is not None and longest > full:
            return None
        return self._sharing()

    def describe(self, longest: int) -> str:
        """Why `shares` returns `None`."""
        full = longest_full_attention(self._config)
        kind = self._config.model_type
        if full and longest > full:
            return f"prefix sharing needs full attention, and layers of {kind} have a window of {full} tokens"
        if full == 0:
            kinds = sorted(set(self._config.layer_types) - {"full_attention"})
            return f"prefix sharing needs full attention, and layers of {kind} have {', '.join(kinds)}"
        return f"{kind} gives other results with a KV cache than for the whole text"

    def _sharing(self) -> Sharing | None:
        key = self.dtype, self._config._attn_implementation, self._known
        if key not in self._memory.sharing:
            self._memory.sharing[key] = self._find_sharing()
        return self._memory.sharing[key]

    def _find_sharing(self) -> Sharing | None:
        if "past_key_values" not in self._accepts or getattr(self._model, "_is_stateful", False):
            return None
        if not self._is_view and rope_limits(self._config):
            return None
        if self._known:
            return Sharing(self._shapes(), True)
        try:
            return self._try_sharing()
        except Exception as error:  # an unknown model's code may fail in any way on a cache
            logger.debug("no prefix sharing for %s: %s", type(self._model).__name__, error)
            return None

    def _try_sharing(self) -> Sharing | None:
        """Compares two whole texts with the same texts continued from the states of their prefixes."""
        ids = [i % self._config.vocab_size for i in range(5, 17)]
        tasks = [Task(tuple(ids[:end]), (end - 2, end - 1), (ids[end], ids[end]), length=end + 1) for end in (8, 11)]
        whole = torch.cat([self.read([task])[0] for task in tasks])
        counts = [3, 7]
        shapes = self._shapes()
        states = self._states(shapes, [[(task.ids[:count], 0)] for task, count in zip(tasks, counts, strict=True)])

        def agrees(batches: Sequence[Sequence[int]]) -> bool:
            found = []
            for batch in batches:
                room = max(len(tasks[i].ids) - counts[i] for i in batch)
                blocks = StateBlocks(shapes, [counts[i] for i in batch], room, self.dtype, self.invariant)
                workspace = Workspace()
                workspace.reserve(blocks.size, self.device)
                blocks.allocate(workspace)
                for row, i in enumerate(batch):
                    fill_groups(states[i], blocks.targets(row))
                found += self.read_behind([tasks[i] for i in batch], blocks)
            tolerance = _HALF_TOLERANCE if self.dtype.itemsize < 4 else _TOLERANCE
            return bool((torch.cat(found) - whole).abs().max() <= tolerance * whole.abs().max())

        if agrees([[0, 1]]):
            return Sharing(shapes, True)
        return Sharing(shapes, False) if agrees([[0], [1]]) else None

"""Pairs whose token ids begin alike: the common prefix is read once, and what follows it is read behind its states.

For query likelihood the prefix is the document, for a true/false template what it puts first.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from .batch_invariance import takes
from .document_blocks import GROUPED, make_invariant, takes_grouped
from .document_states import common_length
from .last_block import last_block_at
from .modeling_ranker import accepts
from .ranking_attention import check_attention
from .ranking_engine import pad_right, plan_batches
from .ranking_text import EncodedPair
from .rope_regimes import depends_on_length, in_regimes, regimes_are_set, rope_regime


# Tokens of one packed row: enough to keep matrix multiplications busy, few enough that the pairs of tokens which
# the mask hides cost little.
PACKED_TOKENS = 384
# A prefix is shared where that spares at least this part of the tokens; less would not pay for the smaller batches.
SPARED_SHARE = 0.25
# How configurations call the number of experts.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Layers whose cache holds keys and values, which any number of rows may go on from.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def suffix(pair: EncodedPair, seen: int) -> tuple[int, ...]:
    """What a pair still reads behind the states of its first `seen` tokens; its last token predicts nothing."""
    return (*pair.prompt[seen:], *pair.query[:-1])


def longest_prompt(pairs: Sequence[EncodedPair]) -> tuple[int, ...]:
    """The prompt of the pair whose document was cut least."""
    return max((pair.prompt for pair in pairs), key=len)


def shares_prefixes(backbone: Any) -> bool:
    """Whether several rows can be read behind the states of one prefix: recurrent layers have no keys to repeat."""
    kinds = getattr(backbone.config.get_text_config(), "layer_types", None) or ()
    return not getattr(backbone, "_is_stateful", False) and _ATTENTION.issuperset(kinds)


def partial_attention(backbone: Any) -> str:
    """What keeps a model's layers from attending to every position: kinds of layers, a window; empty if nothing."""
    config = backbone.config.get_text_config()
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    window = getattr(config, "sliding_window", None)
    found = [*kinds, *([f"a window of {window} tokens"] if window is not None else [])]
    return ", ".join(found) or ("" if shares_prefixes(backbone) else "a recurrent state")


def prefix_groups(prompts: Sequence[tuple[int, ...]]) -> list[tuple[list[int], tuple[int, ...]]]:
    """Prompts that begin alike: their indexes, and the prefix to read once for them (empty where nothing is shared).

    Prompts next to each other in the order of their ids share the most, so one pass over that order finds the groups.
    Of a group's members each may share less than the whole prefix; a prefix never holds a prompt's last token.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    groups: list[tuple[list[int], tuple[int, ...]]] = []
    members: list[int] = []
    prefix: tuple[int, ...] = ()
    for place, i in enumerate(order):
        shared = 0
        if members:
            before = prompts[order[place - 1]]
            # Of a prompt that equals the one before it, the last token is still left to be read.
            shared = common_length(before, prompts[i])
            if shared < SPARED_SHARE * max(len(before), len(prompts[i])):
                groups.append((members, prefix))
                members, prefix = [], ()
        if members and shared > len(prefix):
            prefix = prompts[i][:shared]
        members.append(i)
    if members:
        groups.append((members, prefix))
    return groups


class SharedPrefixes:
    """Reading behind a shared prefix; mixed into the ranking models, whose parts it uses."""

    # Tokens behind the last position whose logits are wanted that belong to a pair too: a query's last one.
    unread = 1

    def _logits_at(self: Any, input_ids: torch.Tensor, keep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The backbone's logits `(kept positions, vocabulary)`; the output head runs on these positions only, and the
        last block wherever it can.

        Padding must stand on the right, where causal attention never looks: no mask is needed, and the fastest
        attention kernel applies.
        """
        check_attention(self.backbone)
        inputs: dict[str, Any] = {"use_cache": False, **kwargs, "input_ids": input_ids}
        if self._is_invariant():
            make_invariant(self.backbone)
        with self._own_regimes(keep), last_block_at(self.backbone, keep):
            if accepts(self.backbone.forward, "logits_to_keep"):
                return self.backbone(**inputs, logits_to_keep=keep).logits
            return self.backbone(**inputs).logits[keep]

    def _regime(self: Any, length: int) -> int:
        """What the rotary embedding of a pair of `length` tokens depends on, see `rope_regimes`; usually 0."""
        return rope_regime(self.backbone.config.get_text_config(), length)

    def _pair_regime(self: Any, pair: EncodedPair) -> int:
        return self._regime(len(pair.prompt) + len(pair.query) - 1 + self.unread)

    def _document_regime(self: Any, kept: Sequence[int]) -> int:
        """That of the shortest pair that begins with a document's kept ids."""
        return self._regime(len(kept) + 1 + self.unread)

    def _own_regimes(self: Any, keep: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        """Rows that are read whole end where the last of their positions is kept."""
        if regimes_are_set() or not depends_on_length(self.backbone):
            return contextlib.nullcontext()
        ends = torch.where(keep.any(-1), keep.shape[1] - keep.flip(-1).int().argmax(-1), 1)
        return in_regimes(self.backbone, [self._regime(end + self.unread) for end in ends.tolist()])

    def _values_at(
        self: Any, pairs: Sequence[EncodedPair], input_ids: torch.Tensor, keep: torch.Tensor, **kwargs: Any
    ) -> list[torch.Tensor]:
        """What each pair wants of the logits at its kept positions; here it has one, and wants all of it."""
        return list(self._logits_at(input_ids, keep, **kwargs).cpu())

    def _shared_prefix(
        self: Any, pairs: Sequence[EncodedPair], read: tuple[int, ...], batch_tokens: int, packed: bool | None = None
    ) -> list[torch.Tensor]:
        """What `_values_at` gives for pairs whose prompts begin like `read`; keys and values of that are made once.

        The pairs are of one regime (`rope_regimes`).
        """
        packed = self._packs_queries() if packed is None else packed
        seen = [common_length(read, pair.prompt) for pair in pairs]
        if not packed:
            read, seen = read[: min(seen)], [min(seen)] * len(seen)
        cache = DynamicCache(config=self.backbone.config)
        if read:
            ids = torch.tensor([read], device=self.device)
            # The head runs on one position, not on the prefix: its logits are not wanted.
            keep = torch.zeros(ids.shape, dtype=torch.bool, device=self.device)
            keep[:, -1] = True
            with in_regimes(self.backbone, [self._pair_regime(pairs[0])]):
                self._logits_at(ids, keep, past_key_values=cache, use_cache=True)
        return self._shared_states(pairs, cache, seen, batch_tokens, packed)

    def _shared_states(
        self: Any,
        pairs: Sequence[EncodedPair],
        cache: DynamicCache,
        seen: Sequence[int],
        batch_tokens: int,
        packed: bool | None = None,
    ) -> list[torch.Tensor]:
        """All pairs behind the states of their prefix, of which each uses those of the first `seen` tokens.

        Where pairs are not packed, `seen` must be the same for all of them.
        """
        packed = self._packs_queries() if packed is None else packed
        lengths = [len(suffix(pair, count)) for pair, count in zip(pairs, seen, strict=True)]
        if not packed:
            # A padded row holds its own copy of the document's states, so the budget bounds them too.
            lengths = [max(length, seen[0] // 4) for length in lengths]
        limit = min(batch_tokens, PACKED_TOKENS) if packed else batch_tokens
        results: list[torch.Tensor] = [torch.empty(0)] * len(pairs)
        parts = plan_batches(lengths, limit, padded=not packed)
        for part in parts:
            chosen = [pairs[i] for i in part]
            with in_regimes(self.backbone, [self._pair_regime(pairs[0])]):
                if packed:
                    found = self._packed_suffixes(chosen, cache, [seen[i] for i in part])
                    if part is not parts[-1]:
                        cache.crop(-sum(lengths[i] for i in part))  # reading appended these
                else:
                    states = cache if part is parts[-1] else copy.deepcopy(cache)
                    found = self._padded_suffixes(chosen, states, seen[0])
            for i, values in zip(part, found, strict=True):
                results[i] = values
        return results

    def _is_invariant(self: Any) -> bool:
        """Whether scores are made independent of the batch to the last digit (`batch_invariance`).

        Pairs then read their documents' states in rows of their own: in a packed row keys have moved. Experts get the
        rows that are sent to them, however many these are.
        """
        config = self.config.get_text_config()
        return (
            takes(torch.empty(0, dtype=self.dtype, device=self.device))
            and self._packs_queries()
            and takes_grouped(self.backbone)
            and not any(getattr(config, name, None) for name in _EXPERTS)
        )

    def _packs_queries(self: Any) -> bool:
        """Whether one row may hold many queries: positions come from `position_ids`, the mask is taken as it is."""
        config = self.config.get_text_config()
        return (
            bool(getattr(config, "rope_parameters", None))
            and not getattr(config, "alibi", False)  # counts keys, whatever `position_ids` says
            and not partial_attention(self.backbone)
            # Another thread may just be ranking from kept states, which takes the same masks.
            and self.backbone.config._attn_implementation in ("sdpa", "eager", GROUPED)
            and accepts(self.backbone.forward, "position_ids")
        )

    def _packed_suffixes(
        self: Any, pairs: Sequence[EncodedPair], cache: DynamicCache, seen: Sequence[int]
    ) -> list[torch.Tensor]:
        """All suffixes in one row: each sees its part of the prefix, and itself. No padding, no copy of a state."""
        rows = [suffix(pair, count) for pair, count in zip(pairs, seen, strict=True)]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        ids = torch.tensor([[token for row in rows for token in row]], device=self.device)
        owner = torch.repeat_interleave(torch.arange(len(rows), device=self.device), lengths)
        place = torch.arange(len(owner), device=self.device)
        within = place - (lengths.cumsum(0) - lengths)[owner]
        first = torch.tensor(seen, device=self.device)[owner]
        prompt_left = torch.tensor([len(p.prompt) - 1 - n for p, n in zip(pairs, seen, strict=True)])
        prefix = torch.arange(cache.get_seq_length(), device=self.device)[None] < first[:, None]
        visible = torch.cat([prefix, (owner[:, None] == owner) & (place[:, None] >= place)], dim=1)
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(~visible, torch.finfo(self.dtype).min)
        return self._values_at(
            pairs,
            ids,
            (within >= prompt_left.to(self.device)[owner])[None],
            attention_mask=mask[None, None],
            position_ids=(first + within)[None],
            past_key_values=cache,
            use_cache=True,
        )

    def _padded_suffixes(
        self: Any, pairs: Sequence[EncodedPair], cache: DynamicCache, seen: int
    ) -> list[torch.Tensor]:
        cache.batch_repeat_interleave(len(pairs))
        ids, mask = pad_right([suffix(pair, seen) for pair in pairs], self.pad_id, self.device)
        for row, pair in enumerate(pairs):
            mask[row, : len(pair.prompt) - 1 - seen] = 0
        return self._values_at(pairs, ids, mask.bool(), past_key_values=cache, use_cache=True)

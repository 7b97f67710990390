"""Training of one-pass ranking: each document's share of the query's attention over its list.

Reference: Gupta et al., Scalable In-context Ranking with Generative Models (BlockRank), 2025, whose auxiliary loss is
on this attention. Documents are encoded as blocks that do not attend to each other, the query attends to all of them,
and the layers after the scoring layer are not computed. The blocks' keys and values, with their graph, replace those
of a store in `OnePassRanker`, which computes the attention: training scores are identical to ranking scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modeling_tsarank.engine.attention import AttentionReader
from modeling_tsarank.engine.state_blocks import Layers
from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.rankers.one_pass import OnePassOptions, OnePassRanker, block_ids, side_by_side, suffix_ids
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_scoring import plan_batches
from modeling_tsarank.ranking_text import EncodedPair, TextEncoder
from modeling_tsarank.trainers.collators import Batch, RankingCollator
from modeling_tsarank.trainers.gradient_cache import Chunk, Values
from modeling_tsarank.trainers.ranking_module import PASS_TOKENS, PASS_TOKENS_ELSEWHERE, RankingModule, plan_passes
from modeling_tsarank.trainers.trainable import TrainablePart, block_stacks


class OnePassCollator(RankingCollator):
    """Like `RankingCollator`; a pair is the document's block and, as its query, the text after all blocks.

    Returns (from a call):
        In addition `heads` `(pairs,)`, the number of tokens before each document, and `owners` `(pairs,)`, its group.
    """

    def __init__(self, encoder: TextEncoder, ranker: RankerModel) -> None:
        super().__init__(encoder)
        self.ranker = ranker

    def tokens(self, pairs: Sequence[EncodedPair], sizes: Sequence[int]) -> Batch:
        owners = [group for group, size in enumerate(sizes) for _ in range(size)]
        # As in ranking, where it comes from the first document's prompt.
        suffixes = [suffix_ids(self.ranker, pairs[owners.index(group)]) for group in range(len(sizes))]
        blocks = [block_ids(pair.source, self.encoder.options) for pair in pairs]
        split = [EncodedPair(block, suffixes[group]) for block, group in zip(blocks, owners, strict=True)]
        more = {"heads": torch.tensor([len(pair.source.before) for pair in pairs]), "owners": torch.tensor(owners)}
        return super().tokens(split, sizes) | more


class OnePassModule(RankingModule):
    """A ranking model in training, whose scores are those of a `OnePassRanker` with these options.

    Raises:
        InputError: no trained weight can affect the attention.
        ModelError: the model does not support one-pass ranking.
    """

    def __init__(self, ranker: RankerModel, part: TrainablePart, options: OnePassOptions) -> None:
        super().__init__(ranker, part)
        self.one_pass = OnePassRanker(ranker, options)
        read = block_stacks(ranker.backbone)[0].blocks[: self.one_pass.layers]
        if not any(weight.requires_grad for weight in read.parameters()):
            raise InputError(
                f"the one-pass score comes from layer {self.one_pass.layers}, and no weight up to it is trained; "
                "train all blocks (trainable lora or full), or set a later layer in one_pass_options"
            )

    @property
    def counts_tokens(self) -> bool:
        return False

    def plan(self, batch: Batch, chunk_tokens: int | None) -> tuple[list[Chunk], int]:
        """Chunks of whole lists with at most `chunk_tokens` tokens in total; a longer list is its own chunk."""
        sizes: list[int] = batch["group_sizes"].tolist()
        totals = [int(lengths.sum()) for lengths in batch["lengths"].split(sizes)]
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        groups = [list(range(len(sizes)))] if chunk_tokens is None else plan_batches(totals, chunk_tokens)
        chunks = [[pair for i in sorted(group) for pair in range(starts[i], starts[i + 1])] for group in groups]
        return [Chunk(tuple(pairs), torch.tensor(pairs)) for pairs in chunks], starts[-1]

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        query_mask: Tensor,
        heads: Tensor,
        owners: Tensor,
        with_reference: bool = False,
    ) -> Values:
        """`scores` `(pairs,)`, the shares of attention, of whole lists.

        Args:
            input_ids, attention_mask, query_mask: `(pairs, length)`, from `pad_pairs`.
            heads, owners: `(pairs,)`, see `OnePassCollator`.
        """
        reader = self.one_pass.reader(keep_mode=True)
        lengths = attention_mask.sum(1) - query_mask.sum(1)
        blocks = self._blocks(reader, input_ids, lengths)
        scores = []
        for group in owners.unique_consecutive().tolist():
            rows = (owners == group).nonzero()[:, 0].tolist()
            cache, places = side_by_side([blocks[row] for row in rows], heads[rows].tolist())
            suffix = input_ids[rows[0]][query_mask[rows[0]]].tolist()
            scores.append(self.one_pass.attention(reader, suffix, cache, places, len(rows)))
        return {"scores": torch.cat(scores)}

    def _blocks(self, reader: AttentionReader, ids: Tensor, lengths: Tensor) -> list[Layers]:
        """Each document's keys and values, at the positions used in ranking."""
        starts = self.one_pass.end - lengths if self.one_pass.options.positions == "aligned" else lengths * 0
        found: dict[int, Layers] = {}
        for rows in plan_passes(lengths.tolist(), PASS_TOKENS.get(ids.device.type, PASS_TOKENS_ELSEWHERE)):
            columns = torch.arange(int(lengths[rows].max()), device=ids.device)
            # Padding is on the right, where causal attention never looks.
            states = reader.states_of_rows(ids[rows][:, : len(columns)], starts[rows, None] + columns)
            for i, row in enumerate(rows):
                part = slice(i, i + 1), slice(None), slice(int(lengths[row]))
                found[row] = [(keys[part], values[part]) for keys, values in states]
        return [found[row] for row in range(len(ids))]

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        raise InputError("one-pass training reuses keys and values; turn activation checkpointing off")

"""Collation of canonical training rows into ragged batches of token ids.

A batch concatenates the ids of its (query, document) pairs without padding: only the trainer knows which pairs it
will run together, and pads them then. The documents of a row are sampled from (seed, epoch, row index) alone, so the
sample is the same for any number of processes or workers, and after a resume.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from modeling_tsarank.ranking_text import EncodedPair, TextEncoder, clean_query, document_text
from modeling_tsarank.trainers.losses_targets import permutation_to_ranks
from modeling_tsarank.trainers.rows import PERMUTATION, TARGETS, positive_places


logger = logging.getLogger(__name__)


# How a group's documents are sampled from those of its row.
Sampling = Literal["first", "random", "one_positive"]
ONE_POSITIVE: Sampling = "one_positive"

Batch = dict[str, Any]
Group = dict[str, Any]


@dataclass(eq=False)
class SampledGroups(Dataset):
    """Rows of a dataset, each with its documents sampled anew in every epoch.

    Longer lists are shortened by `sampling`: "first" takes the first ones in the given (first-stage) order, "random"
    samples them, "one_positive" samples one relevant document, which comes first, and negatives, without
    replacement; its labels are 1 and 0. A permutation is restricted to the sampled documents.

    Args:
        rows: canonical rows, by index.
        seed: seed of the sampling.
        sampling: see above.
        num_documents: maximum documents per list; `None` takes all.
        num_negatives: negatives per positive; a row with fewer gives a smaller group.
    """

    rows: Any
    seed: int
    sampling: Sampling = "first"
    num_documents: int | None = None
    num_negatives: int = 0

    def __post_init__(self) -> None:
        # In shared memory, so that workers that persist across epochs see the change too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def start_epoch(self, epoch: int) -> None:
        """Switches to the samples of that epoch, counted from 0."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Group:
        row = self.rows[index]
        # A string seed is hashed with SHA-512: the same on every machine and Python version.
        kept = self._kept(row, random.Random(f"{self.seed}/{int(self._epoch)}/{index}"))
        group: Group = {
            "row": index,
            "query": clean_query(row["query"]),
            "documents": [document_text(row["documents"][i]) for i in kept],
        }
        if row.get(PERMUTATION) is not None:
            place = {document: i for i, document in enumerate(kept)}
            group[PERMUTATION] = [place[document] for document in row[PERMUTATION] if document in place]
        for name in TARGETS:
            if row.get(name) is not None:
                group[name] = [float(row[name][i]) for i in kept]
        if self.sampling == ONE_POSITIVE:
            group["labels"] = [1.0] + [0.0] * (len(kept) - 1)
        return group

    def _kept(self, row: Any, generator: random.Random) -> list[int]:
        """Indices of the group's documents."""
        if self.sampling == ONE_POSITIVE:
            positives, negatives = positive_places(row)
            positive = generator.choice(positives)
            return [positive, *generator.sample(negatives, min(self.num_negatives, len(negatives)))]
        total = len(row["documents"])
        count = total if self.num_documents is None else min(self.num_documents, total)
        return sorted(generator.sample(range(total), count)) if self.sampling == "random" else list(range(count))


class RankingCollator:
    """Collates sampled groups into one ragged batch.

    Args:
        encoder: the model's text encoder with the length limits of training.

    Returns (from a call):
        - `group_sizes` `(groups,)`: number of documents per query.
        - `lengths` `(pairs,)`: tokens of each pair; pairs are ordered by query, then in the group's document order.
        - `query_lengths` `(pairs,)`: query tokens at the end of each pair (0 for `TwolarModel`).
        - `token_ids` `(tokens,)`: all pairs concatenated.
        - `ranks` int64, the targets of `rows.TARGETS` float32, `(groups, longest group)`: present if every group has
          them; 0 at padding.
        - `queries`: number of groups that count: all, or 0 if the batch contains only padding rows.
        - `rows`: texts and row numbers, for error messages.

    Example:
        Two queries of one and two tokens, with two and one documents:

        ```python
        {
            "group_sizes": tensor([2, 1]),
            "lengths": tensor([3, 4, 5]),
            "query_lengths": tensor([1, 1, 2]),
            "token_ids": tensor([11, 12, 90,  21, 22, 23, 90,  31, 32, 33, 91, 92]),
            "queries": 2,
            "rows": [...],
        }
        ```
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._warned = False

    def __call__(self, groups: Sequence[Group]) -> Batch:
        counting = [group for group in groups if not group.get("filling")]
        # A process without real rows still has to take part in the gradient synchronization.
        groups = counting or groups[:1]
        texts = [(group["query"], document) for group in groups for document in group["documents"]]
        pairs: list[EncodedPair] = self.encoder.pairs(texts)  # type: ignore[attr-defined]
        cut = max(pair.query_cut for pair in pairs)
        if cut and not self._warned:  # truncated documents are expected in training, truncated queries are not
            self._warned = True
            logger.warning("a query was truncated on the right by %d tokens (max_query_length)", cut)
        sizes = [len(group["documents"]) for group in groups]
        batch = self.tokens(pairs, sizes)
        width = max(sizes)
        if all(PERMUTATION in group for group in groups):
            batch["ranks"] = permutation_to_ranks([group[PERMUTATION] for group in groups], width)
        for name in TARGETS:
            if all(name in group for group in groups):
                values = [torch.tensor(group[name], dtype=torch.float32) for group in groups]
                batch[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        batch["queries"] = len(counting)
        batch["rows"] = list(groups)
        return batch

    def tokens(self, pairs: Sequence[EncodedPair], sizes: Sequence[int]) -> Batch:
        """The batch fields of the pairs; `sizes` are the groups'."""
        ids = [token for pair in pairs for token in (*pair.prompt, *pair.query)]
        return {
            "group_sizes": torch.tensor(sizes, dtype=torch.int64),
            "lengths": torch.tensor([len(pair.prompt) + len(pair.query) for pair in pairs], dtype=torch.int64),
            "query_lengths": torch.tensor([len(pair.query) for pair in pairs], dtype=torch.int64),
            "token_ids": torch.tensor(ids, dtype=torch.int64),
        }


def group_mask(group_sizes: Tensor) -> Tensor:
    """Boolean mask `(groups, longest group)` of real documents."""
    columns = torch.arange(int(group_sizes.max()), device=group_sizes.device)
    return columns[None, :] < group_sizes[:, None]


def to_grid(values: Tensor, mask: Tensor) -> Tensor:
    """Values of the pairs, `(pairs,)`, as a grid `(groups, longest group)` with 0 at padding; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def pad_pairs(batch: Batch, pairs: Sequence[int], pad_id: int) -> dict[str, Tensor]:
    """Some pairs of a batch, padded on the right.

    Returns:
        `input_ids`, `attention_mask` (0/1) and `query_mask` (boolean, the query's tokens), each `(pairs, longest)`;
        plus the batch's other fields of each pair (`heads`, `owners`), `(pairs,)`.
    """
    rows = batch["token_ids"].split(batch["lengths"].tolist())
    ids = torch.nn.utils.rnn.pad_sequence([rows[pair] for pair in pairs], batch_first=True, padding_value=pad_id)
    chosen = torch.tensor(list(pairs), device=ids.device)
    lengths, queries = batch["lengths"][chosen, None], batch["query_lengths"][chosen, None]
    columns = torch.arange(ids.shape[1], device=ids.device)[None, :]
    real = columns < lengths
    padded = {"input_ids": ids, "attention_mask": real.long(), "query_mask": real & (columns >= lengths - queries)}
    return padded | {name: batch[name][chosen] for name in ("heads", "owners") if name in batch}

"""From weak pairs to TRL's tokenized rows, exactly as a ranker reads them later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeling_tsarank.modeling_tsarank import QueryLikelihoodEncoder
from modeling_tsarank.ranking_errors import ModelError
from modeling_tsarank.ranking_options import QueryLikelihoodOptions
from modeling_tsarank.ranking_text import clean_query, document_text
from modeling_tsarank.trainers.rows import positive_places


if TYPE_CHECKING:
    from datasets import Dataset


class PairTokenizer:
    """Token ids of (query, document) pairs with a mask of what is to be learned.

    TRL would join the texts of prompt and completion before it tokenizes them, and cut the end of what is too long:
    the query. Rows that hold `input_ids` already it takes as they are.

    Args:
        tokenizer: a fast tokenizer.
        options: prompt and limits; one token below the longest sequence where EOS is added.
        train_eos: put EOS behind the query.
        context: longest sequence the model reads, where it says so.

    Raises:
        ModelError: no EOS token, no fast tokenizer, or limits beyond the model's.
    """

    def __init__(
        self, tokenizer: Any, options: QueryLikelihoodOptions, train_eos: bool = True, context: int | None = None
    ) -> None:
        self.encoder = QueryLikelihoodEncoder(tokenizer, options, None if context is None else context - train_eos)
        self.ending: tuple[int, ...] = ()
        if train_eos:
            if tokenizer.eos_token_id is None:
                raise ModelError("this tokenizer has no EOS token; set one, or train_eos to false")
            self.ending = (tokenizer.eos_token_id,)

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Columns of rows as `input_ids` and `completion_mask` (1 at query and EOS), one pair for each positive."""
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        texts = [
            (clean_query(row["query"]), document_text(row["documents"][place]))
            for row in rows
            for place in (positive_places(row)[0] if row.get("labels") is not None else range(len(row["documents"])))
        ]
        pairs = self.encoder.pairs(texts)
        return {
            "input_ids": [[*pair.prompt, *pair.query, *self.ending] for pair in pairs],
            "completion_mask": [[0] * len(pair.prompt) + [1] * len((*pair.query, *self.ending)) for pair in pairs],
        }

    def tokenize(self, rows: Dataset, name: str = "train", workers: int | None = None) -> Dataset:
        """The rows tokenized, all other columns dropped; kept in the cache of the `datasets` library."""
        return rows.map(
            self,
            batched=True,
            remove_columns=rows.column_names,
            num_proc=workers,
            desc=f"tokenizing the {name} pairs",
        )

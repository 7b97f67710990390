"""One forward pass of the query over all documents' cached states; a document's score is the attention it receives.

Reference: Gupta et al., Scalable In-context Ranking with Generative Models (BlockRank), 2025: documents as blocks that
do not attend to each other, ordered by the attention of one middle layer. Here the blocks are the document states that
a store caches for ordinary scoring, shifted to end at one position, so documents are encoded once for all queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from ..cache.memory_store import MemoryStore
from ..engine.attention import AttentionReader, KeyRotation
from ..engine.prefix_reader import PrefixReader
from ..engine.read_outs import TokenLogProbs
from ..engine.rope_regimes import rope_limits
from ..engine.state_blocks import Layers
from ..engine.state_keys import model_identity, state_key
from ..modeling_ranker import RankerModel
from ..ranking_errors import InputError, ModelError, ResourceError
from ..ranking_options import RankingOptions, check_choice, settle_whole_numbers
from ..ranking_scoring import check_batch_tokens
from ..ranking_text import EncodedPair, Prompt, cacheable_ids, warn_of_cuts
from .in_context import NO_QUERY
from .protocols import chosen_rows, clean_list


@dataclass(frozen=True)
class OnePassOptions:
    """How a score is computed.

    Attributes:
        layer: The layer whose attention is used, from 1; the middle one by default. Later ones are not computed.
        positions: `aligned`: every document ends where the query begins; `original`: keys stay as they were cached,
            from position 0.
        sinks: `all`: the tokens before each document (BOS, the template) are attended to; `one`: those of the first
            document only.
        query_tokens: `all`: the mean over all tokens after the documents; `last`: over the last two.
        reduce: A document's score is the `sum` or the `mean` over its tokens.
        calibrate: Whether the score for the query "N/A" is subtracted: one more forward pass.

    Raises:
        InputError: a value out of range.
    """

    layer: int | None = None
    positions: str = "aligned"
    sinks: str = "all"
    query_tokens: str = "all"
    reduce: str = "sum"
    calibrate: bool = False

    def __post_init__(self) -> None:
        settle_whole_numbers(self, "layer")
        check_choice("positions", self.positions, ("aligned", "original"))
        check_choice("sinks", self.sinks, ("all", "one"))
        check_choice("query_tokens", self.query_tokens, ("all", "last"))
        check_choice("reduce", self.reduce, ("sum", "mean"))
        if not isinstance(self.calibrate, bool):
            raise InputError(f"calibrate must be true or false, got {self.calibrate!r}")


def block_ids(prompt: Prompt, limits: RankingOptions) -> tuple[int, ...]:
    """The part of a document's prompt that is its block, without the template's end, which is part of the query."""
    return cacheable_ids(prompt, limits)[: len(prompt.before) + len(prompt.document)]


def suffix_ids(model: RankerModel, pair: EncodedPair) -> tuple[int, ...]:
    """The token ids after the document in the prompt of a pair."""
    kept = len(pair.source.before) + len(pair.source.document) - pair.cut
    return tuple(model._task(pair).ids[kept:])


def side_by_side(blocks: Sequence[Layers], heads: Sequence[int]) -> tuple[DynamicCache, torch.Tensor]:
    """Documents' states in one cache, and each token's document; -1 for the first `heads` tokens of a document."""
    cache, places = DynamicCache(), []
    for i in range(len(blocks[0])):
        keys, values = (torch.cat([block[i][part] for block in blocks], dim=2) for part in (0, 1))
        cache.update(keys, values, i)
    for place, (block, head) in enumerate(zip(blocks, heads, strict=True)):
        places += [-1] * head + [place] * (block[0][0].shape[2] - head)
    return cache, torch.tensor(places, device=blocks[0][0][0].device)


class OnePassRanker:
    """Orders lists by one forward pass of the query over all documents' cached states.

    Args:
        model: A pointwise ranker with a document-first template. Its `document_store` is used, else one in
            memory.
        options: The settings.

    Attributes:
        layers: Number of computed layers; the last one's attention is used.

    Raises:
        ModelError: the model's document states cannot be cached, shifted or attended to in this way.
    """

    options_class = OnePassOptions

    def __init__(self, model: RankerModel, options: OnePassOptions | None = None) -> None:
        self.model, self.options = model, options or OnePassOptions()
        self.name = getattr(model, "name", type(model).__name__)
        self.last_stats: dict[str, int] = {}
        model.check_cacheable()
        config = model.backbone.config.get_text_config()
        if rope_limits(config):
            raise ModelError(
                f"the rotary embedding of {config.model_type} depends on the length, which one-pass does not support"
            )
        layers = config.num_hidden_layers
        self.layers = self.options.layer or (layers + 1) // 2
        if self.layers > layers:
            raise InputError(f"layer is {self.layers}, but the model has {layers}")
        self.reader()
        with torch.inference_mode():
            self._rotation = KeyRotation(model.backbone) if self.options.positions == "aligned" else None

    @property
    def end(self) -> int:
        """The position at which the query begins."""
        return self.model.options.max_length - self.model.options.max_query_length

    def reader(self, keep_mode: bool = False) -> AttentionReader:
        """An `AttentionReader` up to the layer whose attention is used. Raises its `ModelError`."""
        return AttentionReader(self.model.backbone, self.layers, keep_mode)

    @property
    def document_store(self) -> Any:
        """Where document states are cached."""
        if self.model.document_store is None:
            self.model.document_store = MemoryStore()
        return self.model.document_store

    @document_store.setter
    def document_store(self, store: Any) -> None:
        self.model.document_store = store

    @torch.inference_mode()
    def rank(
        self,
        query: str,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_tokens: int | None = None,
    ) -> list[dict[str, Any]]:
        """The documents, best first; equal scores keep the given order.

        Args:
            query: The query.
            documents: Texts. Their order does not affect a score; which documents are in the list does.
            top_k, return_documents: See `RankerModel.rank`.
            batch_tokens: See `RankerModel.predict`; for documents that the store does not have yet.

        Returns:
            `{"corpus_id", "score"}` of each document: its share of the attention to all documents.

        Raises:
            ResourceError: the store cannot hold all documents at once.
        """
        query, documents, texts, _ = clean_list(query, documents, top_k=top_k)
        model, options = self.model, self.model.options
        prompts = model.encoder.prompts(texts)
        cut = sum(len(prompt) >= options.max_length for prompt in prompts)
        warn_of_cuts(cut, len(texts), options.max_length)
        prefixes = [cacheable_ids(prompt, options) for prompt in prompts]
        indexer = PrefixReader(model.backbone, TokenLogProbs(), self.document_store, pad_id=model.pad_id)
        indexer.index(
            [(ids, len(ids)) for ids in dict.fromkeys(prefixes)], check_batch_tokens(batch_tokens, model.device), False
        )
        indexer.close()
        tokens, scores = indexer.tokens, torch.zeros(len(texts))
        if texts:
            reader = self.reader()
            cache, places = self._blocks(prompts, prefixes)
            for sign, one in [(1, query), (-1, NO_QUERY)][: 1 + self.options.calibrate]:
                suffix = suffix_ids(model, model.encoder.pairs([(one, texts[0])])[0])
                tokens += len(suffix)
                scores += sign * self.attention(reader, suffix, cache, places, len(texts)).cpu()
        self.last_stats = {"calls": (1 + self.options.calibrate) * bool(texts), "tokens": tokens, "cut_documents": cut}
        order = sorted(range(len(texts)), key=lambda i: (-float(scores[i]), i))
        rows = [{"corpus_id": i, "score": float(scores[i])} for i in order]
        return chosen_rows(rows, documents, top_k, return_documents)

    def _blocks(
        self, prompts: Sequence[Prompt], prefixes: Sequence[tuple[int, ...]]
    ) -> tuple[DynamicCache, torch.Tensor]:
        """All documents' states `side_by_side`, from the store."""
        model, identity = self.model, model_identity(self.model.backbone)
        blocks = []
        for prompt, ids in zip(prompts, prefixes, strict=True):
            layers = self.document_store.get(state_key(identity, ids), dtype=model.dtype, device=model.device)
            if layers is None:
                raise ResourceError("the store is too small for the states of all documents; raise its limit")
            length = len(block_ids(prompt, model.options))
            layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in layers[: self.layers]]
            blocks.append(layers if self._rotation is None else self._rotation.turn(layers, self.end - length))
        return side_by_side(blocks, [len(prompt.before) for prompt in prompts])

    def attention(
        self, reader: AttentionReader, suffix: Sequence[int], cache: DynamicCache, places: torch.Tensor, count: int
    ) -> torch.Tensor:
        """Each document's share of the attention to all documents' own tokens, `(documents,)`, with autograd graph.

        Args:
            reader: From `reader`.
            suffix: The token ids after the documents.
            cache, places: From `side_by_side`.
            count: Number of documents.
        """
        own = places >= 0
        hidden = torch.zeros_like(own)
        if self.options.sinks == "one":
            hidden = ~own
            hidden[: int(own.int().argmax())] = False
        first = 0 if self.options.query_tokens == "all" else max(len(suffix) - 2, 0)
        wanted = range(first, len(suffix))
        attention = reader.read(suffix, cache, wanted, self.end, hidden)[0][-1, :, : len(places)][:, own]
        shares = (attention / attention.sum(-1, keepdim=True)).mean(0)
        sums = shares.new_zeros(count).index_add_(0, places[own], shares)
        return sums / places[own].bincount(minlength=count).clamp(min=1) if self.options.reduce == "mean" else sums

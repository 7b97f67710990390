"""One pass of the query over the cached states of all documents; the score of each is the attention that it gets.

Reference: Gupta et al., Scalable In-context Ranking with Generative Models (BlockRank), 2025: documents as blocks that
do not see each other, ordered by the attention of one middle layer. Here the blocks are the document states that a
store holds for ordinary scoring, moved to end at one position, so that documents are encoded once for all queries.
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
from ..engine.state_keys import model_identity, state_key
from ..modeling_ranker import RankerModel
from ..ranking_errors import InputError, ModelError, ResourceError
from ..ranking_options import settle_whole_numbers
from ..ranking_scoring import check_batch_tokens
from ..ranking_text import Prompt, cacheable_ids, warn_of_cuts
from .in_context import NO_QUERY
from .labels import check_choice
from .protocols import clean_list


@dataclass(frozen=True)
class OnePassOptions:
    """What a score is made of.

    Attributes:
        layer: The layer whose attention counts, from 1; the middle one by default. Later ones are not computed.
        positions: `aligned`: every document ends where the query begins; `original`: keys stay as they were cached,
            from position 0.
        sinks: `all`: the tokens in front of each document (BOS, the template) are attended to; `one`: those of the
            first document only.
        query_tokens: `all`: the mean over all tokens behind the documents; `last`: over the last two.
        reduce: A document's score is the `sum` or the `mean` over its tokens.
        calibrate: Whether the score for the query "N/A" is subtracted: one more pass.

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


class OnePassRanker:
    """Orders lists by one pass of the query over all documents' cached states.

    Args:
        model: A pointwise ranker whose template has the document first. Its `document_store` is used, else one in
            memory.
        options: How.

    Raises:
        ModelError: the model's document states cannot be cached, moved or attended to in this way.
    """

    def __init__(self, model: RankerModel, options: OnePassOptions | None = None) -> None:
        self.model, self.options = model, options or OnePassOptions()
        self.name = getattr(model, "name", type(model).__name__)
        self.last_stats: dict[str, int] = {}
        model.check_cacheable()
        config = model.backbone.config.get_text_config()
        if rope_limits(config):
            raise ModelError(
                f"the rotary embedding of {config.model_type} depends on the length; one pass needs another"
            )
        layers = config.num_hidden_layers
        self._layers = self.options.layer or (layers + 1) // 2
        if self._layers > layers:
            raise InputError(f"layer is {self._layers}, but the model has {layers}")
        AttentionReader(model.backbone, self._layers)
        with torch.inference_mode():
            self._rotation = KeyRotation(model.backbone) if self.options.positions == "aligned" else None

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
    def rank(self, query: str, documents: Sequence[Any], batch_tokens: int | None = None) -> list[dict[str, Any]]:
        """The documents, best first; equal scores keep the given order.

        Args:
            query: The query.
            documents: Texts. The order in which they are given does not matter to a score, which documents do.
            batch_tokens: As of `RankerModel.predict`, for documents that the store does not hold yet.

        Returns:
            `{"corpus_id", "score"}` of each document: its share of the attention that all documents get.

        Raises:
            ResourceError: the store cannot hold all documents at once.
        """
        query, texts, _ = clean_list(query, documents)
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
            reader = AttentionReader(model.backbone, self._layers)
            end = options.max_length - options.max_query_length
            cache, places = self._blocks(prompts, prefixes, end)
            for sign, one in [(1, query), (-1, NO_QUERY)][: 1 + self.options.calibrate]:
                suffix = self._suffix(one, texts[0])
                tokens += len(suffix)
                scores += sign * self._attention(reader, suffix, cache, places, len(texts), end).cpu()
        self.last_stats = {"calls": (1 + self.options.calibrate) * bool(texts), "tokens": tokens, "cut_documents": cut}
        order = sorted(range(len(texts)), key=lambda i: (-float(scores[i]), i))
        return [{"corpus_id": i, "score": float(scores[i])} for i in order]

    def _suffix(self, query: str, document: str) -> tuple[int, ...]:
        """The token ids that stand behind a document in the prompt of a pair."""
        pair = self.model.encoder.pairs([(query, document)])[0]
        kept = len(pair.source.before) + len(pair.source.document) - pair.cut
        return tuple(self.model._task(pair).ids[kept:])

    def _blocks(
        self, prompts: Sequence[Prompt], prefixes: Sequence[tuple[int, ...]], end: int
    ) -> tuple[DynamicCache, torch.Tensor]:
        """All documents' states side by side, and of each token its document, -1 for what stands in front of one."""
        model, identity = self.model, model_identity(self.model.backbone)
        blocks, places = [], []
        for place, (prompt, ids) in enumerate(zip(prompts, prefixes, strict=True)):
            head = len(prompt.before)
            layers = self.document_store.get(state_key(identity, ids), dtype=model.dtype, device=model.device)
            if layers is None:
                raise ResourceError("the store cannot hold the states of all documents at once; give it more room")
            length = min(head + len(prompt.document), len(ids))  # without the template's tail, which the query brings
            layers = [(keys[:, :, :length], values[:, :, :length]) for keys, values in layers[: self._layers]]
            blocks.append(layers if self._rotation is None else self._rotation.turn(layers, end - length))
            places += [-1] * head + [place] * (length - head)
        cache = DynamicCache()
        for i in range(self._layers):
            keys, values = (torch.cat([block[i][part] for block in blocks], dim=2) for part in (0, 1))
            cache.update(keys, values, i)
        return cache, torch.tensor(places, device=model.device)

    def _attention(
        self,
        reader: AttentionReader,
        suffix: Sequence[int],
        cache: DynamicCache,
        places: torch.Tensor,
        count: int,
        start: int,
    ) -> torch.Tensor:
        """Each document's share of the attention to all documents' own tokens, `(documents,)`."""
        own = places >= 0
        hidden = torch.zeros_like(own)
        if self.options.sinks == "one":
            hidden = ~own
            hidden[: int(own.int().argmax())] = False
        first = 0 if self.options.query_tokens == "all" else max(len(suffix) - 2, 0)
        wanted = range(first, len(suffix))
        attention = reader.read(suffix, cache, wanted, start, hidden)[0][-1, :, : len(places)][:, own]
        shares = (attention / attention.sum(-1, keepdim=True)).mean(0)
        sums = shares.new_zeros(count).index_add_(0, places[own], shares)
        return sums / places[own].bincount(minlength=count).clamp(min=1) if self.options.reduce == "mean" else sums

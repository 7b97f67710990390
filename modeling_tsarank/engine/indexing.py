"""Encoding documents ahead of any query: which states a store caches, and how they get there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..ranking_errors import InputError, ModelError
from ..ranking_scoring import check_batch_tokens
from ..ranking_text import EncodedPair, cacheable_ids, document_list, document_text, warn_of_cuts
from .prefix_reader import PrefixReader
from .read_outs import PairLogits, named_read_out


@torch.inference_mode()
def check_cacheable(ranker: Any) -> None:
    """Raises `ModelError` if a ranking model's document states cannot be cached."""
    config, read_out = ranker.config, named_read_out(*ranker._read_out())
    if config.is_encoder_decoder or isinstance(read_out, PairLogits):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "an encoder"
        raise ModelError(
            f"no document states can be cached: {config.model_type} is {kind}, which encodes query and document "
            "together"
        )
    if not ranker.document_first(ranker.options, True):
        raise ModelError(
            "no document states can be cached: the template puts the query before the document, so the "
            "states depend on the query; use a document-first template such as "
            '"Document: {document} Query: {query} Relevant:"'
        )
    reader = PrefixReader(ranker.backbone, read_out)
    reader.check_store(ranker.options.max_length)
    reader.close()


def cache_prefixes(ranker: Any, texts: Sequence[str]) -> tuple[list[tuple[tuple[int, ...], int]], int]:
    """What a store caches of each document, and how many documents are truncated for every query.

    Returns:
        For each text the token ids whose states are cached, and the token count of the shortest pair with this prefix.
    """
    options, prompts = ranker.options, ranker.encoder.prompts(list(texts))
    ids = [cacheable_ids(prompt, options) for prompt in prompts]
    behind = ranker._task(EncodedPair((0,), (0,))).length  # one token of the prompt and one of the query
    # At least one token of a query follows the prompt.
    return [(row, len(row) + behind) for row in ids], sum(len(prompt) >= options.max_length for prompt in prompts)


def index_documents(
    ranker: Any,
    documents: Sequence[Any],
    store: Any,
    batch_tokens: int | None = None,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Implements `RankerModel.index` for a model in evaluation mode; sets its `last_stats`."""
    if not hasattr(store, "missing"):
        raise InputError(f"store must be a MemoryStore or a FolderStore, got {type(store).__name__}")
    texts = [document_text(document, f"document {i}") for i, document in enumerate(document_list(documents))]
    prefixes, cut = cache_prefixes(ranker, list(dict.fromkeys(texts)))
    warn_of_cuts(cut, len(prefixes), ranker.options.max_length)
    reader = PrefixReader(ranker.backbone, named_read_out(*ranker._read_out()), store, pad_id=ranker.pad_id)
    read = reader.index(prefixes, check_batch_tokens(batch_tokens, ranker.device), show_progress, stop)
    ranker.last_stats = {"documents": read, "tokens": reader.tokens, "cut_documents": cut}
    return read

"""Documents read ahead of any query: what a store keeps of them, and putting it there."""

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
    """Raises `ModelError` where a store cannot hold a ranking model's document states."""
    config, read_out = ranker.config, named_read_out(*ranker._read_out())
    if config.is_encoder_decoder or isinstance(read_out, PairLogits):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "an encoder"
        raise ModelError(
            f"no document states can be cached: {config.model_type} is {kind}, which reads query and document at once"
        )
    if not ranker.document_first(ranker.options, True):
        raise ModelError(
            "no document states can be cached: the template puts the query before the document, whose states then "
            'depend on it; only a template such as "Document: {document} Query: {query} Relevant:" allows it'
        )
    reader = PrefixReader(ranker.backbone, read_out)
    reader.check_store(ranker.options.max_length)
    reader.close()


def cache_prefixes(ranker: Any, texts: Sequence[str]) -> tuple[list[tuple[tuple[int, ...], int]], int]:
    """What a store keeps of each document, and how many are cut for every query.

    Returns:
        For each text the token ids whose states are kept, and the tokens of the shortest pair that begins so.
    """
    options, prompts = ranker.options, ranker.encoder.prompts(list(texts))
    ids = [cacheable_ids(prompt, options) for prompt in prompts]
    behind = ranker._task(EncodedPair((0,), (0,))).length  # one token of the prompt and one of the query
    # Of a query at least one token is read behind the prompt.
    return [(row, len(row) + behind) for row in ids], sum(len(prompt) >= options.max_length for prompt in prompts)


def index_documents(
    ranker: Any,
    documents: Sequence[Any],
    store: Any,
    batch_tokens: int | None = None,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> int:
    """Does what `RankerModel.index` says, on a model that is in evaluation mode; sets its `last_stats`."""
    if not hasattr(store, "missing"):
        raise InputError(f"store must be a MemoryStore or a FolderStore, got {type(store).__name__}")
    texts = [document_text(document, f"document {i}") for i, document in enumerate(document_list(documents))]
    prefixes, cut = cache_prefixes(ranker, list(dict.fromkeys(texts)))
    warn_of_cuts(cut, len(prefixes), ranker.options.max_length)
    reader = PrefixReader(ranker.backbone, named_read_out(*ranker._read_out()), store, pad_id=ranker.pad_id)
    read = reader.index(prefixes, check_batch_tokens(batch_tokens, ranker.device), show_progress, stop)
    ranker.last_stats = {"documents": read, "tokens": reader.tokens, "cut_documents": cut}
    return read

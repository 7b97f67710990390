"""Rerankers as teachers: they give every document a score, and the scores give the order."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from modeling_tsarank.eval.dense import load_cross_encoder, load_encoder, normalized
from modeling_tsarank.eval.index_cache import model_fingerprint
from modeling_tsarank.eval.scoring import Scorer, predict
from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.models.loading import number_format, resolve_device
from modeling_tsarank.ranking_errors import InputError, NonFiniteScoreError
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_listwise import Ordering
from modeling_tsarank.trainers.data.teacher_types import Completion, Usage


logger = logging.getLogger(__name__)

CROSS_ENCODER_PREFIX = "ce:"
"""In front of a name: a sentence-transformers CrossEncoder; without a prefix, a reranker of this project."""
BI_ENCODER_PREFIX = "dense:"
"""In front of a name: a sentence-transformers bi-encoder, which scores by the cosine of its embeddings."""
CHUNK_PAIRS = 1024
"""Lists are scored together until they have so many pairs: batches are full then, and a document that several lists
share is read once, while a killed run loses no more than these."""

Texts = tuple[str, Sequence[str]]
"""A query and its documents."""


def scorer_identity(name: str) -> dict[str, Any]:
    """What tells a scorer apart from another of the same name, as far as that can be known without loading it."""
    from modeling_tsarank.models.embedded_models import embedded_checkpoint, embedded_ranker

    kind, path = _parted(name)
    embedded = embedded_ranker(path)
    if embedded is not None:
        return {"model": embedded_checkpoint(embedded)}
    identity = {**model_fingerprint(path), "cross_encoder": kind == CROSS_ENCODER_PREFIX}
    return {**identity, "bi_encoder": True} if kind == BI_ENCODER_PREFIX else identity


def _parted(name: str) -> tuple[str, str]:
    """The prefix of a scorer's name, "" if there is none, and the rest."""
    kind = next((prefix for prefix in (CROSS_ENCODER_PREFIX, BI_ENCODER_PREFIX) if name.startswith(prefix)), "")
    return kind, name.removeprefix(kind)


def scorer_name(name: str) -> str:
    """What tables call a scorer: no folders."""
    from modeling_tsarank.eval.checkpoint_sources import display_name

    return display_name(_parted(name)[1])


def scorer_source(name: str) -> str:
    """The folder or Hub id that a scorer is loaded from."""
    return _parted(name)[1]


class BiEncoderScorer:
    """Cosines of a bi-encoder's embeddings as scores; each text is encoded once and its embedding kept in memory.

    Args:
        encoder: A `SentenceTransformer`.
    """

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self._kept: dict[tuple[str, str], np.ndarray] = {}

    def predict(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Cosines, shape `(pairs,)`, float32.

        Raises:
            ModelError: an embedding is not finite.
        """
        queries = self._encoded("query", self._encoder.encode_query, [query for query, _ in pairs])
        documents = self._encoded("document", self._encoder.encode_document, [document for _, document in pairs])
        return np.einsum("ij,ij->i", queries, documents)

    def _encoded(self, kind: str, encode: Callable[..., Any], texts: Sequence[str]) -> np.ndarray:
        lacking = [text for text in dict.fromkeys(texts) if (kind, text) not in self._kept]
        if lacking:
            vectors = normalized(encode(lacking, show_progress_bar=False, convert_to_numpy=True))
            self._kept.update(((kind, text), vector) for text, vector in zip(lacking, vectors, strict=True))
        return np.stack([self._kept[kind, text] for text in texts])


class Bfloat16Scorer:
    """A model of sentence-transformers whose matrix products are in bfloat16 (autocast); its weights stay as they are.

    The layer that gives the score stays in float32 (`exact_scores`).

    Args:
        scorer: The model.
        device: Where it is.
    """

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        self._scorer, self._device = scorer, device
        if isinstance(scorer, torch.nn.Module):
            exact_scores(scorer)

    def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """The model's scores, shape `(pairs,)`, float32."""
        with torch.autocast(self._device.type, torch.bfloat16):
            return predict(self._scorer, pairs).astype(np.float32)


def exact_scores(model: torch.nn.Module) -> None:
    """Has layers with a single output computed in float32 under autocast.

    bfloat16 keeps 8 bits: logits of 9.3 and 9.33 would be one score, and behind a sigmoid all above 6.
    """
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 1:
            layer.forward = functools.partial(_in_float32, layer)  # type: ignore[method-assign]


def _in_float32(layer: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    with torch.autocast(values.device.type, enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return torch.nn.functional.linear(values.float(), layer.weight.float(), bias)


def load_scorer(name: str, device: str | None = None, dtype: str | None = None, **options: Any) -> Scorer:
    """A reranker of this project (folder, Hub id, `default`), with `ce:` a sentence-transformers CrossEncoder, with
    `dense:` a bi-encoder of sentence-transformers.

    Args:
        name: Which.
        device: Torch device.
        dtype: Number format of this project's rerankers; the others compute in float32, or in bfloat16 if it is that.
        **options: Ranking options of this project's rerankers, such as `max_query_length`; of the others `max_length`
            counts alone.

    Raises:
        InputError, ModelError: there is no such device or model.
        ResourceError: sentence-transformers is missing.
    """
    kind, path = _parted(name)
    if not kind:
        from modeling_tsarank.models.loading import load_ranker

        return load_ranker(name, device=device, dtype=dtype, **options)
    scorer: Scorer
    if kind == BI_ENCODER_PREFIX:
        encoder = load_encoder(path, device)
        if "max_length" in options:
            encoder.max_seq_length = min(options["max_length"], encoder.max_seq_length)
        scorer = BiEncoderScorer(encoder)
    else:
        scorer = load_cross_encoder(path, device, options.get("max_length"))
    if dtype != "bfloat16":
        return scorer
    place = resolve_device(device)
    number_format(dtype, place)  # refused where it would be slower
    return Bfloat16Scorer(scorer, place)


class CachedScorer:
    """Scores of (query, documents) from the cache, else of a scorer that is loaded when first needed.

    Args:
        name: See `load_scorer`.
        cache: Where scores are kept, a list at a time.
        usage: Counts the lists.
        batch_tokens: Token budget of a batch.
        device: Torch device.
        dtype: Number format.
        **options: See `load_scorer`.
    """

    def __init__(
        self,
        name: str,
        cache: RequestCache,
        usage: Usage | None = None,
        batch_tokens: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        self.name = scorer_name(name)
        self.full_name = _parted(name)[0] + self.name
        self.usage = usage or Usage()
        if _parted(name)[0]:
            options = {key: value for key, value in options.items() if key != "max_query_length"}
        self._given, self._cache, self._batch_tokens = name, cache, batch_tokens
        self._load_options = {"device": device, "dtype": dtype, **options}
        self._identity = {**scorer_identity(name), "dtype": dtype, "options": options}
        self._scorer: Scorer | None = None

    def describe(self) -> dict[str, Any]:
        """For a card."""
        return {"kind": "scores", "model": self.name, **{k: v for k, v in self._load_options.items() if v is not None}}

    def scores(self, query: str, documents: Sequence[str]) -> list[float]:
        """One score a document, shape `(n,)`; higher is more relevant. See `scores_of`."""
        return next(self.scores_of([(query, documents)]))

    def scores_of(self, lists: Iterable[Texts]) -> Iterator[list[float]]:
        """The scores of each list, in the given order; about `CHUNK_PAIRS` pairs at a time are scored in one call.

        Raises:
            NonFiniteScoreError: the model returned NaN or an infinity.
            ModelError: it did not return one number a document.
        """
        chunk: list[Texts] = []
        for texts in lists:
            chunk.append(texts)
            if sum(len(documents) for _, documents in chunk) >= CHUNK_PAIRS:
                yield from self._score(chunk)
                chunk = []
        if chunk:
            yield from self._score(chunk)

    def _score(self, lists: Sequence[Texts]) -> list[list[float]]:
        requests = [self._request(query, documents) for query, documents in lists]
        cached = [self._cache.get(request) for request in requests]
        lacking = [place for place, scores in enumerate(cached) if scores is None]
        kept: list[list[float]] = [[] if scores is None else [float(score) for score in scores] for scores in cached]
        if lacking:
            if self._scorer is None:
                self._scorer = load_scorer(self._given, **self._load_options)
            pairs = [(lists[place][0], document) for place in lacking for document in lists[place][1]]
            values = iter(float(score) for score in predict(self._scorer, pairs, self._batch_tokens))
            for place in lacking:
                query, documents = lists[place]
                kept[place] = [next(values) for _ in documents]
                if not all(math.isfinite(score) for score in kept[place]):
                    raise NonFiniteScoreError(
                        f"{self.name} gave a score that is not finite for the query {query[:60]!r}"
                    )
                self.usage.add_request(again=False)
                self._cache.put(requests[place], kept[place])
        for place in range(len(lists)):
            self.usage.add_answer(Completion("", 0, 0) if place in lacking else Completion("", cached=True))
        return kept

    def _request(self, query: str, documents: Sequence[str]) -> dict[str, Any]:
        return {"scorer": self._identity, "query": query, "documents": hash_parts(documents)}


class ListScorer(Protocol):
    """What gives the documents of many lists their scores."""

    name: str

    def scores_of(self, lists: Iterable[Texts]) -> Iterator[list[float]]:
        """The scores of each list, in the given order."""


class ScoringTeacher:
    """Orders lists by a scorer; equal scores keep the first stage's order.

    Args:
        scorer: The scorer, or a mixture of several (`MixedScorer`).
    """

    def __init__(self, scorer: ListScorer) -> None:
        self._scorer = scorer
        self.name = scorer.name

    def order(self, query: str, documents: Sequence[str]) -> Ordering:
        """The order of n documents, with the scores; always `clean`.

        Raises:
            InputError: fewer than two documents.
        """
        return next(self.order_many([(query, documents)]))

    def order_many(self, lists: Sequence[Texts]) -> Iterator[Ordering]:
        """The order of each list, as `order` gives it; many are scored together.

        Raises:
            InputError: fewer than two documents in a list.
        """
        for _, documents in lists:
            if len(documents) < 2:
                raise InputError(f"a teacher orders at least two documents, got {len(documents)}")
        for scores in self._scorer.scores_of(lists):
            order = np.argsort(-np.asarray(scores), kind="stable")
            yield Ordering("clean", [int(index) for index in order], scores=scores)

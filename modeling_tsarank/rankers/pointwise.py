"""Models that score pairs: this project's rerankers, and cross-encoders and bi-encoders of sentence-transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..models.embedded_models import embedded_checkpoint
from ..models.fingerprints import model_fingerprint
from ..models.loading import load_ranker, number_format, resolve_device
from ..models.resolver import Kind, Source, resolve
from ..models.sentence_encoders import load_cross_encoder, load_encoder, normalized, sentence_transformers_kind
from ..ranking_errors import InputError
from .protocols import Scorer, predict


CROSS_ENCODER, BI_ENCODER = "ce:", "dense:"


def prefix_of(source: Source, revision: str | None = None) -> str:
    """`ce:` or `dense:` for a model of sentence-transformers, by its files if the name has no prefix; else "".

    Raises:
        ModelError: it is a model of sentence-transformers that cannot score pairs.
    """
    if source.kind is Kind.SENTENCE_TRANSFORMERS:
        is_cross_encoder = sentence_transformers_kind(source.name, revision) == "CrossEncoder"
        return CROSS_ENCODER if is_cross_encoder else BI_ENCODER
    return {Kind.CROSS_ENCODER: CROSS_ENCODER, Kind.BI_ENCODER: BI_ENCODER}.get(source.kind, "")


def scorer_identity(name: str) -> dict[str, Any]:
    """What distinguishes a scorer from another of the same name, as far as known without loading it."""
    source = resolve(name)
    if source.packaged:
        return {"model": embedded_checkpoint(source.name)}
    kind = prefix_of(source)
    identity = {**model_fingerprint(source.name), "cross_encoder": kind == CROSS_ENCODER}
    return {**identity, "bi_encoder": True} if kind == BI_ENCODER else identity


class BiEncoderScorer:
    """Cosine similarities of a bi-encoder's embeddings as scores; each text is encoded once and cached in memory.

    Args:
        encoder: A `SentenceTransformer`.
    """

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.device = encoder.device
        self.number_format = "float32"
        self._kept: dict[tuple[str, str], np.ndarray] = {}

    def predict(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Cosine similarities, shape `(pairs,)`, float32.

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
    """A model of sentence-transformers whose matrix products are in bfloat16 (autocast); its weights are unchanged.

    The layer with the score stays in float32 (`exact_scores`).

    Args:
        scorer: The model.
        device: Its device.
    """

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        self._scorer, self.device = scorer, device
        self.number_format = "bfloat16"
        if isinstance(scorer, torch.nn.Module):
            exact_scores(scorer)

    def predict(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """The model's scores, shape `(pairs,)`, float32."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return predict(self._scorer, pairs).astype(np.float32)


def exact_scores(model: torch.nn.Module) -> None:
    """Makes layers with a single output compute in float32 under autocast.

    bfloat16 has 8 bits: logits of 9.3 and 9.33 would be the same score, and after a sigmoid all above 6.
    """
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 1:
            layer.forward = functools.partial(_in_float32, layer)  # type: ignore[method-assign]


def _in_float32(layer: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    with torch.autocast(values.device.type, enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return torch.nn.functional.linear(values.float(), layer.weight.float(), bias)


def foreign_dtype(given: str, device: Any) -> str:
    """The number format of a model of sentence-transformers by its `--dtype`: float32, unless bfloat16 is given.

    Raises:
        InputError: another format, or one that the device does not support.
    """
    dtype = "float32" if given == "auto" else number_format(given, device)
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"models of sentence-transformers support float32 (auto) and bfloat16, not {given}")
    return dtype


def load_scorer(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Scorer:
    """A model that scores pairs, by name.

    Args:
        name: A reranker of this project, or a cross-encoder or bi-encoder of sentence-transformers; see
            `models.resolver`.
        device: Torch device.
        dtype: Number format of this project's rerankers; others compute in float32, or bfloat16 if given.
        revision: Branch, tag or commit of a Hub model.
        trust_remote_code: Whether to run a model's own code from the Hub.
        **options: Ranking options of this project's rerankers, such as `max_query_length`; others only use
            `max_length`.

    Raises:
        InputError, ModelError: no such device or model, or a service, which orders lists.
        ResourceError: sentence-transformers is missing.
    """
    source = resolve(name, revision)
    kind, path = prefix_of(source, revision), source.name
    hub: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if source.kind is Kind.SERVICE:
        raise InputError(f"{path} is a service, which orders lists; expected a model that scores pairs")
    if not kind:
        return load_ranker(name, device=device, dtype=dtype, **hub, **options)
    scorer: Scorer
    if kind == BI_ENCODER:
        encoder = load_encoder(path, device, **hub)
        if "max_length" in options:
            encoder.max_seq_length = min(options["max_length"], encoder.max_seq_length)
        scorer = BiEncoderScorer(encoder)
    else:
        scorer = load_cross_encoder(path, device, options.get("max_length"), **hub)
    if dtype != "bfloat16":
        return scorer
    place = resolve_device(device)
    number_format(dtype, place)  # raises if it would be slower
    return Bfloat16Scorer(scorer, place)

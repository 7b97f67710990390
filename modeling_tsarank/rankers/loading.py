"""`load_ranker`: a model by name, with a ranking method: pair by pair, or a list at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal, overload

from ..modeling_ranker import RankerModel
from ..models.loading import load_ranker as load_pointwise
from ..models.loading import resolve_device, resolve_dtype
from ..models.resolver import OTHER_LIBRARIES, Kind, resolve
from ..ranking_errors import InputError, ModelError
from . import RANKERS
from .chat import ChatEndpoint, ChatSettings
from .chat_local import LocalChat
from .first import FirstRanker
from .in_context import InContextRanker
from .labels import ChatLabels, LabelModel
from .listwise import ListwiseRanker
from .one_pass import OnePassRanker
from .pairwise import PairwiseRanker
from .protocols import ListRanker
from .setwise import SetwiseRanker


_CLASSES: dict[str, Any] = {
    "listwise": ListwiseRanker,
    "first": FirstRanker,
    "setwise": SetwiseRanker,
    "pairwise": PairwiseRanker,
    "attention": InContextRanker,
    "one-pass": OnePassRanker,
}
Name = str | os.PathLike[str] | None
# RankGPT's, with the prompt that small models follow.
_DEFAULTS = {"listwise": {"window": 20, "step": 10, "prompt": "single"}}


@overload
def load_ranker(name_or_path: Name = None, *, ranker: Literal["pointwise"] = ..., **options: Any) -> RankerModel: ...
@overload
def load_ranker(name_or_path: Name = None, *, ranker: str, **options: Any) -> ListRanker: ...
def load_ranker(
    name_or_path: Name = None,
    *,
    ranker: str = RANKERS[0],
    ranker_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> RankerModel | ListRanker:
    """Loads a reranker.

    Args:
        name_or_path: See `models.loading.load_ranker` for `pointwise`; for the others any language model (Hub id,
            folder, `zero-shot`), or the URL of an OpenAI-compatible server.
        ranker: `pointwise`: a ranking model, or one built from a plain language model, with `predict` and `rank`.
            Others order the documents of a query together and only have `rank`: `listwise` (RankGPT: the model writes
            the order of a window), `first` (FIRST: the order of the labels' logits), `setwise` (the best of a few
            documents, in a heap), `pairwise` (PRP: the better of two), `attention` (in-context re-ranking: the
            attention of the query to the passages), `one-pass` (the attention of the query to cached document states).
        ranker_options: Options of the method: fields of `ListwiseOptions`, `FirstOptions`, `SetwiseOptions`,
            `PairwiseOptions`, `InContextOptions` or `OnePassOptions`.
        options: Further arguments of `models.loading.load_ranker`, or of `load_list_ranker`.

    Raises:
        InputError, ModelError, ResourceError: Each with a one-line message.
    """
    if ranker == RANKERS[0]:
        if ranker_options:
            raise InputError("ranker_options are for rankers of lists; name one with ranker")
        return load_pointwise(name_or_path, **options)
    return load_list_ranker(name_or_path, ranker, ranker_options, **options)


def list_options(ranker: str, given: Mapping[str, Any] | None = None) -> Any:
    """The options of a ranker of lists, as the dataclass of that ranker. Raises `InputError` for unknown ones."""
    if ranker not in _CLASSES:
        raise InputError(f"unknown ranker {ranker!r}; expected one of {', '.join(RANKERS)}")
    cls = _CLASSES[ranker].options_class
    names = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(given or {}) - set(names))
    if unknown:
        raise InputError(f"{ranker} has no option {unknown[0]!r}; it has {', '.join(names)}")
    return cls(**{**_DEFAULTS.get(ranker, {}), **(given or {})})


def load_list_ranker(
    name_or_path: Name,
    ranker: str,
    ranker_options: Mapping[str, Any] | None = None,
    *,
    batch_tokens: int | None = None,
    max_new_tokens: int = 256,
    endpoint: ChatSettings | None = None,
    **more: Any,
) -> ListRanker:
    """A ranker of lists over a language model on this machine or behind a URL.

    Args:
        name_or_path: See `load_ranker`.
        ranker: One of `RANKERS` except `pointwise`.
        ranker_options: See `load_ranker`.
        batch_tokens: Padded tokens in a batch.
        max_new_tokens: Maximum tokens of an answer of a local `listwise` model.
        endpoint: Model, key and limits of a server; required for a URL.
        more: `device`, `dtype`, `revision` and `trust_remote_code` of a model on this machine, see
            `models.loading.load_ranker`; ranking options of the pointwise model of `one-pass`, such as `max_length`.

    Raises:
        InputError, ModelError, ResourceError: Each with a one-line message.
    """
    options = list_options(ranker, ranker_options)
    source = resolve(name_or_path, more.get("revision"))
    without_effect = sorted(more.keys() - {"device", "dtype", "revision", "trust_remote_code"})
    if without_effect and ranker != "one-pass":
        raise InputError(f"{without_effect[0]} has no effect on a {ranker} ranker; leave it out")
    model: Any
    if source.kind is Kind.SERVICE:
        if endpoint is None:
            raise InputError("a language model behind a URL needs a model name (--api-model)")
        if ranker in ("first", "attention", "one-pass"):
            raise InputError(f"{ranker} needs logits or attention, which servers return in part; use a local model")
        chat = ChatEndpoint(endpoint)
        model = chat if ranker == "listwise" else ChatLabels(chat)
    elif source.kind in OTHER_LIBRARIES:
        raise ModelError(f"{source.name} is a {source.kind}; {ranker} needs a language model")
    elif ranker == "one-pass":
        model = load_pointwise(name_or_path, **more)
    elif ranker == "listwise":
        model = LocalChat(source.name, max_new_tokens=max_new_tokens, **more)
    else:
        model = load_label_model(source.name, batch_tokens=batch_tokens, **more)
    found: ListRanker = _CLASSES[ranker](model, options)
    return found


def load_label_model(
    name_or_path: Name,
    *,
    batch_tokens: int | None = None,
    device: Any = None,
    dtype: Any = None,
    **hub: Any,
) -> LabelModel:
    """A language model that scores labels by their logits; several rankers may share it. See `load_list_ranker`."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from ..models.checkpoints import load_backbone

    source = resolve(name_or_path)
    place = resolve_device(device)
    backbone, tokenizer = load_backbone(
        source.location(),
        lambda config: AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM,
        dtype=resolve_dtype(dtype, place),
        **hub,
    )
    return LabelModel(backbone.to(place), tokenizer, source.label, batch_tokens)

"""The models that the Space offers by name, loaded on first use; only one runs at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.models.default_model import DEFAULT_NAME
from modeling_tsarank.models.embedded_models import releases
from modeling_tsarank.models.families import families
from modeling_tsarank.models.resolver import Kind, resolve
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError
from modeling_tsarank.ranking_options import CONFIG_KEY, Explanation
from modeling_tsarank.ranking_text import clean_query


logger = logging.getLogger(__name__)

# Cached rankings, so that the example every visitor sees first is computed once. A key is a hash, a value scores.
_REMEMBERED = 128


@dataclass(frozen=True)
class Scored:
    """Scores of documents in their order, higher is better; tokens processed; seconds of computation, without waiting
    for other requests; how many documents were truncated to the model's length."""

    scores: tuple[float, ...]
    tokens: int
    seconds: float
    remembered: bool = False
    cut_documents: int = 0


@dataclass(frozen=True)
class Explained:
    """The explanation of a document's score: the model family's own, tokens processed, and seconds of computation."""

    family: str
    explanation: Explanation
    tokens: int
    seconds: float


class ModelShelf:
    """Named rankers. `loaders` maps each name to a function that loads it; the first name is the default."""

    def __init__(self, loaders: Mapping[str, Callable[[], Any]], limits: Limits) -> None:
        self.names = tuple(loaders)
        self.limits = limits
        self._loaders = dict(loaders)
        self._models: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._memory: OrderedDict[str, Scored] = OrderedDict()

    def get(self, name: str | None = None) -> tuple[str, Any]:
        """The name (None: the default) and the loaded model. Raises `InputError` for an unknown name."""
        name = self.names[0] if name in (None, "") else name
        if not isinstance(name, str) or name not in self._loaders:
            raise InputError(f"no model {str(name)[:80]!r} here; offered: {', '.join(self.names)}")
        with self._lock:
            if name not in self._models:
                logger.info("loading the model %s", name)
                self._models[name] = self._loaders[name]()
        return name, self._models[name]

    def score(self, query: str, documents: Sequence[str], name: str | None = None) -> Scored:
        """Scores of `documents` for `query`.

        Raises `InputError` for an empty query or too many tokens, `ResourceError` after the time limit.
        """
        name, model = self.get(name)
        query = clean_query(query)
        self.limits.check_query(query)
        key = hashlib.sha256(json.dumps([name, query, list(documents)]).encode()).hexdigest()
        with self._lock:
            if key in self._memory:
                self._memory.move_to_end(key)
                return replace(self._memory[key], remembered=True)
            pairs = [(query, document) for document in documents]
            self._check_tokens(model, pairs)
            started = time.perf_counter()
            scores = self._in_time(lambda stop: model.predict(pairs, show_progress=False, stop=stop))
            scored = Scored(
                tuple(float(score) for score in scores),
                model.last_stats["tokens"],
                time.perf_counter() - started,
                cut_documents=model.last_stats["cut_documents"],
            )
            self._memory[key] = scored
            while len(self._memory) > _REMEMBERED:
                self._memory.popitem(last=False)
            return scored

    def explain(self, query: str, document: str, name: str | None = None) -> Explained:
        """The parts of one document's score. Raises like `score`."""
        name, model = self.get(name)
        query = clean_query(query)
        self.limits.check_query(query)
        with self._lock:
            tokens = self._check_tokens(model, [(query, document)])
            started = time.perf_counter()
            explanation = model.explain(query, document)
            seconds = time.perf_counter() - started
        return Explained(model.options.family, explanation, tokens, seconds)

    def _check_tokens(self, model: Any, pairs: Sequence[tuple[str, str]]) -> int:
        encoded = model.encoder.pairs(pairs)
        tokens = sum(len(pair.prompt) + len(pair.query) for pair in encoded)
        self.limits.check_tokens(tokens, len(pairs))
        return tokens

    def _in_time(self, work: Callable[[Callable[[], bool]], Any]) -> Any:
        from modeling_tsarank.ranking_scoring import RankingCancelled

        deadline = time.monotonic() + self.limits.seconds
        try:
            return work(lambda: time.monotonic() > deadline)
        except RankingCancelled:
            raise ResourceError(
                f"the ranking was stopped after {self.limits.seconds} seconds; provide fewer or shorter documents"
            ) from None


def _label(name: str | None) -> str:
    """A model's name without folders; a Hub id unchanged."""
    source = resolve(name)
    return source.name if source.kind in (Kind.HUB, Kind.PUBLISHED) else source.label


def _other_families(ranker: Any, label: str) -> dict[str, Callable[[], Any]]:
    """Rankers of all other families on the weights of a plain model, by name."""
    found: dict[str, Callable[[], Any]] = {}
    for cls in families().values():
        if cls is type(ranker):
            continue
        try:
            other = cls.from_backbone(ranker.backbone, tokenizer=ranker.tokenizer)
            _ = other.encoder
        except ModelError as error:  # for example a vocabulary in which "true" or "false" is not one token
            logger.info("%s is not offered as %s: %s", label, cls.title, error)
        else:
            found[f"{label} ({cls.title.lower()}, untrained)"] = lambda other=other: other  # type: ignore[misc]
    return found


def make_shelf(model: str | None, others: Sequence[str], limits: Limits) -> ModelShelf:
    """A shelf with `model` (None: the embedded default) first, followed by models to compare it with.

    If no others are given, a comparison is still offered: a plain model is also used as a ranker of the other
    families that it supports, with the same weights and therefore no extra memory; any other model is compared with
    the embedded default.

    Raises `InputError` if two models would have the same name.
    """
    from modeling_tsarank.models.loading import load_ranker  # torch takes seconds to import

    main_label = _label(model)
    loaders: dict[str, Callable[[], Any]] = {main_label: lambda: load_ranker(model)}
    for other in others:
        label = _label(other)
        if label in loaders:
            raise InputError(f"two models would be called {label!r}; name folders that end differently")
        loaders[label] = lambda other=other: load_ranker(other)  # type: ignore[misc]
    if others:
        return ModelShelf(loaders, limits)
    first = load_ranker(model)
    loaders[main_label] = lambda: first
    if not getattr(first.backbone.config, CONFIG_KEY, None):
        loaders |= _other_families(first, main_label)
    else:
        # The embedded ranker is compared with the model it was trained from, any other model with the embedded one.
        release = releases().get(main_label)
        beside = None if main_label != _label(None) else (release and release.below_name) or DEFAULT_NAME
        if _label(beside) != main_label:
            loaders[_label(beside)] = lambda: load_ranker(beside)
    return ModelShelf(loaders, limits)

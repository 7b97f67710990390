"""The models the Space offers by name, loaded when first asked for; one of them works at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.models.default_model import DEFAULT_NAME
from modeling_tsarank.models.embedded_models import releases
from modeling_tsarank.models.resolver import Kind, resolve
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError
from modeling_tsarank.ranking_options import CONFIG_KEY, LogitOptions
from modeling_tsarank.ranking_text import clean_query


logger = logging.getLogger(__name__)

# Rankings remembered, so that the example every visitor sees first is computed once. A key is a hash, a value scores.
_REMEMBERED = 128
TRUE_FALSE = "true/false logits, untrained"


@dataclass(frozen=True)
class Scored:
    """Scores of documents in their order, higher is better; tokens read; seconds of work, waiting not
    included; how many documents were longer than the model reads."""

    scores: tuple[float, ...]
    tokens: int
    seconds: float
    remembered: bool = False
    cut_documents: int = 0


@dataclass(frozen=True)
class Explanation:
    """Why a document got its score.

    Attributes:
        kind: `query_likelihood`, where `parts` are the query's tokens and log p(token | document, tokens before it);
            `true_false_logits`, where `parts` are the answer tokens and their logits.
        parts: Text and value, in order.
        score: The score itself, as in the ranking.
        rule: How the score follows from the parts, in words.
        tokens: Tokens read.
        seconds: Seconds of work.
    """

    kind: str
    parts: tuple[tuple[str, float], ...]
    score: float
    rule: str
    tokens: int
    seconds: float


class ModelShelf:
    """Named rankers. `loaders` gives for each name a function that loads it; the first name is the default."""

    def __init__(self, loaders: Mapping[str, Callable[[], Any]], limits: Limits) -> None:
        self.names = tuple(loaders)
        self.limits = limits
        self._loaders = dict(loaders)
        self._models: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._memory: OrderedDict[str, Scored] = OrderedDict()

    def get(self, name: str | None = None) -> tuple[str, Any]:
        """The name (None: the default's) and the loaded model. Raises `InputError` for a name that is not offered."""
        name = self.names[0] if name in (None, "") else name
        if not isinstance(name, str) or name not in self._loaders:
            raise InputError(f"no model {str(name)[:80]!r} here; offered: {', '.join(self.names)}")
        with self._lock:
            if name not in self._models:
                logger.info("loading the model %s", name)
                self._models[name] = self._loaders[name]()
        return name, self._models[name]

    def family(self, name: str | None = None) -> str:
        """`query_likelihood` or `true_false_logits`."""
        return self.get(name)[1].options.family

    def score(self, query: str, documents: Sequence[str], name: str | None = None) -> Scored:
        """Scores of `documents` for `query`.

        Raises `InputError` for an empty query or too many tokens, `ResourceError` when the time is up.
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

    def explain(self, query: str, document: str, name: str | None = None) -> Explanation:
        """The parts of one document's score. Raises like `score`."""
        name, model = self.get(name)
        query = clean_query(query)
        self.limits.check_query(query)
        with self._lock:
            tokens = self._check_tokens(model, [(query, document)])
            started = time.perf_counter()
            if model.options.family == LogitOptions.family:
                parts = tuple(model.answer_scores(query, document).items())
            else:
                parts = tuple(model.token_log_probs(query, document))
            seconds = time.perf_counter() - started
        score = _score_of([value for _, value in parts], model.options)
        return Explanation(model.options.family, parts, score, _rule(model.options), tokens, seconds)

    def _check_tokens(self, model: Any, pairs: Sequence[tuple[str, str]]) -> int:
        encoded = model.encoder.pairs(pairs)
        tokens = sum(len(pair.prompt) + len(pair.query) for pair in encoded)
        self.limits.check_tokens(tokens, len(pairs))
        return tokens

    def _in_time(self, work: Callable[[Callable[[], bool]], Any]) -> Any:
        from modeling_tsarank.ranking_engine import RankingCancelled

        deadline = time.monotonic() + self.limits.seconds
        try:
            return work(lambda: time.monotonic() > deadline)
        except RankingCancelled:
            raise ResourceError(
                f"the ranking was stopped after {self.limits.seconds} seconds; give fewer or shorter documents"
            ) from None


def _score_of(values: Sequence[float], options: Any) -> float:
    """The score that follows from an explanation's values; a test holds it to what `predict` says."""
    if options.family != LogitOptions.family:
        return math.fsum(values) / (len(values) if options.aggregation == "mean" else 1)
    if options.strategy == "difference":
        return values[0] - values[1]
    return values[0] if options.strategy == "single_token" else 0.5 * (1 + math.tanh((values[0] - values[1]) / 2))


def _rule(options: Any) -> str:
    if options.family != LogitOptions.family:
        return "mean of the values" if options.aggregation == "mean" else "sum of the values"
    return {
        "difference": "the first logit less the second",
        "softmax": "the first one's probability among the two",
        "single_token": "the logit itself",
    }[options.strategy]


def _load(name: str | None) -> Any:
    from modeling_tsarank.models.loading import load_ranker

    return load_ranker(name)


def _label(name: str | None) -> str:
    """Its name without folders; a Hub id whole."""
    source = resolve(name)
    return source.name if source.kind in (Kind.HUB, Kind.PUBLISHED) else source.label


def make_shelf(model: str | None, others: Sequence[str] = (), limits: Limits | None = None) -> ModelShelf:
    """A shelf with `model` (None: the embedded default) first, and what it is compared with.

    Where no others are named there is still something to compare: a plain decoder-only model is also offered as a
    true/false ranker on the same weights, which costs no memory; any other model is compared with the embedded
    default.

    Raises `InputError` if two models would have the same name.
    """
    from modeling_tsarank.modeling_tsarank import TSARankModel
    from modeling_tsarank.modeling_twolar import TwolarModel

    main_label = _label(model)
    loaders: dict[str, Callable[[], Any]] = {main_label: lambda: _load(model)}
    for other in others:
        label = _label(other)
        if label in loaders:
            raise InputError(f"two models would be called {label!r}; name folders that end differently")
        loaders[label] = lambda other=other: _load(other)  # type: ignore[misc]
    shelf = ModelShelf(loaders, limits or Limits.from_environment())
    if others:
        return shelf
    first = shelf.get()[1]
    if isinstance(first, TSARankModel) and not getattr(first.backbone.config, CONFIG_KEY, None):
        try:
            second = TwolarModel.from_backbone(first.backbone, tokenizer=first.tokenizer)
            second.answer_ids()
        except ModelError as error:  # a vocabulary without a whole "true" and "false"
            logger.info("%s is not offered with true/false logits: %s", main_label, error)
            return shelf
        loaders[f"{main_label} ({TRUE_FALSE})"] = lambda: second
    else:
        # The embedded ranker is compared with the model it was trained from, any other model with the embedded one.
        release = releases().get(main_label)
        beside = None if main_label != _label(None) else (release and release.below_name) or DEFAULT_NAME
        if _label(beside) != main_label:
            loaders[_label(beside)] = lambda: _load(beside)
    whole = ModelShelf(loaders, shelf.limits)
    whole._models[main_label] = first
    return whole

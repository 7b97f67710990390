"""Chat models: the interface, and the client of an OpenAI-compatible server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..ranking_errors import InputError
from ..ranking_options import settle_whole_numbers
from .endpoint import Endpoint, EndpointSettings, Usage, token_count


Message = dict[str, str]
"""One message of a conversation: `{"role", "content"}`."""


@dataclass(frozen=True)
class Completion:
    """A model's answer to one request.

    Attributes:
        text: The generated text.
        prompt_tokens: Prompt tokens, None if the server does not report them.
        completion_tokens: Generated tokens, None if the server does not report them.
        finish_reason: `stop`, or `length` for a truncated answer; None if unknown.
        cached: Whether the answer comes from the cache, without a request.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    cached: bool = False


class AnswerCache(Protocol):
    """Stores answers by request; both are JSON values."""

    def get(self, request: Any) -> Any | None:
        """The answer to `request`, or None if there is none."""

    def put(self, request: Any, answer: Any) -> None:
        """Stores an answer."""


class ChatModel:
    """Answers conversations, from the cache if possible; every new answer is cached.

    Args:
        name: The name for tables.
        usage: Counters of requests.
        cache: Where answers are cached.
    """

    def __init__(self, name: str, usage: Usage | None = None, cache: AnswerCache | None = None) -> None:
        self.name = name
        self.usage = usage or Usage()
        self._cache = cache

    def complete(self, messages: Sequence[Message], attempt: int = 0) -> Completion:
        """The answer to `messages`; `attempt` counts earlier attempts with the same messages.

        Raises:
            RequestRefusedError: the server rejects this request.
            UnreachableError: no answer to this request.
            TSARankError: no request can succeed (no such model, a wrong key, no credit left).
        """
        request = {**self.request(messages), "attempt": attempt}
        kept = None if self._cache is None else self._cache.get(request)
        if kept is not None:
            self.usage.add(cached=1)
            return Completion(**kept, cached=True)
        completion = self.answer(messages)
        if self._cache is not None:
            self._cache.put(request, {name: value for name, value in asdict(completion).items() if name != "cached"})
        return completion

    def request(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Everything that the answer depends on, without secrets: its cache key."""
        raise NotImplementedError

    def answer(self, messages: Sequence[Message]) -> Completion:
        """Runs the model; raises as `complete` does."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Model and settings for a card, without secrets."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChatSettings(EndpointSettings):
    """Address and request settings of an OpenAI-compatible server.

    Attributes:
        temperature: Sampling temperature (RankGPT: 0).
        max_tokens: Maximum tokens of an answer; None for the server's default.
        url, model, key_variable, timeout, tries, ...: See `EndpointSettings`; `/chat/completions` is added to the URL.

    Raises:
        InputError: a value out of range, or an invalid URL or one with credentials.
    """

    temperature: float = 0.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise InputError("a chat model behind a URL needs a model name (--teacher-model, --api-model)")
        settle_whole_numbers(self, "max_tokens")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be a finite number of at least 0, got {self.temperature}")


class ChatEndpoint(Endpoint, ChatModel):
    """A client of an OpenAI-compatible server, `POST {url}/chat/completions`; safe for several threads.

    Args:
        settings: Address and request settings.
        cache: Where answers are cached.
        usage: Counters of requests.

    Raises:
        InputError, ResourceError: see `Endpoint`.
    """

    def __init__(self, settings: ChatSettings, cache: AnswerCache | None = None, usage: Usage | None = None) -> None:
        Endpoint.__init__(self, settings, "/chat/completions", usage)
        ChatModel.__init__(self, settings.model, self.usage, cache)

    def describe(self) -> dict[str, Any]:
        """See `ChatModel.describe`."""
        return {"kind": "endpoint", **{k: v for k, v in asdict(self.settings).items() if k != "key_variable"}}

    def request(self, messages: Sequence[Message]) -> dict[str, Any]:
        """See `ChatModel.request`."""
        return {"url": self.url, "payload": self._payload(messages)}

    def answer(self, messages: Sequence[Message]) -> Completion:
        """See `ChatModel.answer`."""
        completion = self.ask(self._payload(messages), self._read)
        self.usage.add_answer(completion.prompt_tokens, completion.completion_tokens, self.settings)
        return completion

    def _payload(self, messages: Sequence[Message]) -> dict[str, Any]:
        settings: Any = self.settings
        limit = {} if settings.max_tokens is None else {"max_tokens": settings.max_tokens}
        return {
            "model": settings.model,
            "messages": list(messages),
            "temperature": settings.temperature,
            "stream": False,
            **limit,
        }

    def _read(self, body: Any) -> Completion:
        choice = body["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
        if not isinstance(text, str):
            raise ValueError("no text")
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Completion(
            self.blot(text),
            token_count(usage.get("prompt_tokens")),
            token_count(usage.get("completion_tokens")),
            self.blot(reason) if isinstance(reason, str) else None,
        )

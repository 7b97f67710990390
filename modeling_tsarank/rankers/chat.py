"""Chat models: anything that answers a conversation, and the one behind an OpenAI-compatible server."""

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
        text: What it wrote.
        prompt_tokens: Tokens read, None where the server does not say.
        completion_tokens: Tokens written, None where the server does not say.
        finish_reason: `stop`, or `length` for an answer cut at its longest; None where unknown.
        cached: Whether it comes from the cache, so that nothing was asked.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    cached: bool = False


class AnswerCache(Protocol):
    """Keeps answers by request; both are JSON values."""

    def get(self, request: Any) -> Any | None:
        """The answer to `request`, or None where it was never answered."""

    def put(self, request: Any, answer: Any) -> None:
        """Keeps an answer."""


class ChatModel:
    """Answers conversations; the cache is asked first, and every answer is kept in it.

    Args:
        name: What tables call it.
        usage: Counts what was asked.
        cache: Where answers are kept.
    """

    def __init__(self, name: str, usage: Usage | None = None, cache: AnswerCache | None = None) -> None:
        self.name = name
        self.usage = usage or Usage()
        self._cache = cache

    def complete(self, messages: Sequence[Message], attempt: int = 0) -> Completion:
        """The answer to `messages`; `attempt` counts the times the same thing was asked before.

        Raises:
            RequestRefusedError: this request is not taken.
            UnreachableError: no answer to this request.
            TSARankError: nothing can be asked at all (no such model, a wrong key, no money left).
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
        """All that the answer depends on, without any secret: the key under which it is kept."""
        raise NotImplementedError

    def answer(self, messages: Sequence[Message]) -> Completion:
        """Asks the model; raises as `complete` does."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Model and settings for a card, without any secret."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChatSettings(EndpointSettings):
    """Where an OpenAI-compatible server is and how it is asked.

    Attributes:
        temperature: Of sampling (RankGPT: 0).
        max_tokens: Longest answer in tokens; None leaves it to the server.
        url, model, key_variable, timeout, tries, ...: See `EndpointSettings`; to the URL `/chat/completions` is added.

    Raises:
        InputError: a value out of range, or an address that is none or carries credentials.
    """

    temperature: float = 0.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise InputError("a chat model at an address needs its name there (--teacher-model, --api-model)")
        settle_whole_numbers(self, "max_tokens")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be a finite number from 0, got {self.temperature}")


class ChatEndpoint(Endpoint, ChatModel):
    """Asks an OpenAI-compatible server, `POST {url}/chat/completions`; safe for several threads.

    Args:
        settings: Where and how.
        cache: Where answers are kept.
        usage: Counts what was asked.

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

"""The shapes that teachers pass around: settings, completions, usage."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.ranking_options import settle_whole_numbers
from modeling_tsarank.trainers.data.teacher_prompt import Message


DEFAULT_KEY_VARIABLE = "TSARANK_TEACHER_KEY"
"""Environment variable that a server's key is read from, if no other is named."""


class RequestRefusedError(ResourceError):
    """The teacher does not take this one request (too long, for example); others may still go through."""


class TeacherUnreachableError(ResourceError):
    """The teacher gave no answer to this request in all the tries allowed; asking again later may help."""


@dataclass(frozen=True)
class Completion:
    """A teacher's answer to one request.

    Attributes:
        text: What it wrote.
        prompt_tokens: Tokens read, None where the teacher does not say.
        completion_tokens: Tokens written, None where the teacher does not say.
        finish_reason: `stop`, or `length` for an answer cut at its longest; None where unknown.
        cached: Whether it comes from the cache, so that nothing was asked.
    """

    text: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    cached: bool = False


class ChatTeacher(Protocol):
    """Anything that answers a conversation."""

    name: str

    def complete(self, messages: Sequence[Message], attempt: int = 0) -> Completion:
        """The answer to `messages`; `attempt` counts the times the same thing was asked before.

        Raises:
            RequestRefusedError: this request is not taken.
            TeacherUnreachableError: no answer to this request.
            TSARankError: nothing can be asked at all (no such model, a wrong key, no money left).
        """


@dataclass(frozen=True)
class EndpointSettings:
    """Where an OpenAI-compatible server is and how it is asked.

    Attributes:
        url: Base address, such as `https://api.example.com/v1`; `/chat/completions` is appended.
        model: The model's name there.
        key_variable: Environment variable with the API key. The key itself is in no setting, file or message.
        temperature: Of sampling (RankGPT: 0).
        max_tokens: Longest answer in tokens; None leaves it to the server.
        timeout: Seconds a request may take as a whole, from connecting to the last byte of the answer.
        tries: How often one request is tried, with exponential back-off in between.
        first_wait: Seconds before the second try; doubled each time, up to `longest_wait`, with up to a quarter of
            jitter. A server's Retry-After is honoured instead where it is longer.
        longest_wait: Longest pause in seconds. A server that asks for more than this stops the run.
        requests_per_minute: Rate limit; None for none.
        prompt_price: Price of a million tokens read.
        completion_price: Price of a million tokens written.
        max_cost: The run stops before a request once this much was spent; requests under way may go beyond it.

    Raises:
        InputError: a value out of range, or an address that is none or carries credentials.
    """

    url: str
    model: str
    key_variable: str = DEFAULT_KEY_VARIABLE
    temperature: float = 0.0
    max_tokens: int | None = None
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0
    requests_per_minute: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0
    max_cost: float | None = None

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            # It is not repeated here: perhaps it is the key itself.
            raise InputError("what was given as the key's environment variable is no name of one; never give the key")
        if not self.model:
            raise InputError("a teacher at an address needs the name of its model (--teacher-model)")
        settle_whole_numbers(self, "tries", "max_tokens")
        for name in ("timeout", "first_wait", "longest_wait", "requests_per_minute", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be a finite number above 0, got {value}")
        for name in ("temperature", "prompt_price", "completion_price"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a finite number from 0, got {getattr(self, name)}")
        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise InputError("a cost limit needs prices: give the price of a million tokens read and written")


def _check_url(url: str) -> None:
    """Messages here never repeat the address: what is wrong with it may be that it carries a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InputError("the teacher's address is no URL; expected one like https://host/v1") from None
    odd = not url.isprintable() or " " in url or "\\" in url
    if odd or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("the teacher's address must begin with http:// or https:// and a host, like https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the teacher's address carries a user, a password, a query or a fragment, which would be written into "
            "logs and cards; give the plain address, and the key in an environment variable (--teacher-key-variable)"
        )


@dataclass
class Usage:
    """What a run asked of its teacher; safe for several threads.

    Attributes:
        requests: Requests that went out, tries included.
        answers: Requests that were answered.
        cached: Answers taken from the cache.
        retries: Tries after the first.
        prompt_tokens: Tokens read, as the server counted.
        completion_tokens: Tokens written.
        uncounted: Answers without a count of tokens.
        cost: Price of all counted tokens of this run, in the currency of the prices.
    """

    requests: int = 0
    answers: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    cost: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add_request(self, again: bool) -> None:
        """Counts a request that goes out; `again` for a retry."""
        with self._lock:
            self.requests += 1
            self.retries += again

    def add_answer(self, completion: Completion, prompt_price: float = 0.0, completion_price: float = 0.0) -> None:
        """Counts an answer and its price per million tokens."""
        with self._lock:
            if completion.cached:
                self.cached += 1
                return
            self.answers += 1
            if completion.prompt_tokens is None or completion.completion_tokens is None:
                self.uncounted += 1
            read, written = completion.prompt_tokens or 0, completion.completion_tokens or 0
            self.prompt_tokens += read
            self.completion_tokens += written
            self.cost += (read * prompt_price + written * completion_price) / 1e6

    def as_dict(self) -> dict[str, float]:
        """All counts by name."""
        with self._lock:
            return {name: value for name, value in vars(self).items() if not name.startswith("_")}

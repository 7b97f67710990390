"""Requests to a model behind a URL: API key, retries, rate limit and cost."""

from __future__ import annotations

import email.utils
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from ..ranking_errors import InputError, ResourceError
from ..ranking_options import settle_whole_numbers
from .http_client import Answer, HttpClient, RequestFailedError


logger = logging.getLogger(__name__)

T = TypeVar("T")

KEY_VARIABLES = ("TSARANK_API_KEY", "TSARANK_TEACHER_KEY")
"""Default environment variables of the API key; only these may be unset."""

RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Temporary statuses."""

_STOPPING = {
    401: "rejects the key in {variable}",
    402: "requires payment",
    403: "does not permit this with the key in {variable}",
    404: "has no such address or model ({url}, {model!r})",
    405: "does not accept such requests at {url}",
}
_MESSAGE_LENGTH = 200


class RequestRefusedError(ResourceError):
    """The server rejects this one request (too long, for example); others may still succeed.

    Attributes:
        status: The server's status, if there was a response.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(ResourceError):
    """No answer to this request in the allowed number of tries; a later run may succeed."""


@dataclass(frozen=True)
class EndpointSettings:
    """Address and request settings of a served model.

    Attributes:
        url: Address, such as `https://api.example.com/v1`.
        model: The model's name on the server.
        key_variable: Environment variable with the API key. The key itself is in no setting, file or message.
        timeout: Total seconds of a request, from connecting to the last byte of the answer.
        tries: Maximum tries of a request, with exponential back-off in between.
        first_wait: Seconds before the second try; doubled each time, up to `longest_wait`, with up to a quarter of
            jitter. A longer Retry-After of the server takes precedence.
        longest_wait: Longest pause in seconds. A longer Retry-After stops the run.
        requests_per_minute: Rate limit; None for none.
        prompt_price: Price of a million prompt tokens.
        completion_price: Price of a million generated tokens.
        max_cost: The run stops before a request once this much was spent; requests in progress may exceed it.

    Raises:
        InputError: a value out of range, or an invalid URL or one with credentials.
    """

    url: str
    model: str
    key_variable: str = KEY_VARIABLES[0]
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
            # The value is not repeated here: it may be the key itself.
            raise InputError("invalid name of the key's environment variable; give the variable's name, never the key")
        settle_whole_numbers(self, "tries")
        for name in ("timeout", "first_wait", "longest_wait", "requests_per_minute", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be a finite number above 0, got {value}")
        for name in ("prompt_price", "completion_price"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise InputError("a cost limit needs prices: give those of a million prompt and generated tokens")


def _check_url(url: str) -> None:
    """Messages here never repeat the URL: it may contain a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InputError("the model's address is not a URL; expected one like https://host/v1") from None
    odd = not url.isprintable() or " " in url or "\\" in url
    if odd or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("the model's address must begin with http:// or https:// and a host, like https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the model's URL has a user, a password, a query or a fragment, which would be written to logs and cards; "
            "give the plain URL, and the key in an environment variable"
        )


@dataclass
class Usage:
    """Counters of requests to a model; safe for several threads.

    Attributes:
        requests: Requests sent, including retries.
        answers: Requests that were answered.
        cached: Answers from a cache.
        retries: Tries after the first.
        prompt_tokens: Prompt tokens, as reported by the server.
        completion_tokens: Generated tokens.
        uncounted: Answers without a token count.
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

    def add(self, **counts: float) -> None:
        """Adds to the counts of these names."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def add_answer(self, read: int | None, written: int | None, settings: EndpointSettings | None = None) -> None:
        """Counts an answer, its tokens and their price."""
        cost = 0.0
        if settings is not None:
            cost = ((read or 0) * settings.prompt_price + (written or 0) * settings.completion_price) / 1e6
        uncounted = read is None or written is None
        self.add(answers=1, uncounted=uncounted, prompt_tokens=read or 0, completion_tokens=written or 0, cost=cost)

    def as_dict(self) -> dict[str, float]:
        """All counts by name."""
        with self._lock:
            return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class Endpoint:
    """A server with JSON POST requests; safe for several threads.

    A request is retried, after an exponential back-off that honours Retry-After, if the server cannot be reached,
    takes too long, closes the connection, returns a status of `RETRIED_STATUSES`, or a response in an unexpected form.

    The key is read from the environment once and is only in the HTTP client's headers; it is removed from everything
    that a server returns before that reaches a message or a caller.

    Args:
        settings: Address and request settings.
        path: Appended to the settings' URL.
        usage: Counters of requests.

    Raises:
        InputError: the given variable of the key is not set, or the key has white space or characters that are invalid
            in a header.
        ResourceError: the package httpx2 is missing.
    """

    def __init__(self, settings: EndpointSettings, path: str = "", usage: Usage | None = None) -> None:
        self.settings = settings
        self.name = settings.model or urlsplit(settings.url).hostname or ""
        self.usage = usage or Usage()
        self.url = settings.url.rstrip("/") + path
        if settings.key_variable not in (*KEY_VARIABLES, *os.environ):
            raise InputError("the environment variable of the key is not set; give the variable's name, not the key")
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise InputError(f"the key in {settings.key_variable} has white space or characters that are not ASCII")
        # At DEBUG it logs the server's headers, and a server may echo what it was sent.
        logging.getLogger("httpcore2").setLevel(logging.INFO)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = HttpClient(self.url, settings.timeout, headers)
        self._jitter = random.Random()
        self._spacing = 60.0 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next = 0.0

    def ask(self, payload: Any, read: Callable[[Any], T]) -> T:
        """Returns `read` of the answer's JSON; retries if `read` fails (`ValueError` and the like).

        Raises:
            RequestRefusedError: the server rejects this request.
            UnreachableError: no answer to this request.
            ResourceError: no request can succeed (no such model, a wrong key, the cost limit reached).
        """
        settings, reason = self.settings, ""
        for number in range(settings.tries):
            if number:
                wait = min(settings.first_wait * 2.0 ** min(number - 1, 64), settings.longest_wait)
                self._sleep(wait * (1.0 + 0.25 * self._jitter.random()))
            self._check_cost()
            self._wait()
            self.usage.add(requests=1, retries=number > 0)
            try:
                answer = self._client.post(payload)
                if answer.status == 200:
                    return read(answer.json())
            except RequestFailedError as error:
                reason = self._clean(str(error))
            except (ValueError, LookupError, TypeError, AttributeError):
                reason = "a response in an unexpected form"
            else:
                if answer.status not in RETRIED_STATUSES:
                    self._refuse(answer)
                reason = f"status {answer.status}"
                self._honour_retry_after(answer)
            logger.info("%s: %s (try %d of %d)", self.name, reason, number + 1, settings.tries)
        raise UnreachableError(f"{self.name} at {settings.url} gave no answer in {settings.tries} tries ({reason})")

    def _wait(self) -> None:
        """Applies the rate limit over all threads: returns when the next request may be sent."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self._spacing
        self._sleep(start - time.monotonic())

    def _sleep(self, seconds: float) -> None:
        """Waits, unless stopped. Raises `UnreachableError` when stopped."""
        if self._stop.wait(max(seconds, 0.0)) if seconds > 0 else self._stop.is_set():
            raise UnreachableError("stopped before the request was answered")

    def _check_cost(self) -> None:
        limit = self.settings.max_cost
        if limit is not None and self.usage.cost >= limit:
            raise ResourceError(
                f"the answers of {self.name} have cost {self.usage.cost:.4f}, the limit is {limit}: paid answers are "
                "saved; to continue, run again with a higher limit (max_cost)"
            )

    def _honour_retry_after(self, answer: Answer) -> None:
        seconds = retry_after_seconds(answer.headers.get("retry-after"))
        if seconds is None:
            return
        if seconds > self.settings.longest_wait:
            raise ResourceError(
                f"{self.name} asks to wait {seconds:.0f} s, longer than the longest wait of "
                f"{self.settings.longest_wait:.0f} s; finished answers are saved, run again later"
            )
        with self._lock:  # no thread sends a request for this time
            self._next = max(self._next, time.monotonic() + seconds)

    def _refuse(self, answer: Answer) -> None:
        """Raises for a permanent error status."""
        status, settings = answer.status, self.settings
        if status in _STOPPING or 300 <= status < 400:
            said = _STOPPING.get(status, "redirects to another URL; give that one")
            said = said.format(variable=settings.key_variable, url=settings.url, model=settings.model)
            raise ResourceError(f"{self.name} {said} (status {status})")
        raise RequestRefusedError(f"status {status}: {self._clean(answer.error_text)}", status)

    def blot(self, text: str) -> str:
        """A server's text without the key, with characters that cannot be written to a file replaced."""
        text = text.replace(self._key, "[key]") if self._key else text
        return text.encode("utf-8", "replace").decode("utf-8")

    def _clean(self, text: str) -> str:
        line = " ".join(self.blot(text).split())
        return line if len(line) <= _MESSAGE_LENGTH else line[:_MESSAGE_LENGTH] + "…"

    def stop(self) -> None:
        """Ends all waiting: requests in progress finish, no further one is sent."""
        self._stop.set()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None if missing or invalid.

    Reference: RFC 9110, section 10.2.3.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None


def token_count(value: Any) -> int | None:
    """A server's token count, None if invalid."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None

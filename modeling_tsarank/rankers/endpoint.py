"""Asking a model behind an address: key, retries, rate limit and cost."""

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
"""Environment variables that a key is read from by default; only these may be unset."""

RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses that may pass by themselves."""

_STOPPING = {
    401: "does not accept the key in {variable}",
    402: "asks for payment",
    403: "does not allow this with the key in {variable}",
    404: "knows no such address or model ({url}, {model!r})",
    405: "takes no such request at {url}",
}
_MESSAGE_LENGTH = 200


class RequestRefusedError(ResourceError):
    """This one request is not taken (too long, for example); others may still go through.

    Attributes:
        status: The server's status, where a server said so.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(ResourceError):
    """No answer to this request in all the tries allowed; asking again later may help."""


@dataclass(frozen=True)
class EndpointSettings:
    """Where a model is served and how it is asked.

    Attributes:
        url: Address, such as `https://api.example.com/v1`.
        model: The model's name there.
        key_variable: Environment variable with the API key. The key itself is in no setting, file or message.
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
            # It is not repeated here: perhaps it is the key itself.
            raise InputError("what was given as the key's environment variable is no name of one; never give the key")
        settle_whole_numbers(self, "tries")
        for name in ("timeout", "first_wait", "longest_wait", "requests_per_minute", "max_cost"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be a finite number above 0, got {value}")
        for name in ("prompt_price", "completion_price"):
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
        raise InputError("the model's address is no URL; expected one like https://host/v1") from None
    odd = not url.isprintable() or " " in url or "\\" in url
    if odd or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError("the model's address must begin with http:// or https:// and a host, like https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            "the model's address carries a user, a password, a query or a fragment, which would be written into logs "
            "and cards; give the plain address, and the key in an environment variable"
        )


@dataclass
class Usage:
    """What was asked of a model; safe for several threads.

    Attributes:
        requests: Requests that went out, tries included.
        answers: Requests that were answered.
        cached: Answers taken from a cache.
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
    """A server that is asked by POST requests of JSON; safe for several threads.

    A request is tried again, after an exponential back-off that honours Retry-After, when the server cannot be
    reached, takes too long, breaks off, answers with a status of `RETRIED_STATUSES`, or with something else than was
    asked for.

    The key is read from the environment once and lives in the HTTP client's headers only; it is blotted out of
    whatever a server says before that reaches a message or a caller.

    Args:
        settings: Where and how.
        path: What follows the settings' URL.
        usage: Counts what was asked.

    Raises:
        InputError: the variable named for the key is not set, or the key has white space or characters that no header
            can carry.
        ResourceError: the package httpx2 is missing.
    """

    def __init__(self, settings: EndpointSettings, path: str = "", usage: Usage | None = None) -> None:
        self.settings = settings
        self.name = settings.model or urlsplit(settings.url).hostname or ""
        self.usage = usage or Usage()
        self.url = settings.url.rstrip("/") + path
        if settings.key_variable not in (*KEY_VARIABLES, *os.environ):
            raise InputError("the environment variable named for the key is not set; name the variable, not the key")
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise InputError(f"the key in {settings.key_variable} has white space or characters that are not ASCII")
        # At DEBUG it writes out the server's headers, and a server may echo what it was sent.
        logging.getLogger("httpcore2").setLevel(logging.INFO)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = HttpClient(self.url, settings.timeout, headers)
        self._jitter = random.Random()
        self._spacing = 60.0 / settings.requests_per_minute if settings.requests_per_minute else 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._next = 0.0

    def ask(self, payload: Any, read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer's JSON; what it cannot read (`ValueError` and the like) is asked for again.

        Raises:
            RequestRefusedError: this request is not taken.
            UnreachableError: no answer to this request.
            ResourceError: nothing can be asked at all (no such model, a wrong key, the cost limit reached).
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
                reason = "an answer that is none to this request"
            else:
                if answer.status not in RETRIED_STATUSES:
                    self._refuse(answer)
                reason = f"status {answer.status}"
                self._honour_retry_after(answer)
            logger.info("%s: %s (try %d of %d)", self.name, reason, number + 1, settings.tries)
        raise UnreachableError(f"{self.name} at {settings.url} gave no answer in {settings.tries} tries ({reason})")

    def _wait(self) -> None:
        """Keeps the rate limit, over all threads: returns when the next request may go out."""
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
                f"the answers of {self.name} have cost {self.usage.cost:.4f}, the limit is {limit}: what was paid for "
                "is kept, run again with a higher limit (max_cost) to go on"
            )

    def _honour_retry_after(self, answer: Answer) -> None:
        seconds = retry_after_seconds(answer.headers.get("retry-after"))
        if seconds is None:
            return
        if seconds > self.settings.longest_wait:
            raise ResourceError(
                f"{self.name} wants to be asked again in {seconds:.0f} s, longer than the longest wait of "
                f"{self.settings.longest_wait:.0f} s; what was answered is kept, run again then"
            )
        with self._lock:  # no request of any thread goes out for so long
            self._next = max(self._next, time.monotonic() + seconds)

    def _refuse(self, answer: Answer) -> None:
        """Raises for a status that will not pass by itself."""
        status, settings = answer.status, self.settings
        if status in _STOPPING or 300 <= status < 400:
            said = _STOPPING.get(status, "sends us to another address; give that one")
            said = said.format(variable=settings.key_variable, url=settings.url, model=settings.model)
            raise ResourceError(f"{self.name} {said} (status {status})")
        raise RequestRefusedError(f"status {status}: {self._clean(answer.error_text)}", status)

    def blot(self, text: str) -> str:
        """A server's words without the key, and as something that can be written into a file."""
        text = text.replace(self._key, "[key]") if self._key else text
        return text.encode("utf-8", "replace").decode("utf-8")

    def _clean(self, text: str) -> str:
        line = " ".join(self.blot(text).split())
        return line if len(line) <= _MESSAGE_LENGTH else line[:_MESSAGE_LENGTH] + "…"

    def stop(self) -> None:
        """Ends all waiting: requests under way finish, no further one goes out."""
        self._stop.set()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def retry_after_seconds(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date; None where there is none to read.

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
    """A server's count of tokens, None for what can be none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None

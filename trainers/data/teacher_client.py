"""A teacher behind an OpenAI-compatible server: retries, rate limit, cost, and a cache that asks nothing twice."""

from __future__ import annotations

import email.utils
import logging
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers.data.http_requests import Answer, HttpClient, RequestFailedError, check_url
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_prompt import Message
from modeling_tsarank.trainers.data.teacher_types import (
    DEFAULT_KEY_VARIABLE,
    Completion,
    EndpointSettings,
    RequestRefusedError,
    TeacherUnreachableError,
    Usage,
)


if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger(__name__)

RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
"""Statuses that may pass by themselves."""

_STOPPING = {
    401: "does not accept the key in {variable}",
    402: "asks for payment",
    403: "does not allow this with the key in {variable}",
    404: "knows no such address or model ({url}, {model!r})",
    405: "takes no chat completions at {url}",
}
_MESSAGE_LENGTH = 200


class Pacer:
    """Keeps a rate limit and a server's wish to be left alone, over all threads.

    Args:
        per_minute: Requests a minute, evenly spaced; None for no limit.
        stop: When set, waiting ends at once.
    """

    def __init__(self, per_minute: float | None, stop: threading.Event) -> None:
        self._spacing = 60.0 / per_minute if per_minute else 0.0
        self._stop = stop
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Returns when the next request may go out. Raises `TeacherUnreachableError` when stopped."""
        with self._lock:
            start = max(time.monotonic(), self._next)
            self._next = start + self._spacing
        self.sleep(start - time.monotonic())

    def pause(self, seconds: float) -> None:
        """Lets no request of any thread go out for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        """Waits, unless stopped. Raises `TeacherUnreachableError` when stopped."""
        if self._stop.wait(max(seconds, 0.0)) if seconds > 0 else self._stop.is_set():
            raise TeacherUnreachableError("stopped before the request was answered")


class EndpointTeacher:
    """Asks an OpenAI-compatible server, `POST {url}/chat/completions`; safe for several threads.

    A request is tried again, after an exponential back-off that honours Retry-After, when the server cannot be
    reached, takes too long, breaks off, answers with a status of `RETRIED_STATUSES`, or with something that is no
    chat completion. The cache is asked first, and every answer is kept in it.

    The key is read from the environment once and lives in the HTTP client's headers only; it is blotted out of
    whatever a server says before that reaches a message or the cache.

    Args:
        settings: Where and how.
        cache: Where answers are kept.
        usage: Counts what was asked.

    Raises:
        InputError: the variable named for the key is not set, or the key has white space or characters that no header
            can carry.
        ResourceError: the package httpx2 is missing.
    """

    def __init__(self, settings: EndpointSettings, cache: RequestCache, usage: Usage | None = None) -> None:
        self.settings = settings
        self.name = settings.model
        self.usage = usage or Usage()
        self._cache = cache
        if settings.key_variable != DEFAULT_KEY_VARIABLE and settings.key_variable not in os.environ:
            raise InputError(
                "the environment variable named for the teacher's key is not set; name the variable, not the key"
            )
        self._key = os.environ.get(settings.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise InputError(f"the key in {settings.key_variable} has white space or characters that are not ASCII")
        # At DEBUG it writes out the server's headers, and a server may echo what it was sent.
        logging.getLogger("httpcore2").setLevel(logging.INFO)
        self._url = f"{settings.url.rstrip('/')}/chat/completions"
        check_url(self._url)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = HttpClient(settings.timeout, headers)
        self._stop = threading.Event()
        self._pacer = Pacer(settings.requests_per_minute, self._stop)
        self._jitter = random.Random()

    def describe(self) -> dict[str, Any]:
        """What goes into a card: address, model and settings, without any secret."""
        settings = asdict(self.settings)
        del settings["key_variable"]
        return {"kind": "endpoint", **settings}

    def stop(self) -> None:
        """Ends all waiting: requests under way finish, no further one goes out."""
        self._stop.set()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> EndpointTeacher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def complete(self, messages: Sequence[Message], attempt: int = 0) -> Completion:
        """See `ChatTeacher.complete`."""
        payload: dict[str, Any] = {
            "model": self.settings.model,
            "messages": list(messages),
            "temperature": self.settings.temperature,
            "stream": False,
        }
        if self.settings.max_tokens is not None:
            payload["max_tokens"] = self.settings.max_tokens
        request = {"url": self._url, "payload": payload, "attempt": attempt}
        kept = self._cache.get(request)
        if kept is None:
            completion = self._ask(payload)
            answer = asdict(completion)
            del answer["cached"]
            self._cache.put(request, answer)
        else:
            completion = Completion(**kept, cached=True)
        self.usage.add_answer(completion, self.settings.prompt_price, self.settings.completion_price)
        return completion

    def _ask(self, payload: Mapping[str, Any]) -> Completion:
        reason = ""
        for number in range(self.settings.tries):
            if number:
                self._pacer.sleep(self._back_off(number))
            self._check_cost()
            self._pacer.wait()
            self.usage.add_request(again=number > 0)
            try:
                answer = self._client.post(self._url, payload)
            except RequestFailedError as error:
                reason = self._clean(str(error))
            else:
                if answer.status == 200:
                    completion = self._read(answer)
                    if completion is not None:
                        return completion
                    reason = "an answer that is no chat completion"
                elif answer.status in RETRIED_STATUSES:
                    reason = f"status {answer.status}"
                    self._honour_retry_after(answer)
                else:
                    self._refuse(answer)
            logger.info("teacher %s: %s (try %d of %d)", self.name, reason, number + 1, self.settings.tries)
        raise TeacherUnreachableError(
            f"the teacher {self.name} at {self.settings.url} gave no answer in {self.settings.tries} tries ({reason})"
        )

    def _back_off(self, number: int) -> float:
        wait = min(self.settings.first_wait * 2.0 ** min(number - 1, 64), self.settings.longest_wait)
        return wait * (1.0 + 0.25 * self._jitter.random())

    def _check_cost(self) -> None:
        limit = self.settings.max_cost
        if limit is not None and self.usage.cost >= limit:
            raise ResourceError(
                f"the teacher's answers have cost {self.usage.cost:.4f}, the limit is {limit}: what was paid for is "
                f"kept, run again with a higher limit (--max-cost) to go on"
            )

    def _honour_retry_after(self, answer: Answer) -> None:
        seconds = retry_after_seconds(answer.headers.get("retry-after"))
        if seconds is None:
            return
        if seconds > self.settings.longest_wait:
            raise ResourceError(
                f"the teacher {self.name} wants to be asked again in {seconds:.0f} s, longer than the longest wait of "
                f"{self.settings.longest_wait:.0f} s; what was answered is kept, run again then"
            )
        self._pacer.pause(seconds)

    def _refuse(self, answer: Answer) -> None:
        """Raises for a status that will not pass by itself."""
        status, settings = answer.status, self.settings
        if status in _STOPPING or 300 <= status < 400:
            said = _STOPPING.get(status, "sends us to another address; give that one")
            said = said.format(variable=settings.key_variable, url=settings.url, model=settings.model)
            raise ResourceError(f"the teacher {self.name} {said} (status {status})")
        raise RequestRefusedError(f"status {status}: {self._clean(_error_text(answer))}")

    def _read(self, answer: Answer) -> Completion | None:
        """The completion, or None for a body that is none (broken JSON, other fields, a server's own page)."""
        try:
            body = answer.json()
            choice = body["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return None
        if not isinstance(text, str):
            return None
        usage = body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        reason = choice.get("finish_reason")
        return Completion(
            # A lone surrogate could be written into no file.
            text=self._blot(text).encode("utf-8", "replace").decode("utf-8"),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
            finish_reason=self._blot(reason) if isinstance(reason, str) else None,
        )

    def _blot(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text

    def _clean(self, text: str) -> str:
        """Somebody else's words in one short line, without the key."""
        line = " ".join(self._blot(text).split())
        return line if len(line) <= _MESSAGE_LENGTH else line[:_MESSAGE_LENGTH] + "…"


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


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _error_text(answer: Answer) -> str:
    try:
        error = answer.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return answer.text

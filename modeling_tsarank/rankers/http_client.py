"""HTTP requests with one deadline for all phases: connecting, sending, waiting and receiving."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from ..files.extras import require
from ..files.reading import parse_json
from ..ranking_errors import InputError


LONGEST_BODY = 16 * 2**20
"""Maximum bytes of a decompressed response, far above any chat completion."""


class RequestFailedError(Exception):
    """A request got no complete response; the message says why."""


@dataclass(frozen=True)
class Answer:
    """A complete response: its status, headers (names in lower case) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises `InputError` for anything else, including JSON nested too deeply."""
        return parse_json(self.body, "the answer", allow_nan=True)

    @property
    def error_text(self) -> str:
        """The server's error message: the body's `error`, `message` or `detail`, else the body."""
        with contextlib.suppress(InputError):
            body = self.json()
            for name in ("error", "message", "detail"):
                if isinstance(body, dict) and body.get(name):
                    said = body[name]
                    return str(said.get("message", said) if isinstance(said, dict) else said)
        return self.body.decode("utf-8", "replace")


class HttpClient:
    """Posts JSON; safe for several threads, whose requests run in one event loop in a thread of its own.

    A synchronous client's timeout is per read, so a server that sends a byte now and then blocks a thread forever;
    here the deadline is for the whole request.

    Args:
        url: The URL to post to.
        seconds: The deadline of a request.
        headers: Sent with each request.

    Raises:
        InputError: the URL is invalid; it is not repeated in the message.
        ResourceError: the package httpx2 is missing.
    """

    def __init__(self, url: str, seconds: float, headers: Mapping[str, str]) -> None:
        self._http = http = require("httpx2", extra="data", purpose="A model behind a URL")
        try:
            http.URL(url).host.encode("idna")
        except (http.InvalidURL, UnicodeError):
            raise InputError("the address is not a URL; expected one like https://host/v1") from None
        self._url, self._seconds = url, seconds
        # Redirects are not followed: a key in the headers is only for the URL that the user gave.
        self._client = http.AsyncClient(
            timeout=None, headers=headers, follow_redirects=False, limits=http.Limits(max_connections=None)
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def post(self, payload: Any) -> Answer:
        """The answer to a POST of JSON. Raises `RequestFailedError` if none is complete in time."""
        # ASCII: a lone surrogate cannot be encoded as UTF-8.
        content = json.dumps(payload, allow_nan=False).encode("ascii")
        try:
            return asyncio.run_coroutine_threadsafe(self._post(content), self._loop).result()
        except TimeoutError:
            raise RequestFailedError(f"no complete answer in {self._seconds:g} s") from None
        except CancelledError:
            raise RequestFailedError("the connection was closed") from None
        except self._http.DecodingError as error:
            raise RequestFailedError(f"an answer that cannot be decoded: {error}") from None
        except self._http.RequestError as error:
            raise RequestFailedError(f"{type(error).__name__}: {error}") from None

    async def _post(self, content: bytes) -> Answer:
        headers = {"Content-Type": "application/json"}
        body = bytearray()
        async with (
            asyncio.timeout(self._seconds),
            self._client.stream("POST", self._url, content=content, headers=headers) as response,
        ):
            async for part in response.aiter_bytes():
                body += part
                if len(body) > LONGEST_BODY:
                    raise self._http.DecodingError(f"it is longer than {LONGEST_BODY:,} bytes")
            return Answer(response.status_code, response.headers, bytes(body))

    def close(self) -> None:
        """Cancels requests in progress and closes the connections."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _end(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._client.aclose()

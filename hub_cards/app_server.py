"""A limit on the size of HTTP request bodies, enforced before parsing."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


# Bytes to read and discard before a rejection: a client that is still sending would not receive the response.
_DROPPED_BYTES = 64 * 2**20


class BodyLimit:
    """ASGI middleware: a request body of more than `limit` bytes is rejected with status 413 and discarded."""

    def __init__(self, app: Any, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        while more and size <= self.limit + _DROPPED_BYTES:
            message = await receive()
            if message["type"] != "http.request":  # the client disconnected
                return
            part = message.get("body", b"")
            size += len(part)
            body += part if size <= self.limit else b""
            more = message.get("more_body", False)
        if size > self.limit:
            await self._refuse(send)
            return
        read: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replayed() -> Message:
            return read.pop() if read else await receive()

        await self.app(scope, replayed, send)

    async def _refuse(self, send: Send) -> None:
        detail = f"a request may have at most {self.limit:,} bytes; provide fewer or shorter documents"
        body = json.dumps({"detail": detail}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})

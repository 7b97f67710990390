"""A real HTTP server on the loopback that answers like an OpenAI-compatible one, and misbehaves when told to."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


LABELLED = re.compile(r"\[(\d+)\] (.*)", re.DOTALL)


def passages_of(messages: list[dict[str, str]]) -> list[str]:
    """The passages that a conversation shows, in the order of their labels."""
    found = [LABELLED.fullmatch(message["content"]) for message in messages if message["role"] == "user"]
    return [match.group(2) for match in found if match is not None]


def right_answer(payload: dict[str, Any]) -> str:
    """Passages by the number in them, highest first: what the server's teacher believes in."""
    values = [int(re.search(r"value (\d+)", text).group(1)) for text in passages_of(payload["messages"])]
    order = sorted(range(len(values)), key=lambda place: -values[place])
    return " > ".join(f"[{place + 1}]" for place in order)


def completion(text: str) -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


class ChatServer:
    """Answers with `behave(server, number, payload)`, which returns one of

    - a text: the assistant's answer;
    - (status, headers, body): that;
    - "DRIP" or "DRIPPING HEAD": a whole right answer, its body or its headers a byte at a time, never long silent;
    - "TIMEOUT": nothing for a second; "CUT": the head of an answer, then a closed connection; "HANGUP": nothing.

    `number` counts requests from 0. Every request's payload and headers are kept.
    """

    def __init__(self, behave: Callable[[ChatServer, int, dict[str, Any]], Any]) -> None:
        self.behave = behave
        self.payloads: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        payload = json.loads(body)
        with self._lock:
            number = len(self.payloads)
            self.payloads.append(payload)
            self.headers.append(dict(handler.headers))
            self.times.append(time.monotonic())
            self.under_way += 1
            self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            self._send(handler, self.behave(self, number, payload))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client has given up, as it should
        finally:
            with self._lock:
                self.under_way -= 1

    def _send(self, handler: BaseHTTPRequestHandler, reply: Any) -> None:
        if reply == "TIMEOUT":
            time.sleep(1.0)
            handler.close_connection = True
            return
        if reply == "HANGUP":
            handler.close_connection = True
            return
        status, headers, content = (200, {}, completion(reply)) if isinstance(reply, str) else reply
        if reply in ("DRIP", "DRIPPING HEAD"):
            self._drip(handler, head=reply == "DRIPPING HEAD")
            return
        if reply == "CUT":
            content = completion("[1] > [2] > [3]")
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if reply == "CUT":
            handler.wfile.write(data[: len(data) // 2])
            handler.close_connection = True
            return
        handler.wfile.write(data)

    @staticmethod
    def _drip(handler: BaseHTTPRequestHandler, head: bool) -> None:
        data = json.dumps(completion("[2] > [3] > [1]")).encode()
        headers = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        slow, fast = (headers, data) if head else (data, b"")
        handler.close_connection = True
        if not head:
            handler.wfile.write(headers)
        for byte in slow:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
        handler.wfile.write(fast)

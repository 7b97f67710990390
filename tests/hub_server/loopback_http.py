"""One request to the loopback Hub: reading it, answering it or failing as told, and who may ask for what."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback_store import HubError


@dataclass
class Fault:
    """What happens to requests whose method and address match.

    `action` is a status code, `"drop"` (the connection is closed without an answer), `"cut"` (closed in the middle of
    the answer's body or, for an upload, of the request's), `"lost"` (the request is carried out, the answer is not
    sent), or an event to set before waiting until `release` is set.
    """

    method: str
    pattern: str
    action: int | str | threading.Event
    times: int
    skip: int = 0
    release: threading.Event = field(default_factory=threading.Event)


@dataclass
class Answer:
    """Status, body and headers of a response."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


class Server(ThreadingHTTPServer):
    """The listening socket; `hub` and `routes` are set by the Hub that starts it."""

    daemon_threads = True
    hub: Any
    routes: list[tuple[str, str, Callable[..., Answer]]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of a request is part of the tests."""


class RequestHandler(BaseHTTPRequestHandler):
    """Everything around the answers themselves."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *_: Any) -> None:
        """Keeps the tests' output clean."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    @property
    def hub(self) -> Any:
        return self.server.hub

    # ---- one request -----------------------------------------------------------------------------

    def _serve(self, method: str) -> None:
        self.address = urlsplit(self.path)
        fault = self.hub.fault_for(method, self.path)
        if fault is not None and isinstance(fault.action, threading.Event):
            fault.action.set()
            fault.release.wait(60)
        elif fault is not None and (fault.action == "drop" or (fault.action == "cut" and method in ("PUT", "POST"))):
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1000))
            self._hang_up()
            return
        self.body = self._read_body()
        if fault is not None and isinstance(fault.action, int):
            answer = as_json({"error": "injected"}, fault.action)
        else:
            answer = self._answer(method)
        if fault is not None and fault.action == "lost":
            self._hang_up()
            return
        cut = len(answer.body) // 2 if fault is not None and fault.action == "cut" else None
        self._send(answer, method, cut)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length)
        if len(data) < length:
            raise ConnectionError("the client went away")
        return data

    def _answer(self, method: str) -> Answer:
        try:
            self._check_token()
            path = unquote(self.address.path)
            for verbs, pattern, function in self.server.routes:
                match = re.fullmatch(pattern, path)
                if match and method in verbs:
                    return function(self, **match.groupdict())
            raise HubError(501, None, f"the loopback Hub does not know {method} {path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code:
                headers["X-Error-Code"] = error.code
            return as_json({"error": error.message}, error.status, **headers)

    def _send(self, answer: Answer, method: str, cut: int | None) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if method != "HEAD":
            self.wfile.write(answer.body[:cut])
        if cut is not None:
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    # ---- who asks --------------------------------------------------------------------------------

    def _check_token(self) -> None:
        header = self.headers.get("Authorization")
        self.user, self.role = None, None
        if header:
            token = header.removeprefix("Bearer ")
            if token not in self.hub.tokens:
                raise HubError(401, None, "Invalid credentials in Authorization header")
            self.user, self.role = self.hub.tokens[token]

    def _readable(self, kind: str, repo: str) -> dict[str, Any]:
        """The repository, if the asker may read it. What is private does not exist for others."""
        found = None
        with contextlib.suppress(HubError):
            found = self.hub.store.repo(kind, repo)
        if found is None or (found["private"] and self.user != repo.split("/")[0]):
            status = 401 if self.user is None else 404
            raise HubError(
                status, "RepoNotFound", "Repository not found" if self.user else "Invalid username or password."
            )
        return found

    def _writable(self, kind: str, repo: str) -> None:
        if self.user is None:
            raise HubError(401, None, "Invalid username or password.")
        if self.role != "write" or self.user != repo.split("/")[0]:
            raise HubError(403, None, f'Forbidden: "{self.user}" has no write access to {repo} with this token')
        self._readable(kind, repo)

    def _json(self) -> Any:
        return json.loads(self.body)

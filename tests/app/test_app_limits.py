"""Bounds of one request."""

from __future__ import annotations

import asyncio
import json

import pytest

from modeling_tsarank.cache.state_files import NamedDocument
from modeling_tsarank.hub_cards.app_limits import Limits
from modeling_tsarank.hub_cards.app_server import BodyLimit
from modeling_tsarank.ranking_errors import InputError


def test_the_environment_sets_limits() -> None:
    limits = Limits.from_environment({"TSARANK_APP_DOCUMENTS": "7", "TSARANK_APP_WAITING": "3", "OTHER": "x"})
    assert (limits.documents, limits.waiting, limits.tokens) == (7, 3, Limits().tokens)


@pytest.mark.parametrize("value", ["0", "-1", "many", "", "1.5", "²"])
def test_a_limit_must_be_a_positive_number(value: str) -> None:
    with pytest.raises(InputError, match="TSARANK_APP_TOKENS must be a positive whole number"):
        Limits.from_environment({"TSARANK_APP_TOKENS": value})


def test_each_bound_has_its_message() -> None:
    limits = Limits(documents=2, document_bytes=10, total_bytes=15, query_characters=5, tokens=9)
    fits = [NamedDocument("1", "ä" * 5), NamedDocument("2", "12345")]
    limits.check_documents(fits)
    limits.check_query("12345")
    limits.check_tokens(9, 2)
    with pytest.raises(InputError, match="there are no documents"):
        limits.check_documents([])
    with pytest.raises(InputError, match="3 documents were given; at most 2"):
        limits.check_documents([*fits, NamedDocument("3", "")])
    with pytest.raises(InputError, match="document x has 12 bytes; at most 10"):
        limits.check_documents([NamedDocument("x", "ä" * 6)])
    with pytest.raises(InputError, match="the documents have 16 bytes; at most 15"):
        limits.check_documents([fits[0], NamedDocument("2", "123456")])
    with pytest.raises(InputError, match="the query has 6 characters; at most 5"):
        limits.check_query("123456")
    with pytest.raises(InputError, match="2 documents have 10 tokens in total"):
        limits.check_tokens(10, 2)


def run_body_limit(chunks: list[bytes], headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes, int]:
    """Sends `chunks` through the middleware to an app that reads all of them; status, body, bytes the app got."""
    got = 0
    sent: list[dict] = []
    waiting: list[dict] = [
        {"type": "http.request", "body": c, "more_body": i + 1 < len(chunks)} for i, c in enumerate(chunks)
    ]

    async def app(scope, receive, send) -> None:
        nonlocal got
        more = True
        while more:
            message = await receive()
            got += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"read"})

    async def receive():
        return waiting.pop(0)

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(BodyLimit(app, 10)({"type": "http", "headers": headers}, receive, send))
    return sent[0]["status"], sent[1]["body"], got


def test_a_body_within_the_limit_passes() -> None:
    assert run_body_limit([b"12345", b"67890"], [(b"content-length", b"10")]) == (200, b"read", 10)


def test_a_declared_large_body_never_reaches_the_app() -> None:
    status, body, got = run_body_limit([b"x" * 11], [(b"content-length", b"11")])
    assert (status, got) == (413, 0)
    assert "at most 10 bytes" in json.loads(body)["detail"]


def test_an_undeclared_large_body_never_reaches_the_app() -> None:
    status, _, got = run_body_limit([b"123456"] * 1000, [])
    assert (status, got) == (413, 0)

"""The client of an OpenAI-compatible server against a real server that misbehaves in every way it can."""

from __future__ import annotations

import email.utils
import logging
import time
from pathlib import Path

import pytest
from chat_server import ChatServer, completion, right_answer

from modeling_tsarank.rankers.chat import ChatEndpoint, ChatSettings
from modeling_tsarank.rankers.endpoint import (
    KEY_VARIABLES,
    RequestRefusedError,
    UnreachableError,
    Usage,
    retry_after_seconds,
)
from modeling_tsarank.rankers.listwise_prompt import listwise_messages
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers.data.teacher_cache import RequestCache


KEY = "sk-very-secret-0123456789"
VARIABLE = "TSARANK_TEST_TEACHER_KEY"
MESSAGES = listwise_messages("a query", ["value 1", "value 3", "value 2"])


@pytest.fixture(autouse=True)
def _key_is_set(monkeypatch):
    monkeypatch.setenv(VARIABLE, "another-key")


@pytest.fixture
def cache(tmp_path):
    return RequestCache(tmp_path / "cache.jsonl")


def client(server: ChatServer, cache: RequestCache, **changes) -> ChatEndpoint:
    options = {"timeout": 0.5, "first_wait": 0.02, "longest_wait": 5.0, "tries": 4, "key_variable": VARIABLE}
    return ChatEndpoint(ChatSettings(server.url, "tiny", **{**options, **changes}), cache)


def scripted(*replies):
    """A behaviour: the given replies in turn, then right answers."""
    return lambda _, number, payload: replies[number] if number < len(replies) else right_answer(payload)


def test_a_request_is_what_an_openai_server_expects(cache, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    with ChatServer(scripted()) as server, client(server, cache, max_tokens=50) as teacher:
        answer = teacher.complete(MESSAGES)
    assert answer.text == "[2] > [3] > [1]"
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == (100, 10, "stop")
    payload = server.payloads[0]
    assert payload["model"] == "tiny"
    assert payload["temperature"] == 0
    assert payload["max_tokens"] == 50
    assert payload["messages"] == MESSAGES
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("variable", KEY_VARIABLES)
def test_without_a_key_no_authorization_is_sent(cache, monkeypatch, variable):
    monkeypatch.delenv(variable, raising=False)
    with ChatServer(scripted()) as server, client(server, cache, key_variable=variable) as teacher:
        teacher.complete(MESSAGES)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "fault",
    [
        "TIMEOUT",
        "CUT",
        "HANGUP",
        (429, {}, {"error": {"message": "slow down"}}),
        (500, {}, b"<html>Internal Server Error</html>"),
        (503, {"Retry-After": "0"}, {}),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": {"content": None}}]}),
        (200, {}, [1, 2]),
        (200, {}, b"[" * 100_000),
        (200, {}, b'{"choices": ' + b"9" * 5000),
        (200, {"Content-Encoding": "gzip"}, b"this is not gzip"),
    ],
    ids=lambda fault: str(fault)[:50],
)
def test_what_may_pass_is_tried_again(cache, fault):
    with ChatServer(scripted(fault, fault)) as server, client(server, cache) as teacher:
        assert teacher.complete(MESSAGES).text == "[2] > [3] > [1]"
    assert len(server.payloads) == 3
    assert teacher.usage.as_dict() == {
        "requests": 3,
        "answers": 1,
        "cached": 0,
        "retries": 2,
        "prompt_tokens": 100,
        "completion_tokens": 10,
        "uncounted": 0,
        "cost": 0.0,
    }
    assert len(cache) == 1


def test_after_all_tries_the_error_says_what_happened_and_nothing_is_kept(cache):
    with (
        ChatServer(lambda *_: (500, {}, {})) as server,
        client(server, cache) as teacher,
        pytest.raises(UnreachableError, match=r"no answer in 4 tries \(status 500\)"),
    ):
        teacher.complete(MESSAGES)
    assert len(server.payloads) == 4
    assert len(cache) == 0


def test_waits_grow_and_retry_after_is_honoured(cache):
    busy = (429, {"Retry-After": "0.6"}, {})
    with ChatServer(scripted((500, {}, {}), (500, {}, {}), busy)) as server:
        with client(server, cache, first_wait=0.1) as teacher:
            teacher.complete(MESSAGES)
        first, second, third = (b - a for a, b in zip(server.times, server.times[1:], strict=False))
    assert 0.1 <= first < 0.2
    assert 0.2 <= second < 0.4
    assert third >= 0.6


def test_a_wait_beyond_the_longest_stops_the_run(cache):
    with (
        ChatServer(lambda *_: (429, {"Retry-After": "3600"}, {})) as server,
        client(server, cache) as teacher,
        pytest.raises(ResourceError, match="asks to wait 3600 s, longer than the longest wait of 5 s") as caught,
    ):
        teacher.complete(MESSAGES)
    assert not isinstance(caught.value, UnreachableError)
    assert len(server.payloads) == 1


def test_retry_after_in_both_forms():
    assert retry_after_seconds("7") == 7.0
    assert retry_after_seconds("-3") == 0.0
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 < retry_after_seconds(date) <= 30
    assert retry_after_seconds(email.utils.formatdate(time.time() - 30, usegmt=True)) == 0.0
    assert [retry_after_seconds(value) for value in (None, "soon", "nan", "")] == [None] * 4
    assert retry_after_seconds("1e999") == float("inf")


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 31 Dec 99999 23:59:59 GMT",
        "Fri, 31 Dec 2026 23:59:59 +99999999999999",
        "Fri, 99999999999999999999 Dec 2026 00:00:00 GMT",
        "9" * 5000,
    ],
)
def test_a_server_that_names_no_date_of_this_world_is_asked_again_or_not_at_all(cache, date):
    seconds = retry_after_seconds(date)
    assert seconds is None or seconds > 1e9
    with ChatServer(scripted((503, {"Retry-After": date}, {}))) as server, client(server, cache) as teacher:
        if seconds is None:
            assert teacher.complete(MESSAGES).text == "[2] > [3] > [1]"
        else:
            with pytest.raises(ResourceError, match="longer than the longest wait"):
                teacher.complete(MESSAGES)


@pytest.mark.parametrize("drip", ["DRIP", "DRIPPING HEAD"])
def test_an_answer_that_drips_in_ends_with_the_deadline_of_the_whole_request(cache, drip):
    with (
        ChatServer(scripted(drip)) as server,
        client(server, cache, tries=1) as teacher,
        pytest.raises(UnreachableError, match=r"no complete answer in 0\.5 s"),
    ):
        teacher.complete(MESSAGES)
    assert len(server.payloads) == 1


def test_an_answer_without_end_is_cut_off(cache, monkeypatch):
    monkeypatch.setattr("modeling_tsarank.rankers.http_client.LONGEST_BODY", 1000)
    with ChatServer(scripted((200, {}, b" " * 100_000))) as server, client(server, cache, tries=1) as teacher:
        with pytest.raises(UnreachableError, match="longer than 1,000 bytes"):
            teacher.complete(MESSAGES)
        assert teacher.complete(MESSAGES).text == "[2] > [3] > [1]"


def test_a_lone_surrogate_in_a_passage_is_asked_about_all_the_same(cache):
    with ChatServer(scripted()) as server, client(server, cache) as teacher:
        answer = teacher.complete(listwise_messages("a \udcff query", ["value 1", "value 3", "value 2"]))
    assert answer.text == "[2] > [3] > [1]"


def test_counts_that_no_server_can_mean_are_not_counted(cache):
    usage = {"prompt_tokens": 10**200, "completion_tokens": -1}
    with ChatServer(scripted((200, {}, {**completion("[1]"), "usage": usage}))) as server:
        with client(server, cache, prompt_price=1.0) as teacher:
            assert teacher.complete(MESSAGES).prompt_tokens is None
        assert teacher.usage.as_dict()["uncounted"] == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, f"rejects the key in {VARIABLE}"),
        (402, "payment"),
        (403, "does not permit"),
        (404, "has no such address or model"),
        (307, "another URL"),
    ],
)
def test_what_no_list_can_escape_stops_at_once(cache, status, message):
    reply = (status, {"Location": "http://127.0.0.1:9/other"}, {"error": {"message": "no"}})
    with (
        ChatServer(lambda *_: reply) as server,
        client(server, cache) as teacher,
        pytest.raises(ResourceError, match=message) as caught,
    ):
        teacher.complete(MESSAGES)
    assert not isinstance(caught.value, (RequestRefusedError, UnreachableError))
    assert len(server.payloads) == 1


def test_a_request_that_is_refused_is_not_repeated(cache):
    reply = (400, {}, {"error": {"message": "maximum context length is 4096 tokens"}})
    with (
        ChatServer(lambda *_: reply) as server,
        client(server, cache) as teacher,
        pytest.raises(RequestRefusedError, match="status 400: maximum context length is 4096 tokens"),
    ):
        teacher.complete(MESSAGES)
    assert len(server.payloads) == 1


def test_nothing_is_asked_twice(tmp_path):
    path = tmp_path / "cache.jsonl"
    with ChatServer(scripted()) as server:
        for cached in (False, True):
            cache = RequestCache(path)
            with client(server, cache) as teacher:
                answer = teacher.complete(MESSAGES)
                assert answer.cached is cached
                assert answer.text == "[2] > [3] > [1]"
                assert teacher.usage.cached == int(cached)
        assert len(server.payloads) == 1
        cache = RequestCache(path)
        with client(server, cache, temperature=0.5) as other:
            other.complete(MESSAGES)
        with client(server, cache) as teacher:
            teacher.complete(MESSAGES, attempt=1)
    assert len(server.payloads) == 3, "other settings and later attempts are other requests"


def test_cost_is_counted_and_limited(cache):
    prices = {"prompt_price": 2.0, "completion_price": 50.0, "max_cost": 0.001}
    with ChatServer(scripted()) as server, client(server, cache, **prices) as teacher:
        teacher.complete(MESSAGES)
        assert teacher.usage.cost == pytest.approx((100 * 2 + 10 * 50) / 1e6)
        teacher.complete(MESSAGES, attempt=1)
        with pytest.raises(ResourceError, match=r"have cost 0.0014, the limit is 0.001"):
            teacher.complete(MESSAGES, attempt=2)
        assert teacher.complete(MESSAGES).cached, "what is paid for can still be had"
    assert len(server.payloads) == 2


def test_answers_without_a_count_are_counted_as_such(cache):
    without = completion("[1] > [2] > [3]")
    del without["usage"]
    with ChatServer(lambda *_: (200, {}, without)) as server, client(server, cache) as teacher:
        teacher.complete(MESSAGES)
    assert (teacher.usage.uncounted, teacher.usage.prompt_tokens) == (1, 0)


def test_the_rate_limit_spaces_requests(cache):
    with ChatServer(scripted()) as server, client(server, cache, requests_per_minute=300) as teacher:
        start = time.monotonic()
        for attempt in range(4):
            teacher.complete(MESSAGES, attempt)
    # On a busy machine a request may arrive late, and the next one soon after it, but none leaves early.
    assert time.monotonic() - start >= 3 * 60 / 300


def test_the_key_reaches_no_log_no_cache_no_message_and_no_card(tmp_path, monkeypatch, caplog, capfd):
    """The server gives the key away in every way it can: in an error, in an answer, in a header."""
    monkeypatch.setenv(VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "cache.jsonl"

    def behave(_, number, payload):
        echo = {"X-Echo": KEY}
        replies = {
            0: (500, echo, {"error": {"message": f"bad key {KEY}"}}),
            1: (200, echo, completion(f"[1] > [2] > [3] {KEY}")),
            2: (400, echo, {"error": {"message": f"key {KEY} is wrong"}}),
            3: (401, echo, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
        }
        return replies[number]

    said = []
    cache = RequestCache(path)
    with ChatServer(behave) as server, client(server, cache) as teacher:
        answer = teacher.complete(MESSAGES)
        assert answer.text == "[1] > [2] > [3] [key]"
        for attempt, error in ((1, RequestRefusedError), (2, ResourceError)):
            with pytest.raises(error) as caught:
                teacher.complete(MESSAGES, attempt)
            said.append(str(caught.value))
        said += [repr(teacher.settings), str(teacher.describe()), repr(teacher.usage), repr(vars(teacher.settings))]
        on_disk = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    on_disk += b"".join(file.read_bytes() for file in tmp_path.iterdir())
    captured = capfd.readouterr()
    assert all(header["Authorization"].endswith(KEY) for header in server.headers)
    for place in (*said, caplog.text, on_disk.decode("latin-1"), captured.out, captured.err):
        assert KEY not in place
    assert "status 500" in caplog.text, "the log was on"


@pytest.mark.parametrize(
    "host",
    ["a\0b", "exa mple", "a..b", "a" * 70, "[::g]", "[::1", "h\\x", "\ud800.de", "h\n", "h/" + "x" * 70_000],
    ids=lambda host: ascii(host)[:20],
)
def test_an_address_that_no_request_can_be_sent_to_is_refused_before_anything_is_asked(cache, host):
    with pytest.raises(InputError, match="address") as caught:
        ChatEndpoint(ChatSettings(f"http://{host}/v1", "m", tries=1), cache)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "host/v1",
        "https://",
        f"https://user:{KEY}@host/v1",
        f"https://host/v1?api-key={KEY}",
        f"http://host:x{KEY}/v1",
    ],
)
def test_addresses_that_are_none_or_carry_a_secret(url):
    with pytest.raises(InputError) as caught:
        ChatSettings(url, "m")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ""},
        {"tries": 0},
        {"timeout": 0},
        {"timeout": float("inf")},
        {"prompt_price": float("inf")},
        {"temperature": float("nan")},
        {"first_wait": -1},
        {"requests_per_minute": 0},
        {"temperature": -0.1},
        {"prompt_price": float("nan")},
        {"max_tokens": 0},
        {"max_cost": 1.0},
    ],
    ids=str,
)
def test_wrong_settings(changes):
    with pytest.raises(InputError):
        ChatSettings(**{"url": "https://host/v1", "model": "m", **changes})


def test_a_key_that_no_header_can_carry(cache, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{KEY} \n{KEY}")
    with pytest.raises(InputError, match=VARIABLE) as caught:
        ChatEndpoint(ChatSettings("https://host/v1", "m", key_variable=VARIABLE), cache)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", [KEY, "a9f8e7d6c5b4"])
def test_a_key_given_in_the_place_of_its_variable_is_refused_and_not_repeated(cache, name):
    with pytest.raises(InputError, match=r"never the key|not the key") as caught:
        ChatEndpoint(ChatSettings("https://host/v1", "m", key_variable=name), cache)
    assert name not in str(caught.value)


def test_stopping_ends_a_long_wait(cache):
    import threading

    with ChatServer(lambda *_: (503, {}, {})) as server:
        with client(server, cache, first_wait=60, longest_wait=100) as teacher:
            threading.Timer(0.2, teacher.stop).start()
            started = time.monotonic()
            with pytest.raises(UnreachableError, match="stopped"):
                teacher.complete(MESSAGES)
        assert time.monotonic() - started < 5
        assert len(server.payloads) == 1


def test_usage_is_safe_for_threads():
    from concurrent.futures import ThreadPoolExecutor

    usage = Usage()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: usage.add(requests=1, retries=1), range(2000)))
    assert (usage.requests, usage.retries) == (2000, 2000)


def test_a_file_that_is_no_cache(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes\n" * 100)
    with pytest.raises(InputError, match="is not a cache of answers"):
        RequestCache(path)
    assert path.read_text().startswith("these are my notes")
    path.write_bytes(b"SQLite format 3\0 and no more")
    with pytest.raises(InputError, match="is not a cache of answers"):
        RequestCache(path)
    with pytest.raises(ResourceError, match="cannot"):
        RequestCache(path / "below" / "cache.jsonl")

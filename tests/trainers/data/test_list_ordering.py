"""Many lists and a teacher that fails in every way: nothing lost, nothing silently kept, totals that add up."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from chat_server import ChatServer, right_answer
from forked import begin, join

from modeling_tsarank.cli import main
from modeling_tsarank.eval.types import Document
from modeling_tsarank.rankers.chat import ChatEndpoint, ChatSettings
from modeling_tsarank.ranking_errors import ResourceError
from modeling_tsarank.trainers.data.list_building import ListTask, SourceQuery
from modeling_tsarank.trainers.data.list_ordering import EndpointTeacher, order_lists, summarize
from modeling_tsarank.trainers.data.teacher_cache import RequestCache


DOCUMENTS = {f"d{value}": Document("", f"passage of value {value} about bread") for value in range(40)}
SIZE = 6
# What the server does with lists by number: the first three pass in the end, the others never do.
TROUBLES = ("none", "busy", "cut", "late", "repeats", "prose once", "prose", "language", "refused", "down")


def task(number: int, trouble: str) -> ListTask:
    ids = tuple(f"d{(number * 7 + step * 11) % 40}" for step in range(SIZE))
    kind = "cropped" if number % 2 else "generated"
    return ListTask(SourceQuery(f"q{number}", f"query {number}: {trouble}", kind), f"stage {number % 3}", ids)


def trouble_of(payload) -> str:
    return payload["messages"][1]["content"].rsplit(": ", 1)[1]


def faulty(server, number, payload):
    """Each list's first request meets its trouble; some troubles stay."""
    trouble = trouble_of(payload)
    seen = sum(one["messages"][1] == payload["messages"][1] for one in server.payloads[: number + 1])
    right = right_answer(payload)
    if trouble == "prose":
        return "All of these passages speak of bread, and I like each of them."
    if trouble == "language":
        return "Diese Absätze sind [1] leider alle gleich gut."
    if trouble == "refused":
        return 400, {}, {"error": {"message": "this is too long"}}
    if trouble == "down":
        return 502, {}, b"bad gateway"
    if seen == 1 and trouble == "busy":
        return 429, {"Retry-After": "0.05"}, {}
    if seen == 1 and trouble == "cut":
        return "CUT"
    if seen == 1 and trouble == "late":
        return "TIMEOUT"
    if seen == 1 and trouble == "prose once":
        return "Let me think about it."
    if trouble == "repeats":
        best = right.split(" > ")
        return " > ".join([best[0], *best[:4], "[77]"])
    return right


EXPECTED = {
    **dict.fromkeys(("none", "busy", "cut", "late", "prose once"), "clean"),
    **{"repeats": "repaired", "prose": "failed", "language": "failed", "refused": "refused", "down": "unanswered"},
}


def order(server, path, tasks, concurrency=4, **changes):
    options = {"timeout": 0.5, "first_wait": 0.01, "longest_wait": 2.0, "tries": 3, **changes}
    settings = ChatSettings(server.url, "tiny", **options)
    cache = RequestCache(path)
    with ChatEndpoint(settings, cache) as client:
        results = order_lists(EndpointTeacher(client, None, concurrency), tasks, DOCUMENTS)
    return results, client.usage


def true_order(one: ListTask) -> list[int]:
    values = [int(name[1:]) for name in one.document_ids]
    return sorted(range(SIZE), key=lambda place: -values[place])


def test_a_teacher_that_fails_in_every_way(tmp_path):
    tasks = [task(number, TROUBLES[number % len(TROUBLES)]) for number in range(4 * len(TROUBLES))]
    with ChatServer(faulty) as server:
        results, usage = order(server, tmp_path / "cache.jsonl", tasks)
        assert server.most_at_once > 1
        asked = len(server.payloads)
        again, second = order(server, tmp_path / "cache.jsonl", tasks)
        extra = [trouble_of(payload) for payload in server.payloads[asked:]]

    assert len(results) == len(tasks)
    for one, result in zip(tasks, results, strict=True):
        trouble = one.query.text.rsplit(": ", 1)[1]
        assert result.outcome == EXPECTED[trouble], (trouble, result)
        if result.outcome == "clean":
            assert result.permutation == true_order(one)
        elif result.outcome == "repaired":
            kept = true_order(one)[:4]
            assert result.permutation == kept + [place for place in range(SIZE) if place not in kept]
        else:
            assert result.permutation is None
            assert result.reason
    assert {len(result.answers) for result in results if result.outcome == "failed"} == {2}

    summary = summarize(tasks, results, short=3)
    expected = Counter(EXPECTED[trouble] for trouble in TROUBLES for _ in range(4))
    assert summary["outcomes"] == expected
    assert summary["queries"] == sum(summary["outcomes"].values()) + 3 == len(tasks) + 3
    for outcome, count in summary["outcomes"].items():
        assert sum(counts[outcome] for counts in summary["by_source"].values()) == count
    assert summary["rates"] == {"failure": pytest.approx(8 / 32), "repair": pytest.approx(4 / 24, abs=1e-4)}
    assert summary["answers"]["with_repeated_numbers"] == summary["answers"]["with_numbers_out_of_range"] == 4

    assert usage.requests == asked
    assert usage.answers == summary["answers"]["received"]
    assert usage.prompt_tokens == 100 * usage.answers
    # A second run asks again only for what was never answered.
    assert set(extra) == {"refused", "down"}
    assert [(one.outcome, one.permutation, one.answers) for one in again] == [
        (one.outcome, one.permutation, one.answers) for one in results
    ]
    assert second.cached == usage.answers
    assert second.answers == 0


def test_a_server_that_is_gone_ends_the_run(tmp_path):
    tasks = [task(number, "none" if number < 3 else "down") for number in range(60)]
    with ChatServer(faulty) as server:
        with pytest.raises(
            ResourceError, match=r"8 consecutive lists unanswered .*status 502.*answers so far are cached"
        ):
            order(server, tmp_path / "cache.jsonl", tasks, concurrency=2)
        assert len(server.payloads) < 60
    cache = RequestCache(tmp_path / "cache.jsonl")
    assert len(cache) == 3
    gone = ChatSettings("http://127.0.0.1:9/v1", "tiny", tries=2, first_wait=0.01)
    cache = RequestCache(tmp_path / "other.jsonl")
    with (
        ChatEndpoint(gone, cache) as client,
        pytest.raises(ResourceError, match=r"gave no answer in 2 tries \(ConnectError"),
    ):
        order_lists(EndpointTeacher(client, None, 2), tasks, DOCUMENTS)


def test_a_teacher_that_takes_nothing_ends_the_run(tmp_path):
    with ChatServer(faulty) as server:
        with pytest.raises(ResourceError, match=r"rejects every list .*this is too long"):
            order(server, tmp_path / "cache.jsonl", [task(number, "refused") for number in range(30)], concurrency=1)
        assert 8 <= len(server.payloads) <= 10, "one or two are handed over when the last answer is seen"


def test_a_wrong_key_ends_the_run_at_the_first_request(tmp_path):
    with ChatServer(lambda *_: (401, {}, {})) as server:
        with pytest.raises(ResourceError, match="rejects the key"):
            order(server, tmp_path / "cache.jsonl", [task(number, "none") for number in range(30)], concurrency=1)
        assert len(server.payloads) == 1


def test_totals_that_cannot_add_up_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        summarize([task(0, "none")], [])
    assert summarize([], [])["rates"] == {"failure": None, "repair": None}


@pytest.fixture
def lists_inputs(tmp_path: Path) -> list[str]:
    """Arguments of `lists` over a corpus of 40 passages and 24 queries."""
    with (tmp_path / "corpus.jsonl").open("w") as file:
        for name, document in DOCUMENTS.items():
            file.write(json.dumps({"_id": name, "text": document.text}) + "\n")
    with (tmp_path / "queries.jsonl").open("w") as file:
        for number in range(24):
            kind = "cropped" if number % 2 else "generated"
            record = {"_id": f"q{number}", "text": f"bread value {number}", "metadata": {"query_type": kind}}
            file.write(json.dumps(record) + "\n")
    arguments = ["data", "lists", "--corpus", str(tmp_path / "corpus.jsonl")]
    arguments += ["--queries", str(tmp_path / "queries.jsonl")]
    arguments += ["--output", str(tmp_path / "out"), "--index-cache", str(tmp_path / "indexes")]
    return [*arguments, "--first-stages", "bm25", "b=bm25", "--list-size", "6", "--validation-share", "0.25"]


def start(arguments: list[str]) -> BaseProcess:
    def command() -> int:
        # A shell's background jobs, and all that they start, ignore interrupts; a user's command does not.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return main(arguments)

    return begin(command)


def test_a_killed_run_goes_on_and_a_third_asks_nothing(tmp_path, lists_inputs):
    """A process is killed in the middle; what it had asked is not asked again, and the result is whole."""
    from modeling_tsarank.trainers.row_checks import RowRules, checked_rows

    def slow(_, number, payload):
        time.sleep(0.05)
        return right_answer(payload)

    with ChatServer(slow) as server:
        teacher = ["--teacher-url", server.url, "--teacher-model", "tiny", "--concurrency", "2"]
        process = start([*lists_inputs, *teacher])
        deadline = time.monotonic() + 90
        while len(server.payloads) < 8 and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.join()
        killed_at = len(server.payloads)
        assert 8 <= killed_at < 24
        assert not (tmp_path / "out" / "data").exists()

        join([start([*lists_inputs, *teacher])])
        # Two requests may have been under way, answered by the server and not kept.
        assert 24 <= len(server.payloads) <= 24 + 2
        asked = len(server.payloads)
        files = {path: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()}

        join([start([*lists_inputs, *teacher])])
        assert len(server.payloads) == asked, "a rerun asks nothing"
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "data").iterdir()} == files

    report = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert report["outcomes"] == {"clean": 24, "repaired": 0, "failed": 0, "refused": 0, "unanswered": 0}
    assert report["splits"] == {"train": 18, "validation": 6, "failed": 0}
    assert report["usage"]["requests"] == 0
    assert report["usage"]["cached"] == 24
    assert (tmp_path / "out" / "failed.ndjson").read_text() == ""
    for split, count in (("train", 18), ("validation", 6)):
        rows = checked_rows(tmp_path / "out" / "data", RowRules(), split=split, cache_dir=tmp_path / "arrow").rows
        assert len(rows) == count
        for row in rows:
            values = [int(document["id"][1:]) for document in row["documents"]]
            assert [values[place] for place in row["permutation"]] == sorted(values, reverse=True)
            assert row["teacher"] == "tiny"
            assert row["first_stage"] in ("bm25", "b")
            assert row["repaired"] == "false"
            assert row["answer"].startswith("[")


def test_an_interrupt_leaves_no_half_written_set(tmp_path, lists_inputs):
    with ChatServer(lambda *_: (429, {"Retry-After": "110"}, {})) as server:
        process = start([*lists_inputs, "--teacher-url", server.url, "--teacher-model", "tiny"])
        deadline = time.monotonic() + 90
        while not server.payloads and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        stopped = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        process.join(90)
        assert time.monotonic() - stopped < 60, "the wait of almost two minutes was ended"
    assert process.exitcode == 130
    assert not (tmp_path / "out" / "data").exists()
    assert not (tmp_path / "out" / "provenance.json").exists()

"""How quickly the Space answers, and what many callers at once do to it.

    python benchmarks/app_latency.py [--url http://127.0.0.1:7860] [--requests 20] [--callers 50] [--output FILE.json]

Without --url it serves app.py itself, on the model that TSARANK_MODEL names or the embedded default, and also measures
the process's memory. A request is ten short documents of the built-in collection and a query that none of the others
has, so nothing is remembered. Latency is what a caller waits, HTTP and queue included; `model_seconds` is what the
model took. The load test sends all callers' requests at the same moment and counts answers and refusals.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil


ROOT = Path(__file__).parent.parent
_TEXT = "how why when does can should a the bee ship loaf glacier battery chain move rise hold sleep turn stay"
WORDS = _TEXT.split(" ")


def query_number(number: int) -> str:
    """A query of six words; different numbers give different queries."""
    digits = [number // len(WORDS) ** place % len(WORDS) for place in range(6)]
    return " ".join(WORDS[(digit + 5 * place) % len(WORDS)] for place, digit in enumerate(digits))


def _post(url: str, values: list[Any], timeout: float) -> tuple[int, Any]:
    data = json.dumps({"data": values}).encode()
    request = urllib.request.Request(f"{url}gradio_api/call/rank", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            event = json.loads(answer.read())["event_id"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    with urllib.request.urlopen(f"{url}gradio_api/call/rank/{event}", timeout=timeout) as answer:
        kind, data_line = answer.read().decode().strip().splitlines()[-2:]
    if kind != "event: complete":
        return 500, data_line
    return 200, json.loads(data_line.removeprefix("data: "))[0]


@contextlib.contextmanager
def served(waiting: int) -> Iterator[tuple[str, psutil.Process]]:
    """app.py on a free port until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "TSARANK_APP_WAITING": str(waiting)}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--port", str(port)], env=environment, stdout=sys.stderr
    )
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit("app.py did not come up") from None
                time.sleep(0.5)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


class PeakMemory(threading.Thread):
    """The largest resident size of a process, looked at every 50 ms until `stop`."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.peak = process.memory_info().rss
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.05):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def stop(self) -> int:
        """Ends the watching; the peak in bytes."""
        self._done.set()
        self.join()
        return self.peak


def one_by_one(url: str, documents: list[str], requests: int) -> dict[str, Any]:
    """Latencies of requests that follow one another, in seconds."""
    waited, worked, tokens = [], [], 0
    for number in range(requests + 1):
        started = time.perf_counter()
        status, result = _post(url, [query_number(number), documents, None], 600)
        if status != 200 or result["remembered"]:
            raise SystemExit(f"a request failed or was remembered: {status} {result}")
        if number:  # the first one warms up
            waited.append(time.perf_counter() - started)
            worked.append(result["seconds"])
            tokens += result["tokens"]
    waited.sort()
    return {
        "requests": requests,
        "documents": len(documents),
        "tokens_per_request": round(tokens / requests, 1),
        "p50_seconds": round(statistics.median(waited), 3),
        "p95_seconds": round(waited[min(len(waited) - 1, int(0.95 * len(waited)))], 3),
        "p50_model_seconds": round(statistics.median(worked), 3),
    }


def all_at_once(url: str, documents: list[str], callers: int) -> dict[str, Any]:
    """What happens to `callers` requests sent at the same moment."""
    gate = threading.Barrier(callers)

    def call(number: int) -> tuple[str, float]:
        gate.wait()
        started = time.perf_counter()
        status, result = _post(url, [query_number(10_000 + number), documents, None], 1800)
        outcome = "answered" if status == 200 else f"{status} {json.loads(result).get('detail', result)}"
        return outcome, time.perf_counter() - started

    with ThreadPoolExecutor(callers) as pool:
        outcomes = list(pool.map(call, range(callers)))
    answered = [seconds for outcome, seconds in outcomes if outcome == "answered"]
    return {
        "callers": callers,
        "documents": len(documents),
        "outcomes": dict(Counter(outcome for outcome, _ in outcomes)),
        "longest_wait_seconds": round(max(answered, default=0.0), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default=None, help="of an app that is already served, with the slash at the end")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--callers", type=int, default=50)
    parser.add_argument("--load-documents", type=int, default=3, help="documents of one request of the load test")
    parser.add_argument("--waiting", type=int, default=40, help="places in the queue of the app that is started here")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    lines = (ROOT / "examples" / "collection.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [f"{row['title']} {row['text']}" for row in map(json.loads, lines)]
    own = served(args.waiting) if args.url is None else contextlib.nullcontext((args.url, None))
    with own as (url, process):
        result = {"one_by_one": one_by_one(url, documents[:10], args.requests)}
        before = process.memory_info().rss if process else 0
        watcher = PeakMemory(process) if process else None
        if watcher:
            watcher.start()
        result["all_at_once"] = all_at_once(url, documents[: args.load_documents], args.callers)
        if watcher:
            mebibytes = {"rss_before_mib": before, "rss_peak_mib": watcher.stop()}
            result["all_at_once"] |= {name: round(value / 2**20) for name, value in mebibytes.items()}
    load = [round(value, 2) for value in os.getloadavg()]
    result["machine"] = {"cpu": platform.machine(), "cores": os.cpu_count(), "load_average_at_the_end": load}
    text = json.dumps(result, indent=2)
    sys.stdout.write(text + "\n")
    if args.output is not None:
        with tempfile.NamedTemporaryFile("w", dir=args.output.parent, delete=False) as file:
            file.write(text + "\n")
        os.replace(file.name, args.output)


if __name__ == "__main__":
    main()

"""Load test of a running `tsarank serve`: throughput, latency, memory, and whether every request got its own answer.

    tsarank serve --dtype float32 --port 8000 &
    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --clients 64 --seconds 60 --pid $! --output FILE.json

One client sends requests for a third of the time, then all clients. Each request has its own query and one to five
short documents, some repeated, and a document contains the request's number: the answer must return those documents.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modeling_tsarank.files.writing import write_json


WORDS = ("bread", "dough", "yeast", "harbour", "pilot", "ship", "bees", "honey", "violin", "bow", "tone", "river")


def texts_of(number: int) -> tuple[str, list[str]]:
    """Query and documents of one request."""
    generator = random.Random(number)
    count = generator.randint(1, 5)
    documents = [" ".join(generator.choices(WORDS, k=generator.randint(5, 30))) for _ in range(count)]
    return f"{' '.join(generator.choices(WORDS, k=4))} {number}", [*documents[:-1], f"{documents[-1]} {number}"]


class Client(threading.Thread):
    """Sends requests one after another until the time is over."""

    def __init__(self, url: str, numbers: Iterator[int], end: float) -> None:
        super().__init__(daemon=True)
        parts = urlsplit(url)
        self.address = parts.hostname or "", parts.port
        self.numbers, self.end = numbers, end
        self.seconds: list[float] = []
        self.pairs = 0
        self.statuses: Counter[str] = Counter()

    def run(self) -> None:
        """See the class."""
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        while time.monotonic() < self.end:
            query, documents = texts_of(next(self.numbers))
            body = json.dumps({"query": query, "documents": documents, "return_documents": True})
            started = time.monotonic()
            try:
                connection.request("POST", "/v1/rerank", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                self.statuses["no answer"] += 1
                connection.close()
                time.sleep(0.1)
                continue
            if answer.status != 200:
                self.statuses[str(answer.status)] += 1
                time.sleep(min(float(answer.headers.get("Retry-After", 0)), 1.0))
                continue
            rows = json.loads(content)["results"]
            found = {row["index"]: row["document"]["text"] for row in rows}
            scores = [row["relevance_score"] for row in rows]
            right = found == dict(enumerate(documents)) and scores == sorted(scores, reverse=True)
            self.statuses["right" if right else "WRONG"] += 1
            self.seconds.append(time.monotonic() - started)
            self.pairs += len(documents)


def resident(pid: int | None) -> float | None:
    """Resident memory of a process in MiB."""
    if pid is None:
        return None
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def run(url: str, clients: int, seconds: float, numbers: Iterator[int], pid: int | None) -> dict[str, Any]:
    """Statistics of `clients` clients running for `seconds` seconds."""
    end = time.monotonic() + seconds
    threads = [Client(url, numbers, end) for _ in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(resident(pid))
        time.sleep(1)
    wall = time.monotonic() - started
    times = sorted(value for thread in threads for value in thread.seconds)
    cuts = statistics.quantiles(times, n=100)
    known = [value for value in memory[len(memory) // 4 :] if value is not None]
    return {
        "clients": clients,
        "seconds": round(wall, 1),
        "answers": dict(sum((thread.statuses for thread in threads), Counter())),
        "requests a second": round(len(times) / wall, 2),
        "pairs a second": round(sum(thread.pairs for thread in threads) / wall, 2),
        "latency s": {f"p{p}": round(cuts[p - 1], 3) for p in (50, 95, 99)},
        "memory MiB, after a quarter of the time": {"least": min(known), "most": max(known)} if known else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pid", type=int, help="process id of the service, for its memory")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    numbers = itertools.count(1)  # any thread may take the next one
    found = [
        run(args.url, count, time_, numbers, args.pid)
        for count, time_ in ((1, args.seconds / 3), (args.clients, args.seconds))
    ]
    result = {
        "runs": found,
        "ratio of pairs a second": round(found[1]["pairs a second"] / found[0]["pairs a second"], 2),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()

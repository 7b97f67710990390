"""Every command against odd arguments and odd files: a documented status, one line, nothing half-written.

A failure prints the seed and the case's number; with `TSARANK_FUZZ=SEED:NUMBER` (or several numbers between commas)
test_odd_inputs_first_half.py runs those cases alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fuzz_commands import COMMANDS, odd_words
from fuzz_files import Pipe, odd_copy

from modeling_tsarank import cli


SEED = 23
CASES = 1008  # half of them in each of two files, so that two workers share them
PROGRESS_BAR = re.compile(r"\d+%\|.*\[\d+:\d+<")
# Left by a write that did not end; a cache of answers or scores is meant to stay.
HALF_WRITTEN = re.compile(r"\.(tmp|partial|part|unfinished|old|incomplete)\b|^\.unfinished|^tmp|\.tmp")


class TooLongError(BaseException):
    """A case ran for longer than any may."""


class OddServer(BaseHTTPRequestHandler):
    """A teacher whose answers follow from what it is asked, and are mostly wrong."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        generator = random.Random(data)
        right = {"choices": [{"message": {"content": "[2] > [1] > [3]"}}], "usage": {"prompt_tokens": 1}}
        body: bytes = generator.choice(
            [
                json.dumps(right).encode(),
                json.dumps(right).encode(),
                b"[" * 50_000,
                b'{"choices": [' + b"9" * 5000,
                b"\0" * 10,
                b"\xff\xfe",
                b"<html>",
                b'{"choices": [{"message": {"content": "\\ud800 [1] > [2]"}}]}',
                b'{"choices": [{"message": {"content": "[' + b"9" * 4999 + b'] > [1]"}}], "usage": []}',
                b"",
            ]
        )
        self.send_response(generator.choice([200, 200, 200, 200, 204, 302, 400, 401, 429, 500, 599, 799]))
        for name, value in (
            (
                "Retry-After",
                generator.choice(["Fri, 31 Dec 99999 23:59:59 GMT", "1e999", "nan", "-1", "9" * 5000, "x"]),
            ),
            ("Content-Encoding", generator.choice(["", "gzip", "identity", "x"])),
            ("Location", "http://[::1"),
        ):
            if generator.random() < 0.3:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + generator.choice([0, 0, 0, 1])))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def run_main(arguments: list[str], seconds: float = 300.0) -> tuple[int, str, str]:
    """Status, standard output and standard error of one command; `TooLongError` if it does not end."""
    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace"),
    )

    def ring(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    stdin = io.TextIOWrapper(io.BytesIO(b"a document\nanother\n"), "utf-8")
    kept, sys.stdin = sys.stdin, stdin
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.stdin = kept
    for stream in (out, err):
        stream.flush()
    return status, *(stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]


def faults(status: int, err: str, folder: Path) -> list[str]:
    """What is wrong with how a command ended."""
    found = []
    lines = [line for line in err.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"tsarank[\w -]*: error", line)]
    if status not in (0, 2):
        found.append(f"status {status}")
    if "Traceback" in err or "unforeseen" in err:
        found.append("an error that nobody foresaw")
    if len(errors) != (1 if status else 0):
        found.append(f"{len(errors)} error lines")
    strange = [line for line in lines if not line.startswith("tsarank") and not PROGRESS_BAR.search(line)]
    if strange:
        found.append(f"on standard error: {strange[0][:200]!r}")
    if any(len(line) > 1000 for line in errors):
        found.append("an error of more than 1,000 characters")
    left = [str(path.relative_to(folder)) for path in folder.rglob("*") if HALF_WRITTEN.search(path.name)]
    if left:
        found.append(f"left behind: {left}")
    for path in (folder / "out", folder):
        for file in path.rglob("*") if path.name == "out" else path.glob("*"):
            if file.suffix in (".json", ".jsonl") and file.is_file():
                found += _broken(file)
    return found


def _broken(file: Path) -> list[str]:
    """Whether a file that was written is not whole."""
    text = file.read_text(encoding="utf-8")
    try:
        for part in [text] if file.suffix == ".json" else text.splitlines():
            json.loads(part)
    except ValueError as error:
        return [f"{file.name} is not whole: {error}"]
    return []


def run_case(
    seed: int, number: int, valid: Path, parsers: dict[str, Any], server: str, folder: Path
) -> tuple[str, int]:
    """Runs one case in an empty folder, returns its command and status; fails with what is needed to repeat it."""
    generator = random.Random(f"{seed}:{number}")
    command = list(COMMANDS)[number % len(COMMANDS)]
    words = generator.choice(COMMANDS[command]).split()
    odd_file = generator.random() < 0.55
    files = [place for place, word in enumerate(words) if word.startswith("@")]
    chosen = generator.choice(files) if odd_file and files else None
    pipes: list[Pipe] = []
    for place, word in enumerate(words):
        if place == chosen:
            path, pipe = odd_copy(valid / word[1:], folder, generator)
            pipes += [pipe] if pipe else []
            words[place] = str(path)
        elif word.startswith("@"):
            words[place] = str(valid / word[1:])
        elif word.startswith("%"):
            words[place] = str(folder / word[1:])
        elif word == "SERVER":
            words[place] = server
    if command == "data card" and chosen is None:
        words = [shutil.copytree(valid / "weak-set", folder / "weak-set").as_posix()]
    if chosen is None or generator.random() < 0.1:
        words = odd_words(words, parsers[command], generator, folder / "out")
    words = [*command.split(), *words]
    os.chdir(folder)
    try:
        status, _, err = run_main(words)
        wrong = faults(status, err, folder)
    except TooLongError:
        status, err, wrong = -1, "", ["it did not end"]
    finally:
        for pipe in pipes:
            pipe.close()
    if wrong:
        if status == 1:
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(TooLongError):
                patch.setenv("TSARANK_DEBUG", "1")
                err += run_main(words)[2]
        shown = shlex.join(word if len(word) < 300 else f"{word[:20]}…({len(word)})" for word in words)
        text = f"TSARANK_FUZZ={seed}:{number}\ntsarank {shown}\n{'; '.join(wrong)}\n"
        text += f"status {status}, standard error:\n{err[-3000:]}"
        raise AssertionError(text.encode("utf-8", "backslashreplace").decode())
    return command, status


def run_cases(
    seed: int, numbers: Iterable[int], valid: Path, parsers: Any, server: str, tmp_path: Path
) -> Counter[tuple[str, int]]:
    """Runs the cases, each in its own folder, and returns how often each command ended how."""
    counts: Counter[tuple[str, int]] = Counter()
    if os.environ.get("TSARANK_FUZZ"):
        named, _, wanted = os.environ["TSARANK_FUZZ"].partition(":")
        seed, numbers = int(named), map(int, wanted.split(","))
    problems = []
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            counts[run_case(seed, number, valid, parsers, server, folder)] += 1
        except AssertionError as error:
            problems.append(str(error))
            if len(problems) >= int(os.environ.get("TSARANK_FUZZ_MOST", "5")):
                break
        os.chdir(tmp_path)
        shutil.rmtree(folder)
    assert not problems, "\n\n".join(problems)
    return counts


def run_half(half: int, valid: Path, parsers: Any, server: str, tmp_path: Path) -> None:
    """Runs the first (0) or second (1) half of the cases and checks that enough of each command's are refused."""
    first = half * CASES // 2
    counts = run_cases(SEED, range(first, first + CASES // 2), valid, parsers, server, tmp_path)
    if "TSARANK_FUZZ" not in os.environ:
        for command in COMMANDS:
            assert counts[command, 2] > CASES / 2 / len(COMMANDS) / 4, command


def run_long_half(half: int, valid: Path, parsers: Any, server: str, tmp_path: Path) -> None:
    """Ten times as many, of another seed."""
    first = half * 5 * CASES
    run_cases(SEED + 1, range(first, first + 5 * CASES), valid, parsers, server, tmp_path)

"""Every command against odd arguments and odd files: a documented status, one line, nothing half-written.

A failure prints the seed and the case's number; `TSARANK_FUZZ=SEED:NUMBER` runs that case alone.
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
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fuzz_commands import COMMANDS, leaf_parsers, odd_words
from fuzz_files import Pipe, odd_copy, valid_files

from modeling_tsarank import cli


SEED = 23
CASES = 1008  # the soak below runs ten times as many
PROGRESS_BAR = re.compile(r"\d+%\|.*\[\d+:\d+<")
# Left by a write that did not end; a cache of answers or scores is meant to stay.
HALF_WRITTEN = re.compile(r"\.(tmp|partial|part|unfinished|old|incomplete)\b|^\.unfinished|^tmp|\.tmp")


class TooLongError(BaseException):
    """A case ran for longer than any may."""


class _OddServer(BaseHTTPRequestHandler):
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


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _OddServer)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """Neither the Hub nor a package index is asked; trainings run in this process."""
    import datasets
    import huggingface_hub.constants

    from modeling_tsarank.trainers import commands, cpt, distill, sft
    from modeling_tsarank.trainers.script_utils import run_script

    scripts = {script.__name__: script for script in (cpt, distill, sft)}

    def launch(options: list[str], processes: int | None, module: str, script_options: Any, *_: Any) -> int:
        return run_script(scripts[module].main, script_options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(commands, "_launch", launch)
        datasets.disable_progress_bars()
        for name, value in {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}.items():
            patch.setenv(name, value)
        patch.delenv("TSARANK_DEBUG", raising=False)
        yield


@pytest.fixture(scope="module")
def valid(offline: None, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz") / "valid"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSARANK_CACHE", str(folder.parent / "cache"))
        yield valid_files(folder, lambda: tiny_llama, cli.main)


@pytest.fixture(scope="module")
def parsers() -> dict[str, Any]:
    found = dict(leaf_parsers(cli.build_parser()))
    from modeling_tsarank.trainers.commands import launcher_parser

    return {
        words: launcher_parser(words.split()[1]) if words.startswith("train ") else p
        for words, p in found.items()
        if p.prog.endswith(f" {words}")  # and not by another name
    }


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
    seed: int, cases: int, valid: Path, parsers: Any, server: str, tmp_path: Path
) -> Counter[tuple[str, int]]:
    """Runs the cases, each in its own folder, and returns how often each command ended how."""
    counts: Counter[tuple[str, int]] = Counter()
    numbers: Any = range(cases)
    if os.environ.get("TSARANK_FUZZ"):
        seed, number = map(int, os.environ["TSARANK_FUZZ"].split(":"))
        numbers = [number]
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


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    async def ends_at_once(_: Any, sockets: Any = None) -> None:
        """Everything of a service but the waiting for requests."""

    monkeypatch.setattr("uvicorn.Server.main_loop", ends_at_once)


def test_every_command_has_a_valid_line_to_start_from(parsers: dict[str, Any]) -> None:
    assert set(parsers) == set(COMMANDS)


def test_odd_inputs_end_in_one_line(valid: Path, parsers: dict[str, Any], server: str, tmp_path: Path) -> None:
    counts = run_cases(SEED, CASES, valid, parsers, server, tmp_path)
    if "TSARANK_FUZZ" not in os.environ:
        for command in COMMANDS:
            assert counts[command, 2] > CASES / len(COMMANDS) / 4, command


@pytest.mark.slow
def test_many_odd_inputs_end_in_one_line(valid: Path, parsers: dict[str, Any], server: str, tmp_path: Path) -> None:
    run_cases(SEED + 1, 10 * CASES, valid, parsers, server, tmp_path)

"""The command line's frame: where messages go, what statuses mean."""

from __future__ import annotations

import argparse
import io
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeling_tsarank import cli
from modeling_tsarank.cli.command_line import DEBUG_VARIABLE, Number, one_line, run_command, size
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.commands import launcher_parser


def test_messages_follow_an_exchanged_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller's captured stream may be closed by the time something is logged again."""
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    assert cli.main(["rank", "--query", " ", "--documents", "x.txt"]) == 2
    assert (
        first.getvalue()
        == "tsarank: error: the query is empty; a query needs at least one character that is not white space\n"
    )
    monkeypatch.setattr(sys, "stderr", second)
    first.close()
    logging.getLogger("modeling_tsarank.anything").warning("still heard")
    assert second.getvalue() == "tsarank: still heard\n"


@pytest.mark.parametrize("options", [[], ["-v"]])
def test_a_command_in_this_process_leaves_later_logging_to_its_caller(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*options, "rank", "--query", " ", "--documents", "x.txt"]) == 2
    logging.root.setLevel(logging.INFO)
    logging.getLogger("modeling_tsarank.anything").info("heard")
    assert capsys.readouterr().err.endswith("tsarank: heard\n")


def test_an_interruption_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_tsarank.cli.rank.run", interrupted)
    assert cli.main(["rank", "--query", "q", "--documents", "x.txt"]) == 130
    assert capsys.readouterr().err == "tsarank: interrupted\n"


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


# ---- the last net ----------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rank` has a fault that nobody foresaw."""

    def fails(_: object) -> int:
        raise ZeroDivisionError("a fault\nin two lines")

    monkeypatch.setattr("modeling_tsarank.cli.rank.run", fails)
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)


RANK = ["rank", "--query", "q", "--documents", "x.txt"]


@pytest.mark.usefixtures("broken")
def test_an_unforeseen_error_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(RANK) == 1
    said = capsys.readouterr().err
    assert said.startswith("tsarank: error: unexpected ZeroDivisionError: a fault in two lines")
    assert said.count("\n") == 1
    assert "traceback: --debug" in said


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("arguments", [["--debug", *RANK], [*RANK, "--debug"]])
def test_debug_shows_the_trace(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith("tsarank: error: unexpected")


def test_what_the_operating_system_refuses_is_the_users_to_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("modeling_tsarank.cli.rank.run", lambda _: (tmp_path / "missing").read_text())
    assert cli.main(RANK) == 2
    assert capsys.readouterr().err == f"tsarank: error: {tmp_path / 'missing'}: No such file or directory\n"


# ---- what is printed -------------------------------------------------------------------------------


def test_an_error_shows_neither_whole_documents_nor_control_characters() -> None:
    line = one_line(
        "the query '" + "word " * 1000 + "' and the file /" + "x" * 5000 + ".jsonl are\nodd: \x1b[31m \udcff"
    )
    assert len(line) < 450
    assert line.startswith("the query 'word word")
    assert line.endswith(".jsonl are odd: \\x1b[31m \\udcff")
    assert len(one_line("a b " * 2000)) == 600
    path = "/" + "folder/" * 20 + "file.txt"
    assert one_line(f"no file {path!r}") == f"no file {path!r}"


def test_argparse_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    errors = {
        ("index", "--store", "s"): "tsarank index: error: the following arguments are required: --documents",
        ("rank", "--query", "q", "--documents", "x", "--topk", "3"): (
            "tsarank rank: error: unknown option '--topk'; did you mean --top-k?"
        ),
        ("x" * 5000,): "tsarank: error: COMMAND: invalid choice: 'xxx",
        ("data", "queries", "cropped"): "tsarank data queries cropped: error: the following arguments are required",
        ("rank", "--query", "a\0b", "--documents", "x"): "tsarank: error: an argument contains a NUL character",
    }
    for arguments, expected in errors.items():
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith(expected)
        assert said.count("\n") == 1
        assert len(said) < 700


# ---- standard streams ------------------------------------------------------------------------------


def run_cli(redirection: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = f'"$0" -m modeling_tsarank.cli "$@" {redirection}'
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | more
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


@pytest.mark.parametrize(
    ("redirection", "statuses", "said"),
    [
        ('| true; exit "${PIPESTATUS[0]}"', {0, 141}, ""),
        (">&-", {0}, ""),
        (">&- 2>&-", {0}, ""),
        ("> /dev/full", {2}, "tsarank: error: standard output cannot be written (No space left on device)\n"),
    ],
)
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=str)
def test_output_that_nobody_takes(
    redirection: str, statuses: set[int], said: str, environment: dict[str, str]
) -> None:
    """As coreutils: help that cannot be written is an error, unlike python's own, which says nothing of it."""
    done = run_cli(redirection, "compare", "--help", **environment)
    assert done.returncode in statuses
    assert done.stderr == said


@pytest.mark.parametrize("columns", ["0", "1", "-5", "abc", "9" * 30, ""])
def test_help_is_written_in_a_window_of_any_width(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in ([], ["rank"], ["data", "lists"], ["publish", "model"]):
        assert cli.main([*command, "--help"]) == 0
        assert "--help" in capsys.readouterr().out


@pytest.mark.parametrize("environment", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0"}], ids=str)
def test_a_locale_without_the_characters_of_a_text_stops_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "fileé.txt"
    path.write_text("yeast\n", encoding="utf-8")
    done = run_cli("", "rank", "--query", " \u3000", "--documents", str(path), **environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the query is empty" in done.stderr


# ---- numbers ---------------------------------------------------------------------------------------


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """All parsers of the command line, those of the trainings' launcher included."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                if parser.prog == "tsarank train":
                    yield launcher_parser(name)
                else:
                    yield from parsers(one)


def number_options() -> list[tuple[argparse.ArgumentParser, argparse.Action]]:
    return [
        (parser, action)
        for parser in parsers(cli.build_parser())
        for action in parser._actions
        if isinstance(action.type, Number)
    ]


def test_every_number_option_is_checked_when_it_is_parsed(capsys: pytest.CaptureFixture[str]) -> None:
    options = number_options()
    assert len(options) > 70
    refused = 0
    for parser, action in options:
        kind = action.type
        assert isinstance(kind, Number)
        name = action.option_strings[0]
        required = [
            text
            for one in parser._actions
            if one.required and one.option_strings and one is not action
            for text in (one.option_strings[0], "1")
        ]
        for text in ("nan", "inf", "-inf", "-1", "0", "1e999", "9" * 5000, "many", "", "0x10", "1,5"):
            try:
                allowed = kind.allows(kind.kind(text))
            except ValueError:
                allowed = False
            if allowed:
                # A threshold of scores may be negative.
                assert text == "0" or (name, text) == ("--threshold", "-1"), f"{name} {text}"
                continue
            with pytest.raises(SystemExit) as stop:
                parser.parse_args([*required, f"{name}={text}"])
            said = capsys.readouterr().err
            assert stop.value.code == 2
            assert said.startswith(f"{parser.prog}: error: {name}"), said
            assert said.count("\n") == 1
            assert "expected a " in said
            assert len(said) < 400
            refused += 1
    assert refused > 10 * len(options)


def test_no_option_takes_a_number_unchecked() -> None:
    """A bare int or float lets NaN, infinities and 5,000 digits through to where they cost most."""
    for parser in parsers(cli.build_parser()):
        for action in parser._actions:
            assert action.type not in (int, float), f"{parser.prog} {action.option_strings}"
            if action.metavar in ("N", "K", "X", "S", "P", "W") and action.default is not None:
                numeric = isinstance(action.default, int | float)
                assert not numeric or isinstance(action.type, Number), f"{parser.prog} {action.option_strings}"


def test_sizes() -> None:
    texts = ("20GB", "1.5 k", "500M", "7", "100KB", "2 GiB", "1mib")
    assert [size(text) for text in texts] == [20 * 10**9, 1500, 5 * 10**8, 7, 10**5, 2**31, 2**20]
    for text in ("", "many", "-1GB", "0", "0.1", "nan", "inf", "1e999", "9" * 5000, "1ib", "٣GB"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a size"):
            size(text)


def test_a_name_that_is_not_utf_8_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        "caf\udce9".encode()
        return 0

    assert run_command(command) == 2
    assert "not UTF-8: 'caf\\udce9'" in capsys.readouterr().err


# ---- what the long fuzz found -------------------------------------------------------------------------


def test_an_address_that_cannot_be_listened_on_is_named_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for host, number in (("127.0.0.1", port), ("no-such-host.invalid", "0"), ("\u202e", "0"), ("x" * 300, "0")):
            assert cli.main(["serve", "--host", host, "--port", number, "--model", "/nowhere"]) == 2
            error = capsys.readouterr().err
            assert error.startswith("tsarank: error: cannot listen on ")
            assert error.count("\n") == 1


def test_a_training_without_any_option_is_one_line() -> None:
    own, rest = launcher_parser("distill").parse_known_args([])
    assert (own.num_processes, rest) == (None, [])


def test_a_field_whose_name_is_broken_unicode_is_one_line(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    assert datasets
    from modeling_tsarank.trainers.training_data import load_training_rows

    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "a", "positives": ["b"], "negatives": ["c"], "x\\ud800": "d"}\n')
    with pytest.raises(InputError, match="of a field is broken Unicode"):
        load_training_rows(path, cache_dir=tmp_path / "cache")

"""The help of every command, short and whole, and the page of all options."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from modeling_tsarank.cli import build_parser, main
from modeling_tsarank.cli.reference import parsers, reference


PAGE = Path(__file__).parents[3] / "docs" / "commands.md"
SHORT = (
    "rank",
    "index",
    "score",
    "describe",
    "serve",
    "evaluate",
    "compare",
    "tune-fusion",
    "publish model",
    "data lists",
    "data mine",
    "data scores",
)


def options_of(text: str) -> set[str]:
    return {word.strip("[],`").partition("=")[0] for word in text.split() if word.startswith(("--", "[--", "`--"))}


def test_the_page_of_all_options_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), "run python -m modeling_tsarank.cli.reference"


def test_the_page_has_every_option_of_every_command() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for parser in parsers(build_parser()):
        if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions) or not parser.add_help:
            continue
        section = text.partition(f"## {parser.prog}\n")[2].partition("\n## ")[0]
        expected = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
        assert expected - options_of(section) <= {"--help", "--help-all", "--debug"}, parser.prog


@pytest.mark.parametrize("command", SHORT)
def test_help_fits_on_one_screen(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*command.split(), "--help"]) == 0
    short = capsys.readouterr().out
    assert short.count("\n") <= 52
    assert "examples:" in short
    assert main([*command.split(), "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert len(whole) > len(short) or "--help-all` shows all" not in short
    assert "--help-all` shows all" not in whole


def test_the_short_help_shows_what_is_required_and_names_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", "--help"]) == 0
    short = capsys.readouterr().out
    assert {"--query", "--documents", "--model", "--top-k"} <= options_of(short)
    assert "--passage-stride" not in short
    assert "tsarank rank --help-all` shows all options" in short
    assert main(["rank", "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert {"--passage-stride", "--api-timeout", "--revision"} <= options_of(whole)
    assert "RankGPT" in whole


def test_every_common_option_exists() -> None:
    for parser in parsers(build_parser()):
        known = {name for action in parser._actions for name in action.option_strings}
        assert set(getattr(parser, "common", ())) <= known, parser.prog

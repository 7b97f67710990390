"""The command line's frame: where messages go, what statuses mean."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from modeling_tsarank import cli


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


def test_an_interruption_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("modeling_tsarank.rank_command.run", interrupted)
    assert cli.main(["rank", "--query", "q", "--documents", "x.txt"]) == 130
    assert capsys.readouterr().err == "tsarank: interrupted\n"


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err

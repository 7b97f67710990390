"""The first half of the odd inputs; see `fuzz_cases`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import run_half, run_long_half
from fuzz_commands import COMMANDS


def test_every_command_has_a_valid_line_to_start_from(parsers: dict[str, Any]) -> None:
    assert set(parsers) == set(COMMANDS)


def test_odd_inputs_end_in_one_line(valid: Path, parsers: Any, server: str, tmp_path: Path) -> None:
    run_half(0, valid, parsers, server, tmp_path)


@pytest.mark.slow
def test_many_odd_inputs_end_in_one_line(valid: Path, parsers: Any, server: str, tmp_path: Path) -> None:
    run_long_half(0, valid, parsers, server, tmp_path)

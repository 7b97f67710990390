"""The second half of the odd inputs; see `fuzz_cases`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import run_half, run_long_half


def test_odd_inputs_end_in_one_line(valid: Path, parsers: Any, server: str, tmp_path: Path) -> None:
    run_half(1, valid, parsers, server, tmp_path)


@pytest.mark.slow
def test_many_odd_inputs_end_in_one_line(valid: Path, parsers: Any, server: str, tmp_path: Path) -> None:
    run_long_half(1, valid, parsers, server, tmp_path)

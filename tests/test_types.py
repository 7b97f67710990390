"""The type check sees calls from one package of the project into another."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from check_types import ROOT, TREE, assemble


MISTAKES = """
from modeling_tsarank.scores.fusion import normalise  # it is called normalize
from modeling_tsarank.scores.fusion import normalize
from modeling_tsarank.trainers.objectives import no_such_loss
from modeling_tsarank.files.templates import line

normalize(1, 2, 3)
line(text=5, unknown=1)
"""


def test_wrong_imports_and_calls_across_packages_fail_the_check() -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (extra dev)")
    folder = assemble(TREE)  # where `make lint` has left its cache
    planted_file = folder / "modeling_tsarank" / "planted.py"
    planted_file.write_text(MISTAKES)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["-m", "modeling_tsarank.planted"]
    environment = {**os.environ, "MYPYPATH": str(folder)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    finally:
        planted_file.unlink()
    planted = [line for line in done.stdout.splitlines() if "planted.py" in line and "error" in line]
    assert done.returncode == 1
    for expected in ('"normalise"', '"no_such_loss"', '"normalize"', '"line"'):
        assert any(expected in line for line in planted), (expected, done.stdout)

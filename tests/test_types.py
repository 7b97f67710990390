"""The type check sees calls from one package of the project into another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from check_types import ROOT, assemble


MISTAKES = """
from modeling_tsarank.scores.fusion import normalise  # it is called normalize
from modeling_tsarank.scores.fusion import normalize
from modeling_tsarank.trainers.objectives import no_such_loss
from modeling_tsarank.files.templates import line

normalize(1, 2, 3)
line(text=5, unknown=1)
"""
# Other libraries are not read: that takes minutes without a cache.
OURS = '[[tool.mypy.overrides]]\nmodule = "modeling_tsarank.*"\nfollow_imports = "normal"\n'


def test_wrong_imports_and_calls_across_packages_fail_the_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (extra dev)")
    assemble(tmp_path)
    (tmp_path / "modeling_tsarank" / "planted.py").write_text(MISTAKES)
    config = tmp_path / "pyproject.toml"
    config.write_text(f"{(ROOT / 'pyproject.toml').read_text()}\n{OURS}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--follow-imports", "skip"]
    command += ["--cache-dir", os.devnull, "-m", "modeling_tsarank.planted"]
    environment = {**os.environ, "MYPYPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    planted = [line for line in done.stdout.splitlines() if "planted.py" in line and "error" in line]
    assert done.returncode == 1, done.stderr
    for expected in ('"normalise"', '"no_such_loss"', '"normalize"', '"line"'):
        assert any(expected in line for line in planted), (expected, done.stdout)

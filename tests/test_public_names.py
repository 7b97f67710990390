"""What a user may import: the short name, the public names, and the old ones for one release."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_tsarank
from modeling_tsarank._moved import MOVED


ROOT = Path(__file__).parent.parent


def run(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_short_name_is_the_package_and_light() -> None:
    code = """
import sys, tsarank, modeling_tsarank
assert "torch" not in sys.modules
assert dir(tsarank) == dir(modeling_tsarank), set(dir(tsarank)) ^ set(dir(modeling_tsarank))
from tsarank import MemoryStore, load_ranker
assert load_ranker is modeling_tsarank.load_ranker
assert tsarank.__version__ == modeling_tsarank.__version__
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_dir_is_the_public_api() -> None:
    names = dir(modeling_tsarank)
    assert {"load_ranker", "TSARankModel", "TwolarModel", "FolderStore", "RankingSFTTrainer"} <= set(names)
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    for name in names:
        assert getattr(modeling_tsarank, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = modeling_tsarank.nothing


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_new_module(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = importlib.import_module(f"modeling_tsarank.{MOVED[old]}")
    monkeypatch.delitem(sys.modules, f"modeling_tsarank.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"modeling_tsarank.{old} is now modeling_tsarank.{MOVED[old]}"):
        assert importlib.import_module(f"modeling_tsarank.{old}") is new


def test_the_warning_names_the_users_line() -> None:
    done = run("\nfrom modeling_tsarank.loading import load_ranker", "-W", "error::DeprecationWarning:__main__")
    assert done.returncode == 1
    assert "DeprecationWarning: modeling_tsarank.loading is now modeling_tsarank.models.loading" in done.stderr
    gone = run("import modeling_tsarank.nothing")
    assert "No module named 'modeling_tsarank.nothing'" in gone.stderr

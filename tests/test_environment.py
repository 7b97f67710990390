"""The constraints file says which versions the tests ran with; here it is held to that."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest


CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def pins() -> dict[str, str]:
    lines = [line.strip() for line in CONSTRAINTS.read_text().splitlines()]
    found = [re.fullmatch(r"([\w.-]+)==(\S+)", line) for line in lines if line and not line.startswith("#")]
    assert all(found), "constraints.txt holds exact versions only"
    return {match[1]: match[2] for match in found if match}


def test_what_we_build_on_is_pinned() -> None:
    names = {name.lower().replace("_", "-") for name in pins()}
    needed = {"torch", "transformers", "trl", "peft", "datasets", "evaluate", "huggingface-hub", "accelerate", "numpy"}
    assert needed <= names


@pytest.mark.skipif(
    not os.environ.get("TSARANK_PINNED"), reason="TSARANK_PINNED is not set: other versions may be in use"
)
def test_the_tests_run_with_the_pinned_versions() -> None:
    wrong = {}
    for name, pinned in pins().items():
        try:
            installed = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if installed != pinned:
            wrong[name] = (installed, pinned)
    assert not wrong

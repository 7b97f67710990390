"""The field's own words: spelling, and no private vocabulary, in pages, help texts and cards."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
PAGES += [*sorted((ROOT / "hub_cards").glob("*.md")), *sorted((ROOT / "trainers").rglob("*.md"))]
RULES = [
    line.split("\t")
    for line in (ROOT / "tests" / "words.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_private_vocabulary(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; write: {instead}"
        for pattern, instead in RULES
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


def test_the_rules_find_what_they_are_for() -> None:
    text = "The kept states lie in a folder. A score hangs a little on the batch."
    assert sum(bool(re.search(pattern, text)) for pattern, _ in RULES) == 3


def test_spelling() -> None:
    command = [sys.executable, "-m", "codespell_lib", *map(str, PAGES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

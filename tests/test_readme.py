"""Every block of the README runs as it is, with the real default model; test_pages.py runs the other pages."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from pages import blocks, commands

from modeling_tsarank.cli import main
from modeling_tsarank.scores import RAW_SCORES


ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    names: dict[str, object] = {}
    for _, block in blocks(README, "python"):
        exec(compile(block, str(README), "exec"), names)
    assert capsys.readouterr().out.splitlines()[0] == "An adult flea lives for two to three months."


def test_shell_blocks_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """`tsarank` is run; of what installs or tests the whole project, only that it exists is checked."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for program, *arguments in commands("".join(text for _, text in blocks(README, "bash"))):
        if program == "tsarank":
            assert main(arguments) == 0, arguments
            ran += 1
        elif program == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            assert [program, arguments[0]] == ["pip", "install"]
    assert ran >= 2
    assert "flea-lifespan" in capsys.readouterr().out


def test_the_demo_of_the_readme_shows_the_recorded_scores(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """What stands in the README is what `make demo` prints, cut to a narrow terminal."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    recipe = re.search(r"^demo:.*\n\t\S+tsarank (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    assert main(shlex.split(recipe[1])) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = re.search(r"^```\n(rank +id .*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert shown is not None
    for line, expected in zip(printed, shown[1].splitlines(), strict=False):
        assert line.split()[:3] == expected.split()[:3]
    assert len(printed) == 9


def test_what_a_score_means_is_said_in_the_same_words_everywhere() -> None:
    pages = [README, *(ROOT / "docs" / f"{name}.md" for name in ("ranking", "guides/fusion", "serving", "commands"))]
    for page in pages:
        assert RAW_SCORES in " ".join(page.read_text(encoding="utf-8").split()), page.name
    for page in (ROOT / "app.py", ROOT / "hub_cards" / "model_card.md"):
        assert "{raw_scores}" in page.read_text(encoding="utf-8").replace("{{ raw_scores }}", "{raw_scores}"), (
            page.name
        )


def test_the_extras_of_the_readme_exist() -> None:
    text = README.read_text(encoding="utf-8")
    table = text[text.index("| extra |") :].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z-]+)`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:])))
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    assert named <= extras
    assert extras - named <= {"dev", "docs"}

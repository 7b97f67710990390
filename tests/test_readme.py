"""Every block of the README and the Python of the documentation run as they are, with the real default model."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from modeling_tsarank.cli import build_parser, main
from modeling_tsarank.scores import RAW_SCORES


ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, each split as the shell splits it, comments left out."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)
    assert "An adult flea lives for two to three months." in capsys.readouterr().out.splitlines()[0]


def test_shell_blocks_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """`tsarank` is run; of what installs or tests the whole project, only that it exists is checked."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    ran = 0
    for program, *arguments in commands(README):
        if program == "tsarank":
            assert main(arguments) == 0, arguments
            ran += 1
        elif program == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        else:
            assert [program, arguments[0]] == ["pip", "install"]
    assert ran >= 3
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


def test_every_command_and_option_of_the_documentation_exists() -> None:
    """Each `tsarank …` of a shell block is accepted by the parsers."""
    parser = build_parser()
    found = 0
    for page in PAGES:
        for program, *arguments in commands(page):
            if program == "tsarank" and "--help" not in arguments:
                if "<" in arguments:  # standard input
                    arguments = arguments[: arguments.index("<")]
                if arguments[0] == "train":  # its options are read by the script
                    continue
                assert isinstance(parser.parse_args(arguments), argparse.Namespace), arguments
                found += 1
    assert found >= 10


def test_what_a_score_means_is_said_in_the_same_words_everywhere() -> None:
    pages = [README, *(ROOT / "docs" / f"{name}.md" for name in ("ranking", "evaluation", "serving", "commands"))]
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


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("http"):
                continue
            file, _, anchor = target.partition("#")
            place = (page.parent / file).resolve() if file else page
            assert place.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", place.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {target}"

"""The README's Python is run as it stands, in an empty folder, with the real default model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    first = capsys.readouterr().out.splitlines()[0]
    assert "An adult flea lives for two to three months." in first
    assert type(names["plain"]).__name__ == "LlamaForCausalLM"


def test_every_command_of_the_readme_exists() -> None:
    from modeling_tsarank.cli import build_parser

    text = README.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    commands = set(re.findall(r"^tsarank (\S+)", shell, re.MULTILINE)) | set(re.findall(r"`tsarank ([a-z-]+)", text))
    actions = [action for action in build_parser()._actions if action.dest == "command"]
    assert commands
    assert commands <= set(actions[0].choices or ())

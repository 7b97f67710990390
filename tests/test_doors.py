"""Which room may import which: the doors go one way only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = "modeling_tsarank"
# The command line stands above all rooms; the others of this folder know no room at all.
MAY_IMPORT = {
    "modeling_tsarank": set(),
    "eval": {"eval", "modeling_tsarank"},
    "trainers": {"trainers", "eval", "modeling_tsarank"},
    "hub_cards": {"hub_cards", "trainers", "eval", "modeling_tsarank"},
}
SUBPACKAGES = {"eval", "trainers", "hub_cards"}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            parts = module.split(".")
            if parts[0] == PACKAGE:
                rooms.add(parts[1] if len(parts) > 1 and parts[1] in SUBPACKAGES else PACKAGE)
            # The folders are also importable by their own names when the repository's root is on the path.
            assert parts[0] not in SUBPACKAGES, f"{path}: import {PACKAGE}.{module}, not {module}"
    return rooms


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_downwards_only(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        found = imported_rooms(path)
        if room == "modeling_tsarank":
            assert found <= {PACKAGE}, f"{path.name} imports {sorted(found)}"
        else:
            assert found <= MAY_IMPORT[room], f"{path} imports {sorted(found - MAY_IMPORT[room])}"


def travelling_files() -> set[Path]:
    """The modules that are saved with a checkpoint: those with a model, and what they import relatively."""
    folder = ROOT / PACKAGE
    found = {*folder.glob("modeling_*.py"), folder / "pipeline_text_ranking.py", folder / "crossencoder_tsarank.py"}
    waiting = list(found)
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                beside = folder / f"{node.module}.py"
                if node.module and beside.is_file() and beside not in found:
                    found.add(beside)
                    waiting.append(beside)
    return found


def test_what_travels_imports_no_files_and_files_import_only_what_travels() -> None:
    travelling = travelling_files()
    for path in travelling:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = getattr(node, "module", None) or ""
            assert not (isinstance(node, ast.ImportFrom) and name.startswith(("files", f"{PACKAGE}.files"))), path
    for path in (ROOT / PACKAGE / "files").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
                below = node.module.split(".")[1:]
                assert below[0] == "files" or ROOT / PACKAGE / f"{below[0]}.py" in travelling, f"{path}: {node.module}"


def test_no_module_has_outgrown_its_room() -> None:
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= 450, f"{path.relative_to(ROOT)} has {lines} lines: perhaps it is two rooms"


def test_importing_the_package_is_light() -> None:
    import subprocess
    import sys

    code = "import modeling_tsarank, modeling_tsarank.cli, sys; modeling_tsarank.cli.build_parser(); "
    code += (
        "heavy = {'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

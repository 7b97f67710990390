"""Which package may import which: dependencies go one way."""

from __future__ import annotations

import ast
import graphlib
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PACKAGE = "modeling_tsarank"
# Each layer may import itself and what stands below it. "flat" are the modules directly in modeling_tsarank.
LAYERS = [
    ["flat"],
    ["files"],
    ["scores"],
    ["engine"],
    ["cache"],
    ["models"],
    ["jobs", "rankers"],
    ["integrations"],
    ["eval"],
    ["trainers"],
    ["hub_cards"],
    ["serving"],
    ["cli"],
]
TOP_LEVEL = ("eval", "trainers", "hub_cards")
# Helpers for the commands of every package; it imports only flat modules and files.
COMMAND_LINE = f"{PACKAGE}.cli.command_line"
ALLOWED: dict[str, set[str]] = {}
for _level, _names in enumerate(LAYERS):
    for _name in _names:
        ALLOWED[_name] = {_name, *(below for lower in LAYERS[:_level] for below in lower)}
ALLOWED["flat"] = {"flat"}  # what travels imports nothing that does not, but for one function:
ASKS_FOR_THE_ENGINE = f"{PACKAGE}.ranking_engine", f"{PACKAGE}.models.installed"
LINES_THAT_TRAVEL = 1929
MODULES = sorted(path for folder in (PACKAGE, *TOP_LEVEL) for path in (ROOT / folder).rglob("*.py"))


def dotted_name(path: Path) -> str:
    """The import name of a file of the checkout."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == PACKAGE else (PACKAGE, *parts))


def layer_of(module: str) -> str | None:
    """The layer of a dotted name of the package, `None` for one of another package or of the package itself."""
    parts = module.split(".")
    if parts[0] != PACKAGE or len(parts) == 1:
        return None
    return parts[1] if parts[1] in ALLOWED else "flat"


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, relative ones and those in strings that look like modules included."""
    package = dotted_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    package = package[:-1] if package[-1] == "__init__" else package
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [*base, *(node.module.split(".") if node.module else [])]
            found |= {".".join([*names, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if parts[0] == PACKAGE and all(part.isidentifier() for part in parts):
                found.add(node.value)
    return found


@pytest.mark.parametrize("layer", sorted(ALLOWED))
def test_dependencies_go_one_way(layer: str) -> None:
    wrong = []
    for path in MODULES:
        if path.parent == ROOT / PACKAGE and path.name == "__init__.py":
            continue  # exports by name, on first use
        if layer_of(dotted_name(path)) != layer:
            continue
        for name in imported(path):
            assert name.split(".")[0] not in TOP_LEVEL, f"{path}: import {PACKAGE}.{name}, not {name}"
            below = layer_of(name)
            if (dotted_name(path), name) == ASKS_FOR_THE_ENGINE:
                continue
            if below is not None and below not in ALLOWED[layer] and not name.startswith(COMMAND_LINE):
                wrong.append(f"{dotted_name(path)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_command_line_helpers_stand_low() -> None:
    found = {layer_of(name) for name in imported(ROOT / PACKAGE / "cli" / "command_line.py")}
    assert found <= {None, "flat", "files"}


def test_no_import_leads_back_to_where_it_began() -> None:
    """Also not by imports inside functions. The package's own `__init__` exports what stands in it, on first use."""
    modules = {dotted_name(path).removesuffix(".__init__"): path for path in MODULES}
    del modules[PACKAGE]
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = imported(path)  # of `from a.b import c`, a.b.c: a module, or a name in the module a.b
        taken = {one if one in modules else one.rpartition(".")[0] for one in found}
        graph[name] = {one for one in taken & modules.keys() if (name, one) != ASKS_FOR_THE_ENGINE} - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


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


@pytest.mark.parametrize("family", ["modeling_tsarank", "modeling_twolar", "modeling_cross_encoder"])
def test_what_travels_can_be_read_before_it_is_trusted(family: str) -> None:
    others = {path for path in (ROOT / PACKAGE).glob("modeling_*.py") if path.stem not in (family, "modeling_ranker")}
    files = travelling_files() - others
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert len(files) <= 10, sorted(path.name for path in files)
    assert lines <= LINES_THAT_TRAVEL, f"{lines} lines travel with a checkpoint of {family}"


def test_no_module_is_too_long() -> None:
    for path in (*MODULES, *(ROOT / "tests").rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 450, f"{path.relative_to(ROOT)} has {lines} lines: perhaps it is two modules"


def test_importing_the_package_is_light() -> None:
    import subprocess
    import sys

    code = "import modeling_tsarank, modeling_tsarank.cli, sys; modeling_tsarank.cli.build_parser(); "
    code += (
        "heavy = {'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_package_is_in_the_distribution() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        listed = set(tomllib.load(file)["tool"]["setuptools"]["packages"])
    found = {dotted_name(path).removesuffix(".__init__") for path in MODULES if path.name == "__init__.py"}
    assert found <= listed

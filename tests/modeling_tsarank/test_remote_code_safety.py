"""The files that travel with a checkpoint: what their syntax trees say they can do."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from tiny_classifiers import save_classifier

from modeling_tsarank import CrossEncoderModel, TSARankModel, TwolarModel


# What a modeling file may import. Nothing here opens a connection or starts a process by itself.
ALLOWED = {
    *(
        "__future__",
        "abc",
        "ast",
        "collections",
        "concurrent",
        "contextlib",
        "contextvars",
        "copy",
        "dataclasses",
        "enum",
        "fnmatch",
        "functools",
    ),
    *("hashlib", "inspect", "io", "itertools", "json", "logging", "math", "os", "pathlib", "pickle", "re", "struct"),
    *("numbers", "sys", "threading", "typing", "warnings", "weakref", "zlib", "unicodedata"),
    *("numpy", "safetensors", "torch", "tqdm", "transformers"),
}
# The one way to the Hub: the user's own `push_to_hub=True`; and the one place that asks for the installed engine.
ALLOWED_INSIDE = {
    ("modeling_ranker.py", "huggingface_hub", "_push_folder"),
    ("ranking_engine.py", "modeling_tsarank", "installed_engine"),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input", "open"}
FORBIDDEN_ATTRIBUTES = {
    "os": {"system", "popen", "exec*", "spawn*", "fork*", "remove", "unlink", "rmdir", "environ", "getenv", "kill"},
    "torch": {"load", "hub"},
    "pickle": {"load", "loads", "Unpickler"},
    "concurrent": {"ProcessPoolExecutor"},
    "multiprocessing": {"*"},
    "importlib": {"*"},
    "shutil": {"*"},
    "subprocess": {"*"},
    "socket": {"*"},
}
# Only what writes or reads the folder that the user named to `save_pretrained` or `from_pretrained`.
FILE_METHODS = {"write_text", "write_bytes", "read_text", "read_bytes", "unlink", "rmdir", "mkdir", "touch", "rename"}
ALLOWED_FILE_METHODS = {
    ("crossencoder_tsarank.py", "read_text", "write_cross_encoder_files"),
    ("crossencoder_tsarank.py", "write_text", "write_cross_encoder_files"),
}


@pytest.fixture(scope="module")
def travelling(zoo: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every Python file of the saved folders of all families."""
    files = {}
    classifier = save_classifier("bert", tmp_path_factory.mktemp("plain"))
    sources = {TSARankModel: zoo.folders["llama"], TwolarModel: zoo.folders["t5"], CrossEncoderModel: classifier}
    for cls, source in sources.items():
        folder = tmp_path_factory.mktemp("saved") / cls.__name__
        cls.from_backbone(str(source)).save_pretrained(folder)
        files.update({path.name: path for path in folder.glob("*.py")})
    return list(files.values())


def complaints(path: Path) -> list[str]:
    """What a file may not do and does."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    owner: dict[ast.AST, str] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            owner.update(dict.fromkeys(ast.walk(function), function.name))
    found = []
    for node in ast.walk(tree):
        place = f"{path.name}:{getattr(node, 'lineno', 0)}"
        modules = _imported(node)
        found += [
            f"{place} imports {module}"
            for module in modules
            if module not in ALLOWED and (path.name, module, owner.get(node, "")) not in ALLOWED_INSIDE
        ]
        if isinstance(node, ast.ImportFrom) and modules:
            found += [
                f"{place} imports {a.name} of {modules[0]}" for a in node.names if _forbidden(modules[0], a.name)
            ]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(f"{place} calls {node.func.id}")
        if isinstance(node, ast.Attribute):
            allowed = (path.name, node.attr, owner.get(node, "")) in ALLOWED_FILE_METHODS
            if isinstance(node.value, ast.Name) and _forbidden(node.value.id, node.attr):
                found.append(f"{place} uses {node.value.id}.{node.attr}")
            elif node.attr in FILE_METHODS and not allowed:
                found.append(f"{place} touches files by {node.attr}")
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [str(node.module).partition(".")[0]]
    return []


def _forbidden(module: str, attribute: str) -> bool:
    patterns = FORBIDDEN_ATTRIBUTES.get(module, set())
    return any(attribute == p or (p.endswith("*") and attribute.startswith(p[:-1])) for p in patterns)


def test_nothing_that_travels_leaves_the_checkpoint(travelling: list[Path]) -> None:
    names = {path.name for path in travelling}
    assert {"modeling_tsarank.py", "modeling_twolar.py", "modeling_cross_encoder.py", "modeling_ranker.py"} <= names
    assert "default_model.py" not in names, "what fetches the embedded default must stay at home"
    assert [line for path in travelling for line in complaints(path)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import socket",
        "from urllib.request import urlopen",
        "import subprocess",
        "def f():\n    import requests",
        "eval('1')",
        "exec('x = 1')",
        "__import__('os')",
        "import os\nos.system('ls')",
        "import os\nos.environ['HF_TOKEN']",
        "open('/etc/passwd')",
        "from pathlib import Path\nPath('/etc/passwd').read_text()",
        "import torch\ntorch.load('x')",
        "from os import system",
        "from pickle import loads",
        "from concurrent.futures import ProcessPoolExecutor",
        "from huggingface_hub import HfApi",
    ],
)
def test_the_walk_sees_what_it_is_for(code: str, tmp_path: Path) -> None:
    path = tmp_path / "modeling_x.py"
    path.write_text(code)
    assert complaints(path)

"""Files are read by the shared readers and written by the one writer; whoever does otherwise says here why."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("modeling_tsarank", "eval", "trainers", "hub_cards")

READERS = {
    *("json.load", "json.loads", "yaml.load", "yaml.safe_load", "csv.reader", "csv.DictReader"),
    *("gzip.open", "gzip.GzipFile", "bz2.open", "lzma.open", "ParquetFile", "parquet.read_table", "read_schema"),
}
OWN_READING = {
    "modeling_tsarank/jobs/bulk_scoring.py": "a tokenizer's own JSON",
    "modeling_tsarank/cache/state_bytes.py": "the bytes have a checksum",
    "modeling_tsarank/engine/checkpoints.py": "travels with checkpoints; the name for an error message",
    "modeling_tsarank/user_text.py": "travels with checkpoints; a tokenizer's own JSON",
    "eval/run_files.py": "one line of a file that the shared reader has opened",
    "trainers/recipes/release_data.py": "what was made into JSON on the line before",
    "hub_cards/secret_scan.py": "text in memory is searched as well as files, and what cannot be read is refused",
}
OWN_WRITING = {
    "modeling_tsarank/jobs/bulk_scoring.py": "into the temporary file of the one writer",
    "modeling_tsarank/jobs/bulk_sorting.py": "files of a folder that goes again with the call",
    "modeling_tsarank/cache/catalog.py": "into the temporary file of the one writer",
    "modeling_tsarank/crossencoder_tsarank.py": "travels with checkpoints; the folder is being saved",
    "modeling_tsarank/models/default_model.py": "a whole folder takes its name; the file is in a temporary folder",
    "trainers/run_lock.py": "a lock",
    "trainers/data/teacher_cache.py": "finds out whether a log can be written, before anything is paid",
}


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def reads(node: ast.Call, name: str) -> bool:
    copies = bool(node.args) and ast.unparse(node.args[0]).startswith("json.dumps(")
    return not copies and any(name == one or name.endswith(f".{one}") for one in READERS)


def writes(node: ast.Call, name: str) -> bool:
    if name in ("os.replace", "os.rename") or name.endswith((".write_text", ".write_bytes", ".rename")):
        return True
    if name.endswith(".replace") and len(node.args) == 1 and not node.keywords:  # a Path's; a string's has two
        return True
    if name != "open" and not name.endswith(".open"):
        return False
    modes = [*node.args[: 2 if name == "open" else 1], *(k.value for k in node.keywords if k.arg == "mode")]
    return any(
        isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+") and len(str(mode.value)) < 4
        for mode in modes
    )


@pytest.mark.parametrize(("does", "allowed"), [(reads, OWN_READING), (writes, OWN_WRITING)], ids=["read", "written"])
def test_files_are_read_and_written_in_one_place(does, allowed):
    found = set()
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("modeling_tsarank/files/"):
            lines = [node.lineno for node, called in calls(path) if does(node, called)]
            assert not lines or name in allowed, f"{name}, line {lines[0]}: use modeling_tsarank.files"
            found |= {name} if lines else set()
    assert found == set(allowed), "no longer needed in this list"


@pytest.mark.parametrize(
    ("sign", "place"),
    [
        (r"metadata\.version\(|import version\b", "versions.py"),
        (r'"kB"|"MB"|kmgt', "sizes.py"),
        (r"XDG_CACHE_HOME\"", "caches.py"),
    ],
)
def test_versions_sizes_and_cache_folders_have_one_place(sign, place):
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if re.search(sign, path.read_text(encoding="utf-8"))
    }
    assert found == {f"modeling_tsarank/files/{place}"}


def test_the_scan_finds_what_it_looks_for():
    code = (
        "json.load(f)\ngzip.open(p)\npq.ParquetFile(p)\nos.replace(a, b)\np.replace(q)\np.open('wb')\nopen(p, 'w')\n"
    )
    nodes = [node.value for node in ast.parse(code + "p.write_text(t)\n").body if isinstance(node, ast.Expr)]
    found = [(reads(node, ast.unparse(node.func)), writes(node, ast.unparse(node.func))) for node in nodes]
    assert found == [(True, False)] * 3 + [(False, True)] * 5
    harmless = ["json.loads(json.dumps(x))", "s.replace('a', 'b')", "open(p)", "p.open('rb')", "f.write(t)"]
    for text in harmless:
        node = ast.parse(text, mode="eval").body
        assert not reads(node, ast.unparse(node.func)), text
        assert not writes(node, ast.unparse(node.func)), text

"""Files are read by the shared readers and written by the one writer; whoever does otherwise says here why."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("modeling_tsarank", "eval", "trainers", "hub_cards", "benchmarks", "app.py", "tsarank.py")

READERS = {
    *("json.load", "json.loads", "yaml.load", "yaml.safe_load", "csv.reader", "csv.DictReader", "pickle.load"),
    *("gzip.open", "gzip.GzipFile", "bz2.open", "lzma.open", "ParquetFile", "parquet.read_table", "read_schema"),
    *("pickle.loads", "torch.load", "np.load", "safe_open", "load_file", "tomllib.load", "pd.read_csv"),
}
WRITERS = {
    *("os.replace", "os.rename", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.move", "os.link"),
    *("json.dump", "pickle.dump", "yaml.dump", "torch.save", "np.save", "np.savez", "save_file", "write_table"),
    *("to_parquet", "to_csv", "to_json", "savefig", "sqlite3.connect", "ParquetWriter", "h5py.File"),
}
OWN_READING = {
    "benchmarks/engine.py": ("loads", "what a process of its own has printed"),
    "benchmarks/serve_load.py": ("loads read_text", "a service's answers; /proc"),
    "benchmarks/results_page.py": (
        "DictReader GzipFile read_bytes read_text safe_load",
        "pages and runs of this repository",
    ),
    "eval/encoders.py": ("load", "an index whose files were checked against their hashes"),
    "eval/run_files.py": ("reader", "one line of a file that the shared reader has opened"),
    "hub_cards/app_style.py": ("read_text", "files of this package"),
    "hub_cards/app_views.py": ("read_text", "a template of this package"),
    "hub_cards/file_selection.py": ("read_bytes", "the bytes that are uploaded"),
    "hub_cards/uploading.py": ("read_bytes", "the bytes that are uploaded"),
    "hub_cards/model_facts.py": ("safe_open", "the headers of weights, which safetensors checks"),
    "hub_cards/secret_scan.py": (
        "GzipFile ParquetFile safe_open",
        "text in memory is searched as well as files, and what cannot be read is refused",
    ),
    "modeling_tsarank/cache/state_bytes.py": ("loads", "the bytes have a checksum"),
    "modeling_tsarank/crossencoder_tsarank.py": (
        "loads read_text",
        "travels with checkpoints; files it has just saved",
    ),
    "modeling_tsarank/jobs/bulk_scoring.py": ("loads", "a tokenizer's own JSON"),
    "modeling_tsarank/jobs/pools.py": ("loads", "from another process of the same job"),
    "modeling_tsarank/models/embedded_models.py": ("load_file read_bytes", "a release whose hashes were checked"),
    "modeling_tsarank/models/sentence_rerankers.py": ("load_file", "weights, as transformers reads them"),
    "modeling_tsarank/user_text.py": ("loads", "travels with checkpoints; a tokenizer's own JSON"),
    "trainers/checkpointing.py": ("load_file", "a checkpoint whose manifest was checked"),
    "trainers/stopping.py": ("read_bytes", "/proc"),
    "trainers/training_record.py": ("read_text", "/proc"),
}
OWN_WRITING = {
    "benchmarks/results_page.py": ("copyfile open", "runs and a page of this repository"),
    "eval/encoders.py": ("save", "into the temporary folder of an index"),
    "eval/plots.py": ("savefig", "into the temporary file of the one writer"),
    "modeling_tsarank/jobs/bulk_scoring.py": ("open write_table", "into the temporary file of the one writer"),
    "modeling_tsarank/cache/shards.py": ("open", "into the temporary file of the one writer"),
    "modeling_tsarank/crossencoder_tsarank.py": ("write_text", "travels with checkpoints; the folder is being saved"),
    "modeling_tsarank/models/default_model.py": (
        "move open rename write_text",
        "a whole folder takes its name; the file is in a temporary folder",
    ),
    "modeling_tsarank/models/embedded_models.py": ("copyfile", "into the temporary file of the one writer"),
    "modeling_tsarank/serving/documents.py": ("connect", "SQLite has its own"),
    "trainers/checkpointing.py": ("save save_file", "into the temporary folder of a checkpoint"),
    "trainers/cpt_trainer.py": ("save", "into the temporary folder of a checkpoint"),
    "trainers/checkpoint_files.py": ("move write_text", "into the temporary file of the one writer; a lock"),
    "trainers/data/list_making.py": ("write_table", "into the temporary file of the one writer"),
    "trainers/data/teacher_cache.py": (
        "open",
        "finds out whether a log can be written, and whether it is one, before anything is paid",
    ),
    "trainers/data/weak_pairs.py": ("write_table", "into the temporary folder of the set"),
    "trainers/release.py": ("save_file", "into the temporary folder of the release"),
}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node, _name(node.func)


def _name(function: ast.expr) -> str:
    """`a.b.c`; what stands before the dots of anything else is left out."""
    if isinstance(function, ast.Attribute):
        return f"{_name(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def is_one_of(name: str, names: set[str]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in names)


def reads(node: ast.Call, name: str) -> bool:
    copies = bool(node.args) and ast.unparse(node.args[0]).startswith("json.dumps(")
    if name.endswith((".read_text", ".read_bytes")):  # a Path's; the shared one is a function
        return True
    return not copies and is_one_of(name, READERS)


def writes(node: ast.Call, name: str) -> bool:
    if is_one_of(name, WRITERS) or name.endswith((".write_text", ".write_bytes", ".rename")):
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


def sources() -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        place = ROOT / folder
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            yield path.relative_to(ROOT).as_posix(), path


@pytest.mark.parametrize(("does", "allowed"), [(reads, OWN_READING), (writes, OWN_WRITING)], ids=["read", "written"])
def test_files_are_read_and_written_in_one_place(does, allowed):
    found: dict[str, set[str]] = {}
    for name, path in sources():
        if name.startswith("modeling_tsarank/files/"):
            continue
        for node, called in calls(path):
            if does(node, called):
                how = called.rpartition(".")[2]
                assert how in allowed.get(name, ("",))[0].split(), (
                    f"{name}, line {node.lineno}: use modeling_tsarank.files"
                )
                found.setdefault(name, set()).add(how)
    assert found == {name: set(how.split()) for name, (how, _) in allowed.items()}, "no longer needed in this list"


def test_modules_that_read_and_write_are_called_by_their_names():
    """`from json import loads` would pass the scan above unseen."""
    modules = {one.rpartition(".")[0] for one in READERS | WRITERS} - {""} | {"io", "pathlib"}
    for name, path in sources():
        for node in nodes(path):
            if isinstance(node, ast.Import):
                assert not [one for one in node.names if one.name in modules and one.asname not in (None, "np")], name
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                taken = {f"{node.module}.{one.name}" for one in node.names}
                assert not taken & (READERS | WRITERS | {"io.open"}), f"{name}, line {node.lineno}: {taken}"


@pytest.mark.parametrize(
    ("sign", "place"),
    [
        (r"metadata\.version\(|import version\b", "versions.py"),
        (r'"kB"|"MB"|kmgt', "sizes.py"),
        (r"XDG_CACHE_HOME\"", "caches.py"),
    ],
)
def test_versions_sizes_and_cache_folders_have_one_place(sign, place):
    found = {name for name, path in sources() if re.search(sign, path.read_text(encoding="utf-8"))}
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

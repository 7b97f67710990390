"""Files appear whole or not at all, and optional packages name their extra."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling_tsarank.eval.extras import require
from modeling_tsarank.eval.file_access import atomic_text, read_jsonl
from modeling_tsarank.ranking_errors import InputError, ResourceError


def write_half(path: Path) -> None:
    with atomic_text(path) as file:
        file.write("half of the sec")
        raise KeyboardInterrupt


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_text(path) as file:
        file.write("first")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "first"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_a_written_file_is_as_readable_as_any_other(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    with atomic_text(tmp_path / "atomic") as file:
        file.write("x")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_json_lines_have_their_number_in_complaints(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    lines = read_jsonl(path)
    assert next(lines) == (f"{path}, line 1", {"a": 1})
    with pytest.raises(InputError, match=r"lines.jsonl, line 3: not JSON"):
        next(lines)


def test_a_missing_package_names_its_extra():
    with pytest.raises(ResourceError, match=r"^BM25 needs .*'no_such_package'.* pip install 'tsarank\[eval\]'$"):
        require("no_such_package", extra="eval", purpose="BM25")
    with pytest.raises(ResourceError, match=r"tsarank\[dense\]"):
        require("no_such_package.part", extra="dense")


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import its_own_missing_requirement\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_own_missing_requirement"):
        require("broken_package")


def test_reading_the_modules_needs_no_extra():
    """`--help` and `import` must work, and be quick, without bm25s, datasets, SciPy or torch."""
    import subprocess
    import sys

    heavy = ["bm25s", "datasets", "evaluate", "ir_datasets", "pytrec_eval", "scipy", "sentence_transformers", "torch"]
    modules = ["bm25", "collections", "dense", "first_stages", "index_cache", "metrics", "run_files", "splade"]
    script = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in [*heavy, "transformers"])
    script += "".join(f"import modeling_tsarank.eval.{name}\n" for name in modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Optional packages name their extra."""

from __future__ import annotations

import pytest

from modeling_tsarank.files.extras import require
from modeling_tsarank.ranking_errors import ResourceError


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
    modules = ["bm25", "collections", "encoders", "first_stages", "index_cache", "metrics", "run_files"]
    script = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in [*heavy, "transformers"])
    script += "".join(f"import modeling_tsarank.eval.{name}\n" for name in modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

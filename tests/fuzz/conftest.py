"""The tiny model of the evaluation's tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path


_spec = importlib.util.spec_from_file_location(
    "eval_conftest", Path(__file__).resolve().parent.parent / "eval" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_eval = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_eval)
tiny_llama = _eval.tiny_llama
write_collection = _eval.write_collection

"""Modules that have moved: importing an old name returns the new module, with a warning.

The old names will be removed in the next release.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType


PACKAGE = __name__.partition(".")[0]
MOVED = {
    "batch_invariance": "engine.batch_invariance",
    "bulk_pairs": "jobs.bulk_pairs",
    "bulk_scoring": "jobs.bulk_scoring",
    "command_line": "cli.command_line",
    "default_model": "models.default_model",
    "document_catalog": "cache.shards",
    "document_encoding": "cache.state_bytes",
    "document_files": "cache.state_files",
    "document_memory": "cache.memory_store",
    "document_store": "cache.folder_store",
    "embedded_models": "models.embedded_models",
    "file_hashes": "files.hashes",
    "index_command": "cli.index",
    "int8_weights": "engine.int8_weights",
    "loading": "models.loading",
    "rank_command": "cli.rank",
    "score_command": "cli.score",
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds old names; last on `sys.meta_path`, so that it is only used for modules that no other finder has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return importlib.machinery.ModuleSpec(fullname, self) if package == PACKAGE and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = f"{PACKAGE}.{MOVED[module.__name__.partition('.')[2]]}"
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(new)

"""What the cases of the fuzz share: valid files, parsers, a server that mostly answers wrongly."""

from __future__ import annotations

import functools
import gc
import importlib.util
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import OddServer
from fuzz_commands import leaf_parsers
from fuzz_files import valid_files

from modeling_tsarank import cli


_spec = importlib.util.spec_from_file_location(
    "eval_conftest", Path(__file__).resolve().parent.parent / "eval" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_eval = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_eval)
tiny_llama = _eval.tiny_llama
write_collection = _eval.write_collection


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), OddServer)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """Neither the Hub nor a package index is asked; trainings run in this process."""
    import datasets
    import huggingface_hub.constants

    from modeling_tsarank.trainers import commands, cpt, distill, sft
    from modeling_tsarank.trainers.script_utils import run_script

    scripts = {script.__name__: script for script in (cpt, distill, sft)}

    def launch(options: list[str], processes: int | None, module: str, script_options: Any, *_: Any) -> int:
        return run_script(scripts[module].main, script_options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(commands, "_launch", launch)
        datasets.disable_progress_bars()
        for name, value in {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}.items():
            patch.setenv(name, value)
        patch.delenv("TSARANK_DEBUG", raising=False)
        # Every case builds the same parser, which takes as long as most cases' whole rest.
        patch.setattr(cli, "build_parser", functools.cache(cli.build_parser))
        yield


@pytest.fixture(scope="module")
def valid(offline: None, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz") / "valid"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSARANK_CACHE", str(folder.parent / "cache"))
        valid_files(folder, tiny_llama, write_collection, cli.main)
        # A training collects garbage when it ends: that is quick where what lives on is not looked through.
        gc.collect()
        gc.freeze()
        yield folder
        gc.unfreeze()


@pytest.fixture(scope="module")
def parsers() -> dict[str, Any]:
    found = dict(leaf_parsers(cli.build_parser()))
    from modeling_tsarank.trainers.commands import launcher_parser

    return {
        words: launcher_parser(words.split()[1]) if words.startswith("train ") else p
        for words, p in found.items()
        if p.prog.endswith(f" {words}")  # and not by another name
    }


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    async def ends_at_once(_: Any, sockets: Any = None) -> None:
        """Everything of a service but the waiting for requests."""

    monkeypatch.setattr("uvicorn.Server.main_loop", ends_at_once)

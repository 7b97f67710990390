"""Calls in processes of their own, as torchrun numbers them: forked, so that nothing is imported again."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any


FORK = multiprocessing.get_context("fork")


def start(count: int, call: Callable[[int], Any]) -> list[BaseProcess]:
    """Starts `call` with the number of its process in each; of several, they find each other by the environment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]

    def run(rank: int) -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        _renew_threads()
        call(rank)

    processes: list[BaseProcess] = [FORK.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes


def join(processes: list[BaseProcess], seconds: float = 120) -> None:
    """Waits for their ends and checks that each ended well."""
    for process in processes:
        process.join(seconds)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * len(codes)


def together(count: int, call: Callable[[], Any], folder: Path) -> list[Any]:
    """What `call` returned or raised in each process."""

    def run(rank: int) -> None:
        try:
            outcome: Any = call()
        except BaseException as error:
            outcome = error
        (folder / f"outcome{rank}").write_bytes(pickle.dumps(outcome))

    join(start(count, run))
    return [pickle.loads((folder / f"outcome{rank}").read_bytes()) for rank in range(count)]


def begin(
    call: Callable[[], int | None],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    streams: Sequence[IO[bytes]] = (),
) -> BaseProcess:
    """Starts `call` with its own environment, working folder and standard streams, as `subprocess.Popen` a program."""

    def whole() -> None:
        for number, file in enumerate(streams):
            os.dup2(file.fileno(), number)
        if streams:
            sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), ["r", "w", "w"])
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
            _read_environment_again()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else tokenizers warns of the fork
        os.chdir(folder or Path.cwd())
        _renew_threads()
        sys.exit(call())

    process = FORK.Process(target=whole)
    process.start()
    return process


def run(
    call: Callable[[], int | None],
    environment: Mapping[str, str],
    folder: Path | None = None,
    stdin: bytes = b"",
    seconds: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Runs `call` to its end and returns its status and what it wrote, as `subprocess.run` of a program."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = begin(call, environment, folder, [given, out, err])
        process.join(seconds)
        status = process.exitcode
        process.kill()
        assert status is not None, "the process did not end"
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess([], status, *texts)


def _renew_threads() -> None:
    """Makes torch's pool of threads anew, which a fork leaves without threads, and the lock of progress bars.

    Torch does so at the first use, but not safely: of several threads that load weights and all come first, one may
    find none ("Invalid thread pool!") or wait forever. Seen after tests that use several threads. tqdm's lock is
    shared by all forked processes: one that is killed while it draws a bar would leave it locked in the others.
    """
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.set_lock(threading.RLock())
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(torch.get_num_threads())


def _read_environment_again() -> None:
    """What these packages took from the environment when they were imported."""
    for name in ("huggingface_hub.constants", "datasets.config", "evaluate.config"):
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    if "huggingface_hub.hf_api" in sys.modules:
        sys.modules["huggingface_hub.hf_api"].api.endpoint = sys.modules["huggingface_hub.constants"].ENDPOINT
    # Code that was loaded with a model or a metric is loaded again, from the environment's own folder.
    loaded = ("transformers_modules", "evaluate_modules", "datasets_modules")
    for name in [name for name in sys.modules if name.partition(".")[0] in loaded]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not any(Path(path, name).is_dir() for name in loaded)]
    importlib.invalidate_caches()
    folder = os.environ.get("HF_MODULES_CACHE")
    for name in ("transformers.utils.hub", "transformers.utils", "transformers.dynamic_module_utils"):
        if folder and name in sys.modules:
            sys.modules[name].HF_MODULES_CACHE = folder

"""Fixtures for all rooms."""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import re
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings


# No test is timed: a machine that is busy for a moment would fail it.
settings.register_profile("tsarank", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tsarank")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real test collections, named by the environment variable TSARANK_DATA."""
    value = os.environ.get("TSARANK_DATA")
    if not value:
        pytest.skip("TSARANK_DATA is not set: tests on real data need its folder")
    folder = Path(value).resolve()
    if not folder.is_dir():
        pytest.skip(f"TSARANK_DATA is {value}, which is no folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models run fastest on one thread; several would only wait for each other."""
    import torch

    torch.set_num_threads(int(os.environ.get("TSARANK_TEST_THREADS", "1")))


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> None:
    """Every training collects garbage when it ends: that is quick where what lives on is not looked through."""
    gc.collect()
    gc.freeze()


def _log_levels() -> dict[str | None, int]:
    loggers = logging.root.manager.loggerDict.items()
    return {None: logging.root.level} | {name: x.level for name, x in loggers if isinstance(x, logging.Logger)}


@pytest.fixture(autouse=True)
def _log_levels_as_before() -> Iterator[None]:
    """A command run in this process sets the log levels of the process; the next test finds the former ones."""
    before = _log_levels()
    yield
    for name, level in _log_levels().items():
        if level != before.get(name, level):
            logging.getLogger(name).setLevel(before[name])


@pytest.fixture(scope="session")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with torch, transformers and what they require, and nothing else.

    The packages are the tested ones, linked rather than installed again.
    """
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    target = next((folder / "lib").glob("python*")) / "site-packages"
    wanted, seen = ["torch", "transformers"], set()
    while wanted:
        name = wanted.pop()
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # not needed on this platform
        if package.name in seen:
            continue
        seen.add(package.name)
        for file in package.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (target / top).exists():
                (target / top).symlink_to(Path(str(package.locate_file(top))).resolve())
        wanted += [re.split(r"[^\w.-]", line)[0] for line in package.requires or () if "extra ==" not in line]
    assert {"torch", "transformers"} <= seen
    assert not {"tsarank", "peft", "datasets", "sentence-transformers"} & seen
    return folder / "bin" / "python"

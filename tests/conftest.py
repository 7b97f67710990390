"""Fixtures for all rooms."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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

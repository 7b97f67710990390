"""One rule says where caches are, whatever is cached."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeling_tsarank.eval.index_cache import cached_index
from modeling_tsarank.files.caches import cache_root
from modeling_tsarank.models.embedded_models import releases
from modeling_tsarank.ranking_errors import ResourceError


@pytest.fixture(autouse=True)
def no_cache_variables(monkeypatch):
    for name in ("TSARANK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_root() == Path.home() / ".cache" / "tsarank"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "tsarank"
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
    assert cache_root("~/other") == Path.home() / "other"


@pytest.mark.parametrize("value", ["", "relative/folder"])
def test_an_empty_or_relative_xdg_cache_home_is_ignored(monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_root() == Path.home() / ".cache" / "tsarank"


def test_indexes_and_models_are_under_xdg_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = cached_index(
        "bm25", {"made": "here"}, lambda folder: (folder / "x").touch(), lambda folder: folder.resolve()
    )
    assert found.is_relative_to(tmp_path / "tsarank")
    for release in releases().values():
        assert release.cached_folder.is_relative_to(tmp_path / "tsarank")


def test_no_home_folder_is_one_line(monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ResourceError, match="set TSARANK_CACHE"):
        cache_root()

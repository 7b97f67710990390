"""Cached indexes: found by what they were made from, whole or rebuilt."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from modeling_tsarank.eval.index_cache import cached_index, content_hash
from modeling_tsarank.models.fingerprints import model_fingerprint
from modeling_tsarank.ranking_errors import InputError, ResourceError


class Builder:
    """Builds and loads a little index, and counts."""

    def __init__(self, value: str = "index") -> None:
        self.value = value
        self.builds = 0

    def build(self, folder: Path) -> None:
        self.builds += 1
        (folder / "part").mkdir()
        (folder / "part" / "data.json").write_text(json.dumps([self.value]))

    def load(self, folder: Path) -> str:
        return json.loads((folder / "part" / "data.json").read_text())[0]

    def get(self, cache: Path, **made_from) -> str:
        return cached_index("kind", {"p": 1, **made_from}, self.build, self.load, cache)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "indexes").iterdir() if path.suffix != ".lock")


def test_the_second_time_nothing_is_built(tmp_path):
    builder = Builder()
    assert builder.get(tmp_path) == builder.get(tmp_path) == "index"
    assert builder.builds == 1
    (entry,) = entries(tmp_path)
    assert entry.name.startswith("kind-")


def test_every_ingredient_is_part_of_the_key(tmp_path):
    builder = Builder()
    for made_from in ({}, {"p": 2}, {"version": "1"}, {"version": "2"}):
        builder.get(tmp_path, **made_from)
    assert builder.builds == len(entries(tmp_path)) == 4


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "no manifest", "torn manifest", "other key"])
def test_damaged_entries_are_rebuilt_with_a_warning(tmp_path, caplog, damage):
    builder = Builder()
    builder.get(tmp_path)
    (entry,) = entries(tmp_path)
    data, manifest = entry / "part" / "data.json", entry / "manifest.json"
    if damage == "truncated":
        data.write_text('["ind')
    elif damage == "changed":
        data.write_text('["wrong"]')
    elif damage == "missing":
        data.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        manifest.write_text(manifest.read_text().replace('"p": 1', '"p": 7'))
    with caplog.at_level(logging.WARNING):
        assert builder.get(tmp_path) == "index"
    assert "is incomplete" in caplog.text
    assert builder.builds == 2
    caplog.clear()
    assert builder.get(tmp_path) == "index"
    assert builder.builds == 2
    assert not caplog.text
    assert entries(tmp_path) == [entry]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_index("kind", {}, fail, str, tmp_path)
    assert entries(tmp_path) == []


def build_until_killed(cache: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)

    cached_index("kind", {"p": 1}, build, str, cache)


def test_a_killed_build_neither_blocks_nor_litters(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=build_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (leftover,) = entries(tmp_path)
    assert leftover.name.endswith(".partial")
    assert Builder().get(tmp_path) == "index"
    (entry,) = entries(tmp_path)
    assert entry.name.startswith("kind-")


def build_slowly(cache: Path) -> str:
    builder = Builder()

    def build(folder: Path) -> None:
        time.sleep(0.2)
        builder.build(folder)

    return cached_index("kind", {"p": 1}, build, builder.load, cache)


def test_processes_that_build_at_once_agree(tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(build_slowly, [tmp_path] * 4, chunksize=1) == ["index"] * 4
    assert len(entries(tmp_path)) == 1


def test_a_cache_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot be written .* set TSARANK_CACHE to another folder"):
        Builder().get(tmp_path / "file")


def test_content_hash_sees_ids_texts_borders_and_order():
    hashes = {
        content_hash(["a", "b"], ["x", "y"]),
        content_hash(["b", "a"], ["y", "x"]),
        content_hash(["a", "b"], ["y", "x"]),
        content_hash(["a", "bx"], ["x", "y"]),
        content_hash(["ax", "b"], ["", "y"]),
    }
    assert len(hashes) == 5
    assert content_hash(["a"], ["\ud800"]) == content_hash(["a"], ["\ud800"])


@pytest.mark.parametrize(("ids", "texts"), [([], []), (["a"], []), (["a", "a"], ["x", "y"])])
def test_content_must_be_documents_with_unique_ids(ids, texts):
    with pytest.raises(InputError, match="an index needs"):
        content_hash(ids, texts)


def test_model_fingerprints_change_with_the_files(tmp_path):
    assert model_fingerprint("org/model", "c0ffee") == {"model": "org/model", "commit": "c0ffee"}
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = model_fingerprint(str(tmp_path))
    assert model_fingerprint(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert model_fingerprint(str(tmp_path)) != before

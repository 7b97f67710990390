"""Stores of document states: right scores or none, whatever happens to their files."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from forked import begin, join, start
from safetensors import safe_open

from modeling_tsarank import TSARankModel
from modeling_tsarank.cache import folder_store
from modeling_tsarank.cache.folder_store import FolderStore, MemoryStore
from modeling_tsarank.engine.state_blocks import Layers
from modeling_tsarank.ranking_errors import InputError, ResourceError


def states(seed: int, tokens: int = 10) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 2, tokens, 8, generator=generator),) * 2 for _ in range(3)]


def equal(first: Layers | None, second: Layers) -> bool:
    return first is not None and all(
        torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)
    )


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


# ---- damage --------------------------------------------------------------------------------------------


@pytest.fixture
def filled(zoo, pairs, tmp_path):
    """A model, its scores without a store, and a folder with the states of all documents in several files."""
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    expected = model.predict(pairs)
    with FolderStore(tmp_path / "store", "float32", shard_bytes=8192) as store:
        model.index([document for _, document in pairs], store)
    model.document_store = None
    assert len(files_of(tmp_path / "store")) > 2
    return model, expected, tmp_path / "store"


def damage_flip(folder: Path) -> None:
    for path in files_of(folder):
        data = bytearray(path.read_bytes())
        for place in range(len(data) // 2, len(data), 97):
            data[place] ^= 4
        path.write_bytes(data)


def damage_cut(folder: Path) -> None:
    for path in files_of(folder):
        os.truncate(path, path.stat().st_size // 2)


def damage_delete(folder: Path) -> None:
    files_of(folder)[1].unlink()


def damage_empty(folder: Path) -> None:
    for path in files_of(folder):
        path.write_bytes(b"")


def damage_swap(folder: Path) -> None:
    first, second = files_of(folder)[-2:]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def damage_headers(folder: Path) -> None:
    for path in files_of(folder):
        data = path.read_bytes()
        path.write_bytes(data[:8] + data[8:300].replace(b"0,", b"1,") + data[300:])


def damage_names(folder: Path) -> None:
    for number, path in enumerate(files_of(folder)):
        path.rename(folder / f"{number}.safetensors")


DAMAGES = [
    damage_flip, damage_cut, damage_delete, damage_empty, damage_swap, damage_headers, damage_names
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.removeprefix("damage_"))
def test_damage_never_changes_a_score(filled, pairs, damage) -> None:
    model, expected, folder = filled
    damage(folder)
    with FolderStore(folder, "float32") as store:
        model.document_store = store
        np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
    # What was damaged has been computed and kept again.
    with FolderStore(folder, read_only=True) as store:
        model.document_store = store
        before = model.last_stats["tokens"]
        np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
        queries = sum(len(model.encoder.queries([query])[0]) for query, _ in pairs)
        assert model.last_stats["tokens"] <= queries <= before


def test_the_states_of_another_document_are_never_taken_for_this_ones(zoo, tmp_path) -> None:
    """Whole and of the right size, but under each other's key."""
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    pairs = [("bees", "bread rises"), ("bees", "rises bread")]
    expected = model.predict(pairs)
    assert abs(expected[0] - expected[1]) > 1e-4
    with FolderStore(tmp_path / "s", "float32") as store:
        model.index([document for _, document in pairs], store)
        first, second = store._entries
    *_, path = files_of(tmp_path / "s")  # the first says the format alone
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    names = data[:header].replace(first.encode(), b"-").replace(second.encode(), first.encode())
    path.write_bytes(names.replace(b'"-"', f'"{second}"'.encode()) + data[header:])
    with FolderStore(tmp_path / "s", read_only=True) as store:
        model.document_store = store
        np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
    model.document_store = None


@pytest.mark.parametrize("damage", [damage_flip, damage_cut, damage_delete])
def test_damage_behind_the_back_of_an_open_store(filled, pairs, damage) -> None:
    model, expected, folder = filled
    with FolderStore(folder, max_memory_bytes=0) as store:
        model.document_store = store
        model.predict(pairs)
        damage(folder)
        np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)


def test_verify_finds_what_is_damaged(filled, caplog) -> None:
    _, _, folder = filled
    with FolderStore(folder) as store:
        total = len(store)
        assert store.verify() == (total, 0)
        path = files_of(folder)[-1]
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert store.verify() == (total - 1, 1)
        assert len(store) == total - 1
    assert "damaged" in caplog.text


def test_another_models_states_are_never_used(zoo, filled, pairs) -> None:
    model, expected, folder = filled
    other = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    with torch.no_grad():
        other.backbone.model.layers[0].self_attn.v_proj.weight[3, 5] += 0.5
    wanted = other.predict(pairs)
    assert np.abs(wanted - expected).max() > 1e-4
    with FolderStore(folder) as store:
        other.document_store = model.document_store = store
        np.testing.assert_allclose(other.predict(pairs), wanted, atol=1e-5)
        np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)


def test_an_unfinished_file_is_cleared_away(filled) -> None:
    _, _, folder = filled
    leftover = folder / ".states-0000.safetensors.partial"
    leftover.write_bytes(b"half")
    FolderStore(folder).close()
    assert not leftover.exists()


def test_an_open_store_finds_what_another_wrote_and_misses_what_it_deleted(tmp_path, caplog) -> None:
    with FolderStore(tmp_path / "s", "float32", max_memory_bytes=0) as store, FolderStore(tmp_path / "s") as other:
        assert store.get("a-1") is None
        other.put("a-1", states(1))
        other.flush()
        assert equal(store.get("a-1"), states(1))
        assert (len(store), store.missing(["a-1"])) == (1, [])
        for path in files_of(tmp_path / "s"):
            path.unlink()
        assert store.get("a-1") is None
        assert store.disk_bytes() == 0
    assert not caplog.records


def test_of_two_entries_of_one_document_the_later_counts(tmp_path) -> None:
    for seed in (1, 2):
        with FolderStore(tmp_path / str(seed), "float32") as store:
            store.put("a", states(seed))
    for path in files_of(tmp_path / "1"):
        shutil.copy(path, tmp_path / "2")
    assert equal(FolderStore(tmp_path / "2", read_only=True).get("a"), states(2))


def test_a_file_of_another_format_is_left_out(tmp_path, caplog) -> None:
    for name, dtype, count in (("s", "float32", 3), ("other", "int8", 1)):
        with FolderStore(tmp_path / name, dtype, shard_bytes=1) as store:
            for seed in range(count):
                store.put(f"{name}-{seed}", states(seed))
    shutil.copy(files_of(tmp_path / "other")[-1], tmp_path / "s" / "aaa.safetensors")
    with FolderStore(tmp_path / "s") as store:
        assert (store.dtype, len(store)) == ("float32", 3)
        assert store.get("other-0") is None
    with FolderStore(tmp_path / "s", max_disk_bytes=1) as store:
        store.put("s-3", states(3))
    assert "another format" in caplog.text
    assert (tmp_path / "s" / "aaa.safetensors").exists()


@pytest.mark.parametrize("name", [".lock", "aaaa.safetensors"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_folder_in_the_place_of_a_file_is_named(filled, name, read_only) -> None:
    _, _, folder = filled
    (folder / name).unlink(missing_ok=True)
    (folder / name / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{name} is a folder, expected a file; delete it"):
        FolderStore(folder, read_only=read_only)


# ---- folder and format ---------------------------------------------------------------------------------


def test_files_are_plain_safetensors(tmp_path) -> None:
    with FolderStore(tmp_path / "s", "int8") as store:
        store.put("a-1", states(1))
        store.put("a-2", states(2))
    *_, path = files_of(tmp_path / "s")  # the first says the format alone
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["a-1", "a-2"]
        assert file.get_tensor("a-1").dtype == torch.uint8
        assert file.metadata()["dtype"] == "int8"


def test_a_store_keeps_one_format_and_a_folder_of_its_own(tmp_path) -> None:
    FolderStore(tmp_path / "s", "bf16").close()
    assert FolderStore(tmp_path / "s").dtype == "bfloat16"
    with pytest.raises(InputError, match="has the format bfloat16, not int8"):
        FolderStore(tmp_path / "s", "int8")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        FolderStore(tmp_path / "file")
    with pytest.raises(InputError, match="has other files"):
        FolderStore(tmp_path)
    with pytest.raises(InputError, match="is not a store"):
        FolderStore(tmp_path / "nowhere", read_only=True)
    with pytest.raises(InputError, match="max_disk_bytes must be a"):
        FolderStore(tmp_path / "t", max_disk_bytes=0)


def test_a_read_only_store_changes_nothing(tmp_path) -> None:
    with FolderStore(tmp_path / "s", "float32") as store:
        store.put("a-1", states(1))
    before = {path: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with FolderStore(tmp_path / "s", read_only=True) as store:
        store.put("a-2", states(2))
        assert equal(store.get("a-1"), states(1))
        assert store.get("a-2") is None
        assert store.missing(["a-1", "a-2"]) == ["a-2"]
    assert {path: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


# ---- bounds --------------------------------------------------------------------------------------------


def test_the_disk_bound_holds_and_what_is_used_stays(tmp_path) -> None:
    bound = 200_000
    with FolderStore(tmp_path / "s", "float32", max_disk_bytes=bound, max_memory_bytes=0) as store:
        store.put("a-first", states(0))
        store.flush()
        for seed in range(1, 200):
            store.put(f"a-{seed}", states(seed))
            if seed % 3 == 0:
                assert equal(store.get("a-first"), states(0))
                store.flush()
            assert sum(path.stat().st_size for path in files_of(tmp_path / "s")) <= bound
        store.flush()
        assert equal(store.get("a-first"), states(0))
        assert equal(store.get("a-199"), states(199))
        assert store.get("a-1") is None
        assert 5 < len(store) < 199
        assert store.disk_bytes() == sum(path.stat().st_size for path in files_of(tmp_path / "s"))
    # A lower bound holds at once, and the format stays.
    with FolderStore(tmp_path / "s", max_disk_bytes=bound // 4) as store:
        assert store.dtype == "float32"
        assert 0 < store.disk_bytes() <= bound // 4


@pytest.mark.parametrize("dtype", [None, "float32", "int8"])
def test_memory_is_bounded_and_the_least_used_leaves_first(dtype) -> None:
    store = MemoryStore(max_bytes=20_000, dtype=dtype)
    for seed in range(50):
        store.put(f"a-{seed}", states(seed))
        assert store.get("a-0") is not None
        assert store.bytes <= 20_000
    assert "a-49" in store
    assert "a-1" not in store
    assert len(store) < 50
    kept = store.get("a-0")
    assert kept is not None
    assert torch.allclose(kept[1][1], states(0)[1][1], atol=0.02)
    assert store.get("a-0", dtype=torch.bfloat16)[0][0].dtype == torch.bfloat16


def test_a_memory_store_does_not_hold_the_batch_its_states_came_from() -> None:
    batch = torch.randn(8, 2, 10, 4)
    store = MemoryStore()
    store.put("a", [(batch[1:2], batch[2:3])])
    batch.zero_()
    assert store.get("a")[0][0].abs().sum() > 0
    assert store.bytes == 2 * 2 * 10 * 4 * 4


# ---- several processes, full disks ---------------------------------------------------------------------


def write(folder: Path, seeds: range) -> None:
    with FolderStore(folder, "float32", shard_bytes=30_000) as store:
        for seed in seeds:
            store.put(f"a-{seed}", states(seed))
            if seed % 7 == 0:
                store.get(f"a-{seed - 3}")


def test_two_processes_write_into_one_store(tmp_path) -> None:
    join(start(2, lambda rank: write(tmp_path / "s", range(100 * rank, 150 + 100 * rank))))
    with FolderStore(tmp_path / "s") as store:
        assert store.verify() == (250, 0)
        for seed in (0, 100, 149, 150, 249):
            assert equal(store.get(f"a-{seed}"), states(seed))


def test_a_store_that_another_process_holds_is_named(tmp_path, monkeypatch) -> None:
    write(tmp_path / "s", range(1))
    monkeypatch.setattr(folder_store, "_LOCK_SECONDS", 0.2)
    (tmp_path / "held").touch()

    def hold() -> None:
        with FileLock(tmp_path / "s" / ".lock"):
            (tmp_path / "held").unlink()
            time.sleep(60)

    with FolderStore(tmp_path / "s") as store:
        process = begin(hold)
        while (tmp_path / "held").exists() and process.is_alive():
            time.sleep(0.01)
        try:
            store.put("a-1", states(1))
            with pytest.raises(ResourceError, match="another process has locked the store "):
                store.flush()
        finally:
            process.kill()
            process.join()
        store.put("a-2", states(2))
    with FolderStore(tmp_path / "s") as store:
        assert equal(store.get("a-2"), states(2))


def test_a_writer_that_is_killed_leaves_whole_entries_only(tmp_path) -> None:
    process = begin(lambda: write(tmp_path / "s", range(100_000)))
    try:
        while len(files_of(tmp_path / "s")) < 5 and process.is_alive():
            pass
    finally:
        process.kill()
        process.join()
    with FolderStore(tmp_path / "s") as store:
        whole, damaged = store.verify()
        assert whole >= 8
        assert damaged == 0
        assert equal(store.get("a-3"), states(3))
        store.put("a-new", states(1))
    assert list((tmp_path / "s").glob("*.partial")) == []


def test_a_full_disk_is_one_clear_error_and_loses_nothing_that_was_written(small_disk) -> None:
    with FolderStore(small_disk / "s", "float32", shard_bytes=100_000) as store:

        def fill() -> None:
            for seed in range(1000):
                store.put(f"a-{seed}", states(seed))

        with pytest.raises(ResourceError, match="the disk is full: "):
            fill()
        written = len(store)
        assert written > 50
        assert equal(store.get("a-0"), states(0))
    assert list((small_disk / "s").glob("*.partial")) == []
    with FolderStore(small_disk / "s") as store:
        assert store.verify() == (written, 0)


@pytest.mark.parametrize("shard_bytes", [64 << 20, 1])  # written at the end of the call, and document by document
def test_a_full_disk_keeps_nothing_and_ranking_goes_on(zoo, pairs, small_disk, shard_bytes, caplog) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    expected = model.predict(pairs)
    model.document_store = FolderStore(small_disk / "s", "float32", shard_bytes=shard_bytes)
    (small_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 4096))
    np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
    assert "the disk is full" in caplog.text
    with pytest.raises(ResourceError, match="the disk is full"):
        model.index([document for _, document in pairs], model.document_store)
    (small_disk / "filler").unlink()
    np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)


def test_states_reach_their_targets_whatever_the_disk_does(tmp_path) -> None:
    """Ranking goes on after an error of `put`, so that its scores must not lack them."""
    store = FolderStore(tmp_path / "s", "float32")
    shutil.rmtree(tmp_path / "s")
    target = [(torch.zeros(3, 2, 10, 8), torch.zeros(3, 2, 10, 8))]
    with pytest.raises(ResourceError, match="No such file"):
        store.put("a", states(1), [target])
    assert torch.equal(target[0][0], torch.cat([keys for keys, _ in states(1)]))

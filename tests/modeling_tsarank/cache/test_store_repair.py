"""Damaged files of a store never give wrong states and never stop it; what is lost is computed and kept anew."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import join, start

from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.engine.state_blocks import Layers
from modeling_tsarank.ranking_errors import InputError, ResourceError


COUNT = 150
PAGE = 1024


def key(seed: int) -> str:
    return f"{'m' * 32}-{seed:032d}"


def states(seed: int) -> Layers:
    return [(torch.full((1, 1, 2, 4), float(seed)), torch.full((1, 1, 2, 4), -float(seed)))]


def right(store: FolderStore, seed: int) -> bool | None:
    """Whether the store gives the right states; `None` where it gives none."""
    found = store.get(key(seed))
    return None if found is None else torch.equal(found[0][0], states(seed)[0][0])


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    with FolderStore(folder, "float32", shard_bytes=12_000) as store:
        for seed in range(COUNT):
            store.put(key(seed), states(seed))
    assert len(shards(folder)) > 3
    assert shards(folder)[1].stat().st_size > 8 * PAGE
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def page(number: int, content: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def run(shard: Path) -> None:
        data = bytearray(shard.read_bytes())
        place = slice(PAGE * number, PAGE * (number + 1))
        data[place] = content(bytes(data[place]))
        shard.write_bytes(data)

    return run


def header(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Changes a shard's header to one of the same length."""

    def run(shard: Path) -> None:
        data = shard.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        changed = change(data[8:end])
        assert changed != data[8:end]
        shard.write_bytes(data[:8] + changed[: end - 8].ljust(end - 8) + data[end:])

    return run


def swap_pages(shard: Path) -> None:
    data = shard.read_bytes()
    pages = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
    shard.write_bytes(b"".join([pages[0], *pages[:0:-1]]))


def swap_files(shard: Path) -> None:
    other = shards(shard.parent)[-1]
    data = shard.read_bytes()
    shard.write_bytes(other.read_bytes())
    other.write_bytes(data)


def another_stores(shard: Path) -> None:
    with FolderStore(shard.parent.parent / "other", "int8") as store:
        store.put(key(1), states(7))
    shutil.copy(shards(shard.parent.parent / "other")[-1], shard)


def exchange_keys(text: bytes) -> bytes:
    first, second = (found.encode() for found in (key(5), key(6)))
    return text.replace(first, b"\0").replace(second, first).replace(b"\0", second)


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{f"page {n} random": page(n, lambda data: random.Random(1).randbytes(len(data))) for n in range(8)},
    **{f"page {n} zero": page(n, lambda data: bytes(len(data))) for n in (0, 1, 5)},
    **{f"page {n} half": page(n, lambda data: data[:512] + bytes(len(data) - 512)) for n in range(8)},
    **{f"cut to {size}": lambda shard, size=size: os.truncate(shard, size) for size in (0, 1, 7, 8, 99, 4096, 9000)},
    "pages swapped": swap_pages,
    "files swapped": swap_files,
    "gone": Path.unlink,
    "text": lambda shard: shard.write_text("no states\n" * 2000),
    "a list": header(lambda text: b"[" + text + b"]"),
    "no format": header(lambda text: text.replace(b"tsarank document states 1", b"tsarank document states 9")),
    "an unknown dtype": header(lambda text: text.replace(b"float32", b"float99")),
    "another dtype": header(lambda text: text.replace(b'"float32"', b'"int8"   ')),
    "a dtype that is a number": header(lambda text: text.replace(b'"float32"', b"123456789")),
    "places that are text": header(lambda text: text.replace(b"data_offsets\":[0,", b"data_offsets\":\"a,")),
    "negative places": header(lambda text: text.replace(b"[0,", b"[-9,")),
    "places far out": header(lambda text: text.replace(b"[0,", b"[9223372036854775807,")),
    "places of the next one": header(lambda text: text.replace(b'"shape"', b'"s"').replace(b"[0,", b"[64,")),
    "keys exchanged": header(exchange_keys),
    "a length beyond the file": lambda shard: shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:]),
    "another store's": another_stores,
}  # fmt: skip


def check_mended(folder: Path) -> None:
    """The store as it should be after it was opened for writing once."""
    with FolderStore(folder, max_disk_bytes=10**9) as store:
        answers = [right(store, seed) for seed in range(COUNT)]
        assert False not in answers, "never a wrong state"
        assert store.dtype == "float32"
        for seed in (seed for seed in range(COUNT) if answers[seed] is None):
            store.put(key(seed), states(seed))
        store.put("model-new", states(1))
    with FolderStore(folder) as store:
        assert all(right(store, seed) for seed in range(COUNT))
        assert store.verify()[0] == COUNT + 1
    assert not list(folder.glob(".*partial*"))


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_file_costs_what_is_damaged(folder, name) -> None:
    DAMAGES[name](shards(folder)[1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with FolderStore(folder, read_only=True) as store:
        answers = [right(store, seed) for seed in range(COUNT)]
        assert False not in answers
        assert sum(map(bool, answers)) > COUNT / 2, "the other files are read"
        assert store.dtype == "float32"
        store.missing([key(1), "x"])
        store.disk_bytes()
        len(store)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    check_mended(folder)


WHILE_OPEN = ["page 0 zero", "page 3 random", "cut to 4096", "gone", "files swapped", "another store's"]
PROBES: dict[str, Callable[[FolderStore], object]] = {
    "get": lambda store: store.get(key(5)),
    "missing": lambda store: store.missing([key(3), key(149)]),
    "contains": lambda store: key(70) in store,
    "count": lambda store: store.count("m"),
    "disk_bytes": lambda store: store.disk_bytes(),
    "verify": lambda store: store.verify(),
    "put": lambda store: (store.put("model-new", states(1)), store.flush()),
    "touch": lambda store: (store.get(key(1)), store.flush()),
}


@pytest.mark.parametrize("probe", list(PROBES))
@pytest.mark.parametrize("name", WHILE_OPEN)
def test_whatever_shows_the_damage_of_an_open_store_it_is_mended(folder, name, probe) -> None:
    with FolderStore(folder, max_memory_bytes=0, max_disk_bytes=10**9) as store:
        assert right(store, 5)
        DAMAGES[name](shards(folder)[1])
        PROBES[probe](store)
        answers = [right(store, seed) for seed in range(COUNT)]
        assert False not in answers
        lost = [key(seed) for seed in range(COUNT) if answers[seed] is None]
        assert store.missing([key(seed) for seed in range(COUNT)]) == lost
    check_mended(folder)


def test_bits_flipped_anywhere_never_give_wrong_states(folder) -> None:
    source = random.Random(0)
    path = shards(folder)[1]
    content = path.read_bytes()
    for _ in range(25):
        data = bytearray(content)
        for _ in range(source.choice([1, 1, 3, 30])):
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        path.write_bytes(data)
        for read_only in (True, False):
            with FolderStore(folder, read_only=read_only) as store:
                assert store.dtype == "float32"
                assert False not in [right(store, seed) for seed in range(0, COUNT, 5)]


@pytest.mark.parametrize("content", [b"", b"damaged" * 5000, b"SQLite format 3\0" + bytes(4096)])
def test_an_index_of_an_earlier_version_is_not_read_whatever_it_holds(folder, content) -> None:
    for name in ("index.sqlite", "index.sqlite-journal", "index.sqlite-wal"):
        (folder / name).write_bytes(content)
    with FolderStore(folder) as store:
        assert store.verify() == (COUNT, 0)
        assert store.dtype == "float32"


def test_a_folder_without_states_is_still_no_store(tmp_path) -> None:
    (tmp_path / "index.sqlite").write_text("damaged")
    with pytest.raises(InputError, match="is not a store of document states"):
        FolderStore(tmp_path, read_only=True)
    with FolderStore(tmp_path) as store:
        assert (store.dtype, len(store)) == ("int8", 0)


def test_a_damaged_store_on_a_full_disk_is_read_and_one_clear_error_when_written(whole, small_disk) -> None:
    folder = small_disk / "store"
    shutil.copytree(whole, folder)
    DAMAGES["cut to 4096"](shards(folder)[1])
    (small_disk / "filler").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    with FolderStore(folder) as store:
        lost = [seed for seed in range(COUNT) if right(store, seed) is None]
        assert 0 < len(lost) < COUNT / 2
        for seed in lost:
            store.put(key(seed), states(seed))
        with pytest.raises(ResourceError, match="the disk is full"):
            store.flush()
    (small_disk / "filler").unlink()
    check_mended(folder)


def test_two_processes_repair_one_store_at_once(folder) -> None:
    def key(seed: int) -> str:
        return f"{'m' * 32}-{seed:032d}"

    def work(rank: int) -> None:
        for turn in range(10):
            with FolderStore(folder, max_memory_bytes=0) as store:
                assert store.dtype == "float32", store.dtype
                with damaged.open("r+b") as shard:  # under its own feet and the other's
                    shard.seek(1024 * (turn % 4))
                    shard.write(bytes(1024))
                seed = 1000 * (rank + 1) + turn
                full = torch.full((1, 1, 2, 4), float(seed))
                store.put(key(seed), [(full, -full)])
                store.flush()
                for other in range(0, 150, 10):
                    found = store.get(key(other))
                    assert found is None or found[0][0][0, 0, 0, 0] == other

    damaged = shards(folder)[1]
    join(start(2, work))
    with FolderStore(folder) as store:
        assert all(right(store, seed) for seed in (*range(1000, 1010), *range(2000, 2010)))
        assert False not in [right(store, seed) for seed in range(COUNT)]

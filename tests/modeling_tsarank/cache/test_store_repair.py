"""A damaged index of a store is made again from the files, whatever shows the damage, and never answers wrongly."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.engine.state_blocks import Layers
from modeling_tsarank.ranking_errors import InputError, ResourceError


COUNT = 150


def key(seed: int) -> str:
    return f"{'m' * 32}-{seed:032d}"


def states(seed: int) -> Layers:
    return [(torch.full((1, 1, 2, 4), float(seed)), torch.full((1, 1, 2, 4), -float(seed)))]


def right(store: FolderStore, seed: int) -> bool | None:
    """Whether the store gives the right states; `None` where it gives none."""
    found = store.get(key(seed))
    return None if found is None else torch.equal(found[0][0], states(seed)[0][0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "store"
    with FolderStore(folder, "float32", shard_bytes=12_000) as store:
        for seed in range(COUNT):
            store.put(key(seed), states(seed))
    assert (folder / "index.sqlite").stat().st_size >= 7 * 4096, "several pages of every kind"
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def sql(*statements: str) -> Callable[[Path], None]:
    def run(index: Path) -> None:
        with sqlite3.connect(index) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return run


def page(number: int, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def run(index: Path) -> None:
        data = bytearray(index.read_bytes())
        place = slice(4096 * number, 4096 * (number + 1))
        data[place] = content(bytes(data[place]))
        index.write_bytes(data)

    return run


def swap_pages(index: Path) -> None:
    data = index.read_bytes()
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    index.write_bytes(b"".join([pages[0], *pages[:0:-1]]))


def leftover(suffix: str, content: bytes) -> Callable[[Path], None]:
    return lambda index: index.with_name(index.name + suffix).write_bytes(content) and None


def foreign_journal(index: Path) -> None:
    """A rollback journal of another database, such as a copy of a store at the wrong moment leaves."""
    other = index.parent.parent / "other.sqlite"
    connection = sqlite3.connect(other, isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("BEGIN")
    connection.execute("PRAGMA cache_size = 1")
    for _ in range(50):
        connection.execute("INSERT INTO t VALUES (randomblob(3000))")
    journal = Path(f"{other}-journal").read_bytes()
    connection.close()
    Path(f"{index}-journal").write_bytes(journal)


def foreign_wal(index: Path) -> None:
    other = index.parent.parent / "other.sqlite"
    connection = sqlite3.connect(other, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("INSERT INTO t VALUES (randomblob(3000))")
    for suffix in ("-wal", "-shm"):
        shutil.copy(f"{other}{suffix}", f"{index}{suffix}")
    connection.close()


def index_of_another_store(index: Path) -> None:
    with FolderStore(index.parent.parent / "other", "int8") as store:
        store.put(key(1), states(7))
    shutil.copy(index.parent.parent / "other" / "index.sqlite", index)


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"page {n} random": page(n, lambda data: random.Random(1).randbytes(len(data))) for n in range(8)},
    **{f"page {n} zero": page(n, lambda data: bytes(len(data))) for n in (0, 1, 5)},
    **{f"page {n} half": page(n, lambda data: data[:2048] + bytes(len(data) - 2048)) for n in range(8)},
    **{f"cut to {size}": lambda index, size=size: os.truncate(index, size) for size in (0, 1, 99, 100, 4096, 9000)},
    "pages swapped": swap_pages,
    "gone": Path.unlink,
    "text": lambda index: index.write_text("no database\n" * 2000) and None,
    "safetensors": lambda index: shutil.copy(next(index.parent.glob("*.safetensors")), index) and None,
    "no tables": sql("DROP TABLE entries", "DROP TABLE shards", "DROP TABLE settings"),
    "a table less": sql("DROP TABLE entries"),
    "other columns": sql("DROP TABLE entries", "CREATE TABLE entries (key TEXT PRIMARY KEY, place BLOB)"),
    "no keys": sql("CREATE TABLE s AS SELECT * FROM settings", "DROP TABLE settings",
                   "ALTER TABLE s RENAME TO settings", "INSERT INTO settings VALUES ('dtype', 'int8')"),
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END"),
    "no format": sql("DELETE FROM settings"),
    "an unknown format": sql("UPDATE settings SET value = 'int9'"),
    "another format": sql("UPDATE settings SET value = 'int8'"),
    "a format that is no text": sql("UPDATE settings SET value = x'00ff'"),
    "places that are text": sql("UPDATE entries SET start = 'here'"),
    "negative places": sql("UPDATE entries SET start = -4096"),
    "places far out": sql("UPDATE entries SET start = 9223372036854775807, size = 9223372036854775807"),
    "places of the next one": sql("UPDATE entries SET start = start + size"),
    "sizes that are null": sql("CREATE TABLE e AS SELECT * FROM entries", "DROP TABLE entries",
                               "ALTER TABLE e RENAME TO entries", "UPDATE entries SET size = NULL"),
    "names that are no UTF-8": sql("UPDATE entries SET shard = CAST(x'ff80' AS TEXT)",
                                   "UPDATE shards SET name = CAST(x'ff80' || name AS TEXT)"),
    "names outside": sql("UPDATE entries SET shard = '../precious.safetensors'",
                         "INSERT INTO shards VALUES ('../precious.safetensors', 1, 0)"),
    "sizes of files that are text": sql("UPDATE shards SET bytes = 'many'"),
    "keys exchanged": sql("UPDATE entries SET key = substr(key, 1, 33) || printf('%032dx', 149 - substr(key, 34))",
                          "UPDATE entries SET key = substr(key, 1, 65)"),
    "a random journal": leftover("-journal", random.Random(2).randbytes(20_000)),
    "a foreign journal": foreign_journal,
    "a random WAL": leftover("-wal", random.Random(3).randbytes(20_000)),
    "a foreign WAL": foreign_wal,
    "the index of another store": index_of_another_store,
    "in WAL mode": sql("PRAGMA journal_mode=WAL"),
}  # fmt: skip


def check_mended(folder: Path, precious: Path) -> None:
    """The store as it should be after it was opened for writing once."""
    with FolderStore(folder, max_disk_bytes=10**9) as store:
        answers = [right(store, seed) for seed in range(COUNT)]
        assert False not in answers, "never a wrong state"
        assert store.dtype == "float32"
        assert store.disk_bytes() == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        # Entries that led elsewhere were struck out one by one; what is gone is computed and kept again.
        for seed in (seed for seed in range(COUNT) if answers[seed] is None):
            store.put(key(seed), states(seed))
        store.put("model-new", states(1))
    with FolderStore(folder) as store:
        assert all(right(store, seed) for seed in range(COUNT))
        assert store.verify() == (COUNT + 1, 0)
        assert len(store) == COUNT + 1
    assert precious.read_text() == "not ours"
    assert not list(folder.glob(".*partial*"))


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_index_is_made_again(folder, name) -> None:
    precious = folder.parent / "precious.safetensors"
    precious.write_text("not ours")
    DAMAGES[name](folder / "index.sqlite")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with FolderStore(folder, read_only=True) as store:
        answers = [right(store, seed) for seed in range(COUNT)]
        assert False not in answers
        if name not in ("places of the next one", "places far out", "keys exchanged"):
            assert all(answers), "read into memory from the files"
        assert store.dtype == "float32"
        store.missing([key(1), "x"])
        store.disk_bytes()
        len(store)
    if "WAL" not in name and "journal" not in name:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    check_mended(folder, precious)


WHILE_OPEN = ["page 0 zero", "page 3 random", "cut to 4096", "gone", "names outside"]
PROBES: dict[str, Callable[[FolderStore], object]] = {
    "get": lambda store: store.get(key(140)),
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
    precious = folder.parent / "precious.safetensors"
    precious.write_text("not ours")
    with FolderStore(folder, max_memory_bytes=0, max_disk_bytes=10**9) as store:
        assert right(store, 5)
        DAMAGES[name](folder / "index.sqlite")
        PROBES[probe](store)
        assert False not in [right(store, seed) for seed in range(COUNT)]
        assert store.missing([key(seed) for seed in range(COUNT)]) == []
    check_mended(folder, precious)


def test_bits_flipped_anywhere_never_give_wrong_states(folder, whole) -> None:
    source = random.Random(0)
    content = (whole / "index.sqlite").read_bytes()
    (folder.parent / "precious.safetensors").write_text("not ours")
    for _ in range(25):
        data = bytearray(content)
        for _ in range(source.choice([1, 1, 3, 30])):
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        (folder / "index.sqlite").write_bytes(data)
        for read_only in (True, False):
            with FolderStore(folder, read_only=read_only) as store:
                assert store.dtype == "float32"
                assert False not in [right(store, seed) for seed in range(0, COUNT, 5)]
                assert len(store) <= COUNT + 1


def test_a_file_of_another_format_is_left_out(folder, caplog) -> None:
    with FolderStore(folder.parent / "other", "int8") as store:
        store.put("model-foreign", states(7))
    (foreign,) = (folder.parent / "other").glob("*.safetensors")
    shutil.copy(foreign, folder / "aaa.safetensors")
    for damage in (lambda _: None, Path.unlink):
        damage(folder / "index.sqlite")
        with FolderStore(folder) as store:
            assert store.dtype == "float32"
            assert store.get("model-foreign") is None
            assert all(right(store, seed) for seed in range(COUNT))
    assert "another format" in caplog.text


def test_a_folder_without_states_is_still_no_store(tmp_path) -> None:
    (tmp_path / "index.sqlite").write_text("damaged")
    with pytest.raises(InputError, match="is no store of document states"):
        FolderStore(tmp_path, read_only=True)
    with FolderStore(tmp_path) as store:
        assert (store.dtype, len(store)) == ("int8", 0)


@pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite-journal", ".lock", "aaaa.safetensors"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_folder_in_the_place_of_a_file_is_named(folder, name, read_only) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"{name} is a folder, a file was expected; delete it"):
        FolderStore(folder, read_only=read_only)
    shutil.rmtree(folder / name)
    with FolderStore(folder) as store:
        assert store.verify() == (COUNT, 0)


def test_an_index_that_cannot_be_made_again_is_one_clear_error(whole, small_disk) -> None:
    folder = small_disk / "store"
    shutil.copytree(whole, folder)
    (folder / "index.sqlite").write_text("damaged")
    (small_disk / "filler").write_bytes(b"x" * shutil.disk_usage(small_disk).free)
    with pytest.raises(ResourceError, match="the disk is full"):
        FolderStore(folder)
    with FolderStore(folder, read_only=True) as store:
        assert all(right(store, seed) for seed in range(COUNT))
    (small_disk / "filler").unlink()
    with FolderStore(folder) as store:
        assert store.verify() == (COUNT, 0)


_WORKER = """
    import sys, torch
    from modeling_tsarank.cache.folder_store import FolderStore
    folder, first = sys.argv[1], int(sys.argv[2])
    key = lambda seed: f"{'m' * 32}-{seed:032d}"
    for turn in range(10):
        with FolderStore(folder, max_memory_bytes=0) as store:
            assert store.dtype == "float32", store.dtype
            with open(f"{folder}/index.sqlite", "r+b") as index:  # under its own feet and the other's
                index.seek(4096 * (turn % 4))
                index.write(bytes(4096))
            seed = first + turn
            full = torch.full((1, 1, 2, 4), float(seed))
            store.put(key(seed), [(full, -full)])
            store.flush()
            for other in range(0, 150, 10):
                found = store.get(key(other))
                assert found is None or found[0][0][0, 0, 0, 0] == other
"""


def test_two_processes_repair_one_store_at_once(folder) -> None:
    code = textwrap.dedent(_WORKER)
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(folder), first], stderr=subprocess.PIPE, text=True)
        for first in ("1000", "2000")
    ]
    for process in running:
        _, problems = process.communicate(timeout=200)
        assert process.returncode == 0, problems
    with FolderStore(folder) as store:
        seeds = [*range(COUNT), *range(1000, 1010), *range(2000, 2010)]
        assert all(right(store, seed) for seed in seeds)
        assert store.verify() == (len(seeds), 0)


def test_a_repair_that_is_killed_leaves_the_store_to_the_next(folder, monkeypatch) -> None:
    (folder / "index.sqlite").write_bytes(b"damaged" * 5000)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("modeling_tsarank.cache.catalog.os.replace", die)
        with pytest.raises(KeyboardInterrupt):
            FolderStore(folder)
    with FolderStore(folder) as store:
        assert store.verify() == (COUNT, 0)

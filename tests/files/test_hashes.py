"""What identifies a file is every byte of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from modeling_tsarank.files.hashes import HashedFile, hash_file, hash_folder, hash_parts


def test_where_one_part_ends_counts() -> None:
    assert hash_parts(["ab", "c"]) != hash_parts(["a", "bc"])


@pytest.mark.parametrize("size", [0, 1, 5_000_003])
def test_a_file_is_hashed_whole_as_sha256sum_does_it(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("place", [0, 70_000, 4_321_001, 9_000_000 - 1])
def test_one_byte_anywhere_in_a_large_file_changes_the_hash(tmp_path: Path, place: int) -> None:
    content = bytearray(9_000_000)
    (tmp_path / "weights").write_bytes(content)
    before = hash_file(tmp_path / "weights"), hash_folder(tmp_path), hash_folder(tmp_path, deep=True)
    content[place] = 1
    (tmp_path / "weights").write_bytes(content)
    after = hash_file(tmp_path / "weights"), hash_folder(tmp_path), hash_folder(tmp_path, deep=True)
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_a_folder_is_its_names_and_contents_without_hidden_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = hash_folder(tmp_path), hash_folder(tmp_path, deep=True)
    (tmp_path / ".hidden").write_text("not part of a checkpoint")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "b").write_text("nor this")
    assert (hash_folder(tmp_path), hash_folder(tmp_path, deep=True)) == before
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    assert hash_folder(tmp_path) == before[0]
    assert hash_folder(tmp_path, deep=True) != before[1]
    (tmp_path / "a").rename(tmp_path / "b")
    assert hash_folder(tmp_path) != before[0]


def test_a_change_is_seen_though_size_and_time_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    file = HashedFile.of(str(path))
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert not file.has_changed(), "touched only"
    path.write_text("behind")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert file.has_changed()

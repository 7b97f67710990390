"""Identity of files by all their bytes, for resuming and caching.

SHA-256, because it can be checked with `sha256sum` and processors compute it at 1 to 2 GB/s: about as fast as most
disks, and far faster than any later processing of the bytes. Never only a sample, a size or a time: a file edited in
place can keep these.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path


def hash_parts(parts: Iterable[str]) -> str:
    """SHA-256 of a sequence of strings, as 64 hexadecimal digits; it depends on the strings' boundaries."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits. Raises `OSError`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(folder: Path, deep: bool = False) -> str:
    """SHA-256 over the names and contents of a folder's files, without hidden ones.

    Parameters:
        deep: Include subfolders, except hidden ones.

    Raises `OSError`.
    """
    found = folder.rglob("*") if deep else folder.iterdir()
    names = {path: path.relative_to(folder) for path in found if path.is_file()}
    paths = sorted(path for path, name in names.items() if not any(part.startswith(".") for part in name.parts))
    with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
        hashes = list(pool.map(hash_file, paths))
    return hash_parts(part for path, one in zip(paths, hashes, strict=True) for part in (names[path].as_posix(), one))


@dataclass
class HashedFile:
    """A file at the time of hashing.

    Attributes:
        path: of the file.
        sha256: of its content, 64 hexadecimal digits.
        stamp: its size, times of change and inode. They tell when to hash again, but are not its identity.
    """

    path: str
    sha256: str
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: str) -> HashedFile:
        """Hashes a file. Raises `OSError`."""
        stamp = _stamp(path)  # before the content, so that later changes are noticed
        return cls(path, hash_file(path), stamp)

    def has_changed(self) -> bool:
        """Whether the file's content has changed. Raises `OSError`."""
        stamp = _stamp(self.path)
        if stamp != self.stamp:
            if hash_file(self.path) != self.sha256:
                return True
            self.stamp = stamp
        return False


def _stamp(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

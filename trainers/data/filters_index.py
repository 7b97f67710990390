"""Data structures of the duplicate and leakage filters: sorted arrays of 64-bit keys, and signatures on disk.

Memory is bounded as stated here and measured in benchmarks/weak_pairs.md: 12 bytes per key, 20 keys per stored text.
Signatures, 480 bytes or more per text, are in a temporary file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import numpy as np

from modeling_tsarank.trainers.data.weak_text import BANDS, PERMUTATIONS, band_keys, similarity


class KeyTable:
    """A multimap of uint64 keys to uint32 numbers.

    Sorted runs of growing size, merged when two have similar sizes, as in a log-structured merge tree: n keys take 12
    n bytes, adding costs O(log n) per key, and a lookup is a binary search in O(log n) runs.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def add(self, keys: np.ndarray, numbers: np.ndarray) -> None:
        """Adds keys and numbers of shape `(n,)`."""
        if not len(keys):
            return
        keys, numbers = keys.astype(np.uint64), numbers.astype(np.uint32)
        while True:
            order = np.argsort(keys, kind="stable")
            keys, numbers = keys[order], numbers[order]
            if not self._runs or len(self._runs[-1][0]) > 2 * len(keys):
                break
            earlier_keys, earlier_numbers = self._runs.pop()
            keys, numbers = np.concatenate([earlier_keys, keys]), np.concatenate([earlier_numbers, numbers])
        self._runs.append((keys, numbers))

    def find(self, keys: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Looks up keys of shape `(n,)`.

        Args:
            keys: Keys to look for.
            limit: Maximum numbers per key and run; the earliest ones are returned.

        Returns:
            Indices into `keys` and the numbers found, both of shape `(found,)`.
        """
        places, found = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.uint32)]
        for run_keys, run_numbers in self._runs:
            start = np.searchsorted(run_keys, keys)
            inside = np.flatnonzero(start < len(run_keys))
            hits = inside[run_keys[start[inside]] == keys[inside]]
            first = start[hits]
            counts = np.minimum(np.searchsorted(run_keys, keys[hits], side="right") - first, limit)
            offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            places.append(np.repeat(hits, counts))
            found.append(run_numbers[np.repeat(first, counts) + offsets])
        return np.concatenate(places), np.concatenate(found)


class RowFile:
    """Fixed-width rows in a temporary file, appended, and read by number; the file is deleted with this object.

    Args:
        width: Values (uint32) per row.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = 0
        self._file = tempfile.TemporaryFile(prefix="tsarank-")  # noqa: SIM115 - closed by close()

    def append(self, rows: np.ndarray) -> None:
        """Appends uint32 rows of shape `(n, width)`."""
        self._file.write(np.ascontiguousarray(rows, dtype=np.uint32).tobytes())
        self.rows += len(rows)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Rows by number, shape `(len(numbers), width)`."""
        self._file.flush()
        size = 4 * self.width
        descriptor = self._file.fileno()
        content = b"".join(os.pread(descriptor, size, int(number) * size) for number in numbers)
        return np.frombuffer(content, dtype=np.uint32).reshape(-1, self.width)

    def close(self) -> None:
        """Removes the file."""
        self._file.close()


class SignatureIndex:
    """MinHash signatures indexed by their bands, to find stored texts that may be similar to a given one.

    Args:
        extra: Number of additional uint32 values stored with each signature.
        limit: Maximum candidates per band and run of the table, so that a very frequent text costs no more than
            others.
    """

    def __init__(self, extra: int = 0, limit: int = 8) -> None:
        self._tables = [KeyTable() for _ in range(BANDS)]
        self._rows = RowFile(PERMUTATIONS + extra)
        self._limit = limit

    def __len__(self) -> int:
        return self._rows.rows

    def add(self, signatures: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
        """Stores signatures of shape `(n, 120)` and returns their numbers, shape `(n,)`."""
        numbers = np.arange(self._rows.rows, self._rows.rows + len(signatures), dtype=np.uint32)
        for table, keys in zip(self._tables, band_keys(signatures).T, strict=True):
            table.add(keys, numbers)
        self._rows.append(signatures if extra is None else np.concatenate([signatures, extra], axis=1))
        return numbers

    def candidates(self, signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices into `signatures` and the numbers of stored texts that share a band, without repetitions."""
        found = [np.zeros(0, dtype=np.uint64)]
        for table, keys in zip(self._tables, band_keys(signatures).T, strict=True):
            places, numbers = table.find(keys, self._limit)
            found.append((places.astype(np.uint64) << np.uint64(32)) | numbers.astype(np.uint64))
        unique = np.unique(np.concatenate(found))
        return (unique >> np.uint64(32)).astype(np.int64), (unique & np.uint64(0xFFFFFFFF)).astype(np.int64)

    def near(self, signatures: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Candidates whose estimated similarity reaches the threshold.

        Returns:
            Indices into `signatures`, numbers of the stored texts, and their extra values, shape `(found, extra)`.
        """
        places, numbers = self.candidates(signatures)
        rows = self._rows.read(numbers)
        close = similarity(rows[:, :PERMUTATIONS], signatures[places]) >= threshold
        return places[close], numbers[close], rows[close, PERMUTATIONS:]

    def close(self) -> None:
        """Removes the signatures' file."""
        self._rows.close()


def stack(signatures: Sequence[np.ndarray]) -> np.ndarray:
    """Signatures as one array of shape `(n, 120)`, also for no signatures."""
    return np.stack(signatures) if signatures else np.zeros((0, PERMUTATIONS), dtype=np.uint32)

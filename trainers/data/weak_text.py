"""Words, keys and MinHash signatures of texts, for finding duplicates and leakage.

Texts are compared by their words: Unicode NFKC, case folded, everything between words dropped. In a script without
spaces between words the text counts as one long word, so near matches need a language written with spaces.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from modeling_tsarank.files.extras import require


PERMUTATIONS = 120
BANDS = 20
"""Bands of 6 rows: a pair of texts with Jaccard similarity 0.8 becomes a candidate with probability
1 - (1 - 0.8^6)^20 = 0.998, one with 0.7 with 0.92, one with 0.4 with 0.08 (Leskovec et al., Mining of Massive
Datasets, section 3.4). Candidates are then compared by their whole signatures."""

SHINGLE = 3
_SEED = 1
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> list[str]:
    """The words of a text, normalised."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    xxhash = require("xxhash", extra="data", purpose="Comparing texts")
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", errors="surrogatepass"))


def _mix(values: np.ndarray) -> np.ndarray:
    """The 64-bit finalizer of MurmurHash3: spreads the upper bits of a product over all bits."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _fold(columns: Iterable[np.ndarray]) -> np.ndarray:
    """One order-dependent 64-bit hash for each row of a table given by its columns."""
    folded: Any = np.zeros(1, dtype=np.uint64)
    for column in columns:
        folded = folded * _MULTIPLIER + column
        folded ^= folded >> np.uint64(32)
    return _mix(folded)


class TextView:
    """One text for the comparing filters; each part is computed on first use.

    Attributes:
        words: Normalised words.
        hashes: 64-bit hash of every word, shape `(words,)`.
        key: 64-bit hash of the word sequence: equal for texts that differ only in case, punctuation and white space.
        bag: 64-bit hash of the set of words: also equal if their order differs.
        shingles: Hashes of all runs of 3 words (`grams`).
        signature: MinHash of the set of 3-word shingles, shape `(120,)`, uint32.
    """

    def __init__(self, text: str) -> None:
        self.words = words_of(text)

    @cached_property
    def hashes(self) -> np.ndarray:
        return np.fromiter(map(_word_hash, self.words), dtype=np.uint64, count=len(self.words))

    @cached_property
    def key(self) -> int:
        return self._digest(self.hashes)

    @cached_property
    def bag(self) -> int:
        return self._digest(np.unique(self.hashes))

    @cached_property
    def signature(self) -> np.ndarray:
        return minhash(self.shingles)

    @cached_property
    def shingles(self) -> np.ndarray:
        return self.grams(SHINGLE)

    def grams(self, size: int) -> np.ndarray:
        """Hashes of all runs of `size` words, shape `(words - size + 1,)`; for a shorter text, one of all words."""
        count = len(self.words) - size + 1
        if count < 1:
            return _fold(self.hashes[:, None]) if self.words else np.zeros(0, dtype=np.uint64)
        return _fold(self.hashes[start : start + count] for start in range(size))

    @staticmethod
    def _digest(hashes: np.ndarray) -> int:
        xxhash = require("xxhash", extra="data", purpose="Comparing texts")
        return xxhash.xxh3_64_intdigest(hashes.tobytes())


@lru_cache(maxsize=1)
def _hasher() -> Any:
    datasketch = require("datasketch", extra="data", purpose="Finding near duplicates")
    return datasketch.MinHash(num_perm=PERMUTATIONS, seed=_SEED, scheme="affine32", hashfunc=int)


def minhash(shingles: np.ndarray) -> np.ndarray:
    """MinHash signature of a set of 64-bit shingles, shape `(120,)`, uint32 (Broder, 1997; by datasketch)."""
    hasher = _hasher()
    hasher.clear()
    hasher.update_batch((shingles >> np.uint64(32)).tolist())
    return hasher.hashvalues.astype(np.uint32)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of signatures along the last axis; standard error at most 0.046."""
    return (one == other).mean(axis=-1)


def band_keys(signatures: np.ndarray) -> np.ndarray:
    """Bucket keys of signatures of shape `(n, 120)`: uint64 of shape `(n, 20)`."""
    rows = PERMUTATIONS // BANDS
    bands = signatures.reshape(-1, rows).astype(np.uint64)
    return _fold(bands.T).reshape(-1, BANDS)

"""The interface of stores of document states, and the store in memory.

A store maps a key (`engine.state_keys`) to the states of one document. It only ever returns the states that were put
under that key: every entry has its key and a checksum, and a truncated, corrupted or missing one is reported as
absent, so that it is computed again.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch

from ..engine.state_blocks import Groups, Layers, fill_groups, split_layers, stack_layers
from ..ranking_options import whole_number
from .state_bytes import check_state_dtype, decode_states, encode_states, fill_states


class LeastRecentlyUsed:
    """A mapping bounded by bytes, which evicts the least recently used entries first."""

    def __init__(self, max_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """The value, now the most recently used one, or `None`."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Stores `value`, unless it alone exceeds the bound."""
        if key in self._entries:
            self.bytes -= self._entries.pop(key)[1]
        if self.max_bytes is not None and size > self.max_bytes:
            return
        self._entries[key] = (value, size)
        self.bytes += size
        while self.max_bytes is not None and self.bytes > self.max_bytes:
            _, (_, freed) = self._entries.popitem(last=False)
            self.bytes -= freed

    def __contains__(self, key: Any) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)


class StateStore(ABC):
    """The interface between a ranking model and a store."""

    @abstractmethod
    def get(self, key: str, *, dtype: torch.dtype | None = None, device: Any = None) -> Layers | None:
        """The states under `key` in the given type and on the given device, or `None` if missing or damaged.

        `dtype=None` returns the stored type (float32 for int8), `device=None` the stored device.
        Callers must not change the tensors.
        """

    @abstractmethod
    def fill(self, key: str, targets: Groups) -> bool:
        """Copies the states of a document's first tokens into tensors; returns false if there are none.

        `targets` has keys and values `(layers, heads, tokens, dimension)` for each run of layers of one shape, in
        order: any views, of any floating-point type. They may have fewer tokens than are stored.
        """

    @abstractmethod
    def put(self, key: str, layers: Layers, targets: Sequence[Groups] = ()) -> None:
        """Stores a copy of one document's states: for each layer keys and values `(1, heads, tokens, dimension)`.

        Each of `targets` gets what later calls of `fill` return, with the store's rounding; also if nothing can be
        stored: a score must not depend on whether a document was stored before.
        """

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without an entry, in order."""
        return [key for key in keys if key not in self]

    @abstractmethod
    def __contains__(self, key: str) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...

    def __bool__(self) -> bool:
        return True  # an empty store is still true

    def flush(self) -> None:  # noqa: B027 - a store in memory has nothing to write
        """Writes entries that were put but not yet written."""

    def close(self) -> None:
        """Writes pending entries and closes files."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MemoryStore(StateStore):
    """Document states in memory, evicting the least recently used when full.

    Parameters:
        max_bytes: bound of all states together; `None` for no bound.
        dtype: `None` stores the tensors as given, on their device; `float32`, `bfloat16`, `float16` or `int8` converts
            them to that format in main memory (int8: a quarter of float32) and back on every use.
    """

    def __init__(self, max_bytes: int | None = 2 << 30, dtype: str | None = None) -> None:
        self.dtype = None if dtype is None else check_state_dtype(dtype)
        self._states = LeastRecentlyUsed(None if max_bytes is None else whole_number(max_bytes, "max_bytes"))
        self._lock = threading.RLock()

    def get(self, key: str, *, dtype: torch.dtype | None = None, device: Any = None) -> Layers | None:
        found = self._found(key)
        if found is None:
            return None
        if self.dtype is not None:
            return decode_states(key, found, dtype, device)
        moved = [(keys.to(device, dtype), values.to(device, dtype)) for keys, values in found]
        return split_layers(moved)

    def fill(self, key: str, targets: Groups) -> bool:
        found = self._found(key)
        if found is None:
            return False
        self._fill(key, found, targets)
        return True

    def _fill(self, key: str, kept: Any, targets: Groups) -> None:
        if self.dtype is not None:
            fill_states(key, kept, targets, checked=True)
        else:
            fill_groups(kept, targets)

    def _found(self, key: str) -> Any:
        with self._lock:
            return self._states.get(key)

    def put(self, key: str, layers: Layers, targets: Sequence[Groups] = ()) -> None:
        kept: Any
        if self.dtype is not None:
            # Aligned bytes can be viewed as tensors without a copy.
            kept = bytearray(encode_states(key, layers, self.dtype))
            size = len(kept)
        else:
            # Copies: the given tensors may be views of a whole batch.
            kept = stack_layers([(keys.detach(), values.detach()) for keys, values in layers])
            size = sum(part.nbytes for layer in kept for part in layer)
        with self._lock:
            kept = self._states.get(key) or kept  # another thread may have been faster
            self._states.put(key, kept, size)
        for target in targets:
            self._fill(key, kept, target)

    @property
    def bytes(self) -> int:
        """Bytes of all stored states."""
        return self._states.bytes

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def __len__(self) -> int:
        return len(self._states)

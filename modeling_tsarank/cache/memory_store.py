"""What every store of document states can do, and the one that keeps them in memory.

A store maps a key (`engine.state_keys`) to the states of one document. It never answers with anything but the very
states that were put under that key: every entry carries its key and a checksum, and one that is torn, flipped or gone
is reported as absent, so that it is computed again.
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
    """A mapping bounded by bytes: what was not used for longest leaves first."""

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
        """Keeps `value`, unless it alone is larger than the bound."""
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
    """What a ranking model asks of a store."""

    @abstractmethod
    def get(self, key: str, *, dtype: torch.dtype | None = None, device: Any = None) -> Layers | None:
        """The states under `key` in the given type and on the given device, or `None` where they are not (whole).

        `dtype=None` gives the type they are kept in (float32 for int8), `device=None` the device they are kept on.
        Callers must not change the tensors.
        """

    @abstractmethod
    def fill(self, key: str, targets: Groups) -> bool:
        """Puts the states of a document's first tokens into tensors; false, with nothing done, where there are none.

        `targets` holds for each run of layers of one shape, in order, keys and values `(layers, heads, tokens,
        dimension)`: any views, of any floating-point type. They may ask for fewer tokens than are kept.
        """

    @abstractmethod
    def put(self, key: str, layers: Layers, targets: Sequence[Groups] = ()) -> None:
        """Keeps a copy of one document's states: for each layer keys and values `(1, heads, tokens, dimension)`.

        Each of `targets` gets what `fill` gives from now on, rounded as the store rounds. So it does where nothing
        can be kept: a score must not depend on whether a document was stored before.
        """

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys under which nothing is kept, in order."""
        return [key for key in keys if key not in self]

    @abstractmethod
    def __contains__(self, key: str) -> bool: ...

    @abstractmethod
    def __len__(self) -> int: ...

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    def flush(self) -> None:  # noqa: B027 - a store in memory has nothing to write
        """Writes what has been put and not yet written."""

    def close(self) -> None:
        """Writes what is to be written and lets go of files."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MemoryStore(StateStore):
    """Document states in memory, the least recently used leaving first when there is no room.

    Parameters:
        max_bytes: bound of all states together; `None` for no bound.
        dtype: `None` keeps the tensors as they are given, on their device; `float32`, `bfloat16`, `float16` or `int8`
            keeps them in that format in main memory (int8: a quarter of float32) and converts them on every use.
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
            # Such bytes can be read as tensors without a copy.
            kept = bytearray(encode_states(key, layers, self.dtype))
            size = len(kept)
        else:
            # Copies: what is given may be a view of a whole batch.
            kept = stack_layers([(keys.detach(), values.detach()) for keys, values in layers])
            size = sum(part.nbytes for layer in kept for part in layer)
        with self._lock:
            kept = self._states.get(key) or kept  # another thread may have been quicker
            self._states.put(key, kept, size)
        for target in targets:
            self._fill(key, kept, target)

    @property
    def bytes(self) -> int:
        """Bytes of all states that are kept."""
        return self._states.bytes

    def __contains__(self, key: str) -> bool:
        return key in self._states

    def __len__(self) -> int:
        return len(self._states)

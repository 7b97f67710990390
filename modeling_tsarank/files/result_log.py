"""The log of finished work of all resumable commands: nothing in it is computed or paid for twice."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.files.reading import parse_json_object, read_json
from modeling_tsarank.files.writing import system_errors, write_errors, write_json
from modeling_tsarank.ranking_errors import InputError


logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.json"
_ADVICE = "choose another --output, or empty this one"


class ResultLog:
    """JSON lines, appended to and never rewritten: `{"settings": ..., "results": {unit: value, ...}, "sha256": ...}`.

    The units of a line were finished together and count together: lines that are incomplete, edited, or of other
    settings are ignored, so that a kill at any byte loses at most the last line. A later line of a unit replaces an
    earlier one. Several threads may use one log, and several processes one file; a process sees the lines at the time
    it opened the log and those it adds.

    Args:
        path: The file; the first `add` creates it.
        settings: Everything that affects the results, as JSON values.

    Raises:
        ResourceError: the file cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._digest = hash_parts([json.dumps(settings or {}, sort_keys=True)])[:16]
        self._places: dict[str, int] = {}
        self._last: tuple[int, dict[str, Any]] = (-1, {})
        self._lock = threading.Lock()
        with _errors(path), suppress(FileNotFoundError), path.open("rb") as file:
            place = 0
            for number, line in enumerate(file, start=1):
                results = self._results(line)
                if results is None:
                    logger.warning("%s, line %d is not a complete record of this work, which is redone", path, number)
                else:
                    self._places.update(dict.fromkeys(results, place))
                place += len(line)

    def __contains__(self, unit: str) -> bool:
        return unit in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, unit: str) -> Any:
        """The logged value of a unit; raises `KeyError` if there is none."""
        with self._lock:
            place = self._places[unit]
            if self._last[0] != place:
                with _errors(self.path), self.path.open("rb") as file:
                    file.seek(place)
                    self._last = place, self._results(file.readline()) or {}
            return self._last[1][unit]

    def add(self, results: Mapping[str, Any]) -> None:
        """Logs units that were finished together, and returns when they are on disk.

        Raises:
            ResourceError: the file cannot be written.
            ValueError: a value is not valid JSON, such as NaN.
        """
        record = {"settings": self._digest, "results": dict(results)}
        line = json.dumps({**record, "sha256": _hash(record)}, allow_nan=False).encode() + b"\n"
        with self._lock, _errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(end - 1, 0))
                if file.read(1) not in (b"", b"\n"):
                    line = b"\n" + line  # separates it from a line that a kill truncated
                left = memoryview(line)
                try:
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    if file.seek(0, os.SEEK_END) == end + len(line) - len(left):
                        file.truncate(end)  # leave the last space of a full disk to others
                    raise
                place = file.tell() - len(line.lstrip(b"\n"))  # others may have written meanwhile
            self._places.update(dict.fromkeys(results, place))

    def _results(self, line: bytes) -> dict[str, Any] | None:
        """The units of a line, `None` if it is incomplete, edited, or of other settings."""
        with suppress(InputError, KeyError):
            record = parse_json_object(line, "")
            digest = record.pop("sha256")
            if digest == _hash(record) and record["settings"] == self._digest:
                results: dict[str, Any] = record["results"]
                return results
        return None


def _hash(record: Mapping[str, Any]) -> str:
    return hash_parts([json.dumps(record, sort_keys=True)])[:16]


def _errors(path: Path) -> AbstractContextManager[None]:
    advice = "free some space or make it writable, and run the same command again: finished work is kept"
    return system_errors(f"cannot use {path}", advice)


def check_settings(folder: Path, settings: Mapping[str, Any], advice: str = _ADVICE, complete: bool = True) -> None:
    """Compares `settings` with those of the folder's results, if it has any.

    Args:
        folder: The output folder.
        settings: Those of this command.
        advice: What to do about other settings.
        complete: False to compare only the keys of `settings`, before the costly ones are known.

    Raises:
        InputError: at least one differs; the message names each with its old and its new value.
    """
    path = folder / SETTINGS_FILE
    if not path.exists() or all(file == path or file.name.startswith(".") for file in folder.iterdir()):
        return
    recorded = read_json(path)
    if not isinstance(recorded, dict):
        raise InputError(f"{path} does not have the settings of this command; choose another --output")
    current = json.loads(json.dumps(dict(settings)))
    keys = sorted(current.keys() | recorded.keys()) if complete else list(current)
    changed = [
        f"{key} was {recorded.get(key)!r} and is now {current.get(key)!r}"
        for key in keys
        if recorded.get(key) != current.get(key)
    ]
    if changed:
        raise InputError(f"{folder} has results of other input or settings ({'; '.join(changed)}): {advice}")


def claim_folder(folder: Path, settings: Mapping[str, Any], advice: str = _ADVICE) -> None:
    """Records the settings of a folder's results, or checks existing ones: see `check_settings`."""
    check_settings(folder, settings, advice)
    write_json(folder / SETTINGS_FILE, dict(settings))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Creates the folder and locks it against other processes; the lock ends with the process, however it ends.

    Raises:
        InputError: it is a file, or another process is using it.
        ResourceError: the folder cannot be created or written.
    """
    from filelock import FileLock, Timeout

    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; --output must be a folder")
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"another process is writing to {folder}; wait for it, or choose another --output"
            ) from None
        except NotImplementedError:
            logger.debug("%s is on a file system without locks", folder)
    try:
        yield
    finally:
        lock.release()

"""One training in an output folder at a time: two would overwrite each other's checkpoints."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from modeling_tsarank.files.reading import read_json
from modeling_tsarank.ranking_errors import InputError, ResourceError, TSARankError


LOCK_NAME = ".training.lock"
_held: set[Path] = set()


@contextmanager
def only_training_in(output_dir: str | Path) -> Iterator[None]:
    """Keeps every other training out of the folder while its body runs; within this process it may be nested.

    The system drops the lock with the process, however that ends. A folder that is still empty afterwards goes again.

    Raises:
        InputError: another training is at work there; says which.
        ResourceError: the folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    folder = Path(output_dir).absolute()
    if folder in _held:
        yield
        return
    path = folder / LOCK_NAME
    made = not folder.exists()
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        owner = _owner(path)
        lock.acquire()
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(" ", "seconds")}
        path.write_text(json.dumps(mine), encoding="utf-8")
    except Timeout:
        raise InputError(
            f"another training is at work in {output_dir} ({owner}); name another output_dir, or wait for its end"
        ) from None
    except OSError as error:
        raise ResourceError(
            f"cannot write to the output folder {output_dir}: {error.strerror or error}; name another output_dir"
        ) from error
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        # Taken away while it is held: whoever waits finds out, and makes a new one.
        path.unlink(missing_ok=True)
        lock.release()
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _owner(path: Path) -> str:
    """The process that wrote the lock file, in words."""
    try:
        owner = read_json(path)
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (TSARankError, KeyError, TypeError):
        return "a process that has not said which it is"

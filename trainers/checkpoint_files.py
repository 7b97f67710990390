"""Integrity of checkpoints: a manifest, written last, lists every file with its size and hash."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer import TRAINER_STATE_NAME

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import read_json, read_json_object
from modeling_tsarank.files.writing import whole_file, write_json
from modeling_tsarank.ranking_errors import InputError, ResourceError, TSARankError


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_manifest.json"
# Files needed to resume; one file of each group must exist. FSDP and DeepSpeed write folders.
_NEEDED = {
    "weights": ("*.safetensors", "pytorch_model*", "global_step*"),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
}


def write_manifest(folder: Path) -> None:
    """Writes the names, sizes and hashes of all files of a complete checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": hash_file(path)} for path in files
    }
    write_json(folder / MANIFEST, {"version": 1, "files": entries})


def checkpoint_problem(folder: str | Path, to_resume: bool = True) -> str | None:
    """Why a checkpoint cannot be resumed from, or (without `to_resume`) its weights cannot be loaded, or `None`."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing, which this version writes last"
    try:
        if problem := _damage(folder):
            return problem
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    for name, patterns in list(_NEEDED.items())[: None if to_resume else 1]:
        if not any(next(folder.glob(pattern), None) for pattern in patterns):
            return f"{name} is missing, as with save_only_model"
    return None


def _damage(folder: Path) -> str | None:
    try:
        files = read_json_object(folder / MANIFEST)["files"]
        expected = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if hash_file(path) != sha256:
            return f"{name} differs from what was written"
    return None


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """The checkpoints of an output folder, complete or not, ordered by step."""
    folders = (one for one in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", one.name))
    # With neither, it is left over from a killed process: an earlier version wrote the trainer's state last.
    found = [one for one in folders if (one / TRAINER_STATE_NAME).is_file() or (one / MANIFEST).is_file()]
    return sorted(found, key=lambda one: int(one.name.rpartition("-")[2]))


def newest_whole_checkpoint(output_dir: str | Path) -> Path:
    """The checkpoint to resume from; logs which newer ones were skipped.

    Raises:
        InputError: there is none, or none is complete.
    """
    folders = checkpoint_folders(output_dir)
    if not folders:
        raise InputError(f"no checkpoint to resume from in {output_dir}")
    problems: dict[str, str] = {}
    for folder in reversed(folders):
        problem = checkpoint_problem(folder)
        if problem is None:
            for name, what in problems.items():
                logger.warning("%s is incomplete (%s)", name, what)
            logger.info("resuming from %s", folder)
            return folder
        problems[folder.name] = problem
    listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    raise InputError(f"no checkpoint in {output_dir} is complete ({listed}); move them away to start a new training")


def asked_checkpoint(asked: str | bool | None, output_dir: str | Path) -> str | bool:
    """Resolves `resume_from_checkpoint`: a folder, `True` for the newest complete checkpoint, `False` for a new start.

    `auto` is `True` if `output_dir` has checkpoints. Keywords are case-insensitive; `./false` is a folder.
    """
    word = str(asked or "").lower()
    if word == "auto":
        return bool(checkpoint_folders(output_dir))
    if word in ("", "false", "no", "none"):
        return False
    return True if word in ("last", "true") else str(asked)


def check_no_checkpoints(output_dir: str | Path) -> None:
    """Raises `InputError` if a new training would overwrite the checkpoints of another run."""
    checkpoints = checkpoint_folders(output_dir)
    if checkpoints:
        raise InputError(
            f"{output_dir} already contains {checkpoints[-1].name} of another run, which would be overwritten; resume "
            "from it (resume_from_checkpoint) or choose another output_dir"
        )


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer state of a complete checkpoint."""
    return read_json_object(folder / TRAINER_STATE_NAME, allow_nan=True)


# ---- one training at a time ----------------------------------------------------------------------------


LOCK_NAME = ".training.lock"
_held: set[Path] = set()


@contextmanager
def only_training_in(output_dir: str | Path) -> Iterator[None]:
    """Locks the folder against other trainings while its body runs; reentrant within this process.

    The operating system releases the lock when the process ends. A folder that is still empty is then removed.

    Raises:
        InputError: another training is running there; says which.
        ResourceError: the folder cannot be created or written.
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
            f"another training is running in {output_dir} ({owner}); choose another output_dir, or wait until it ends"
        ) from None
    except OSError as error:
        raise ResourceError(
            f"cannot write to the output folder {output_dir}: {error.strerror or error}; choose another output_dir"
        ) from error
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        # Deleted while the lock is held: a waiting process notices, and creates a new file.
        path.unlink(missing_ok=True)
        lock.release()
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _owner(path: Path) -> str:
    """The process that wrote the lock file, for messages."""
    try:
        owner = read_json(path)
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (TSARankError, KeyError, TypeError):
        return "an unknown process"


# ---- atomic writing ------------------------------------------------------------------------------------


_FULL_BYTES = 1 << 20


@contextlib.contextmanager
def writing_errors(what: str, folder: str | Path) -> Iterator[None]:
    """Turns write errors of any library into one line.

    Raises:
        ResourceError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, TSARankError):
            raise
        # On a full disk, torch and safetensors report an unexpected position.
        full = False
        with contextlib.suppress(OSError):
            full = shutil.disk_usage(folder).free < _FULL_BYTES
        if isinstance(error, RuntimeError) and not full and "inline_container" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        reason = "no space left on device" if full else reason
        raise ResourceError(
            f"{what} cannot be written to {folder}: {reason}; free some space and resume from the last checkpoint"
        ) from error


@contextlib.contextmanager
def whole_files(folder: str | Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, whose files are moved into `folder` if the body ends without an error.

    Files of the same name are replaced one by one, each atomically; other files of `folder` are not touched. After an
    error nothing has changed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        yield staging
        for source in sorted(path for path in staging.rglob("*") if path.is_file()):
            with whole_file(folder / source.relative_to(staging)) as temporary:
                shutil.move(source, temporary)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def set_config_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Sets the dtype in the folder's config.json."""
    path = folder / "config.json"
    config = read_json_object(path)
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_json(path, config)

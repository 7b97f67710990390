"""Whether a checkpoint is whole: a manifest, written last, names every file with its size and hash."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.ranking_errors import InputError


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_manifest.json"
# Words for `resume_from_checkpoint` instead of a folder.
LAST, AUTO = "last", "auto"
# What resuming needs, each with the files of which one must be there; FSDP and DeepSpeed write folders.
_NEEDED = {
    "weights": ("*.safetensors", "pytorch_model*", "global_step*"),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
}


def write_manifest(folder: Path) -> None:
    """Writes the names, sizes and hashes of all files of a checkpoint that is complete."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": hash_file(path)} for path in files
    }
    write_json(folder / MANIFEST, {"version": 1, "files": entries})


def checkpoint_problem(folder: str | Path, to_resume: bool = True) -> str | None:
    """What keeps a checkpoint from being resumed from, or (without `to_resume`) its weights from being taken."""
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    if not (folder / MANIFEST).is_file():
        return f"{MANIFEST} is missing, which this version writes last"
    try:
        problem = _damage(folder)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if problem is not None:
        return problem
    for name, patterns in list(_NEEDED.items())[: None if to_resume else 1]:
        if not any(next(folder.glob(pattern), None) for pattern in patterns):
            return f"{name} is missing, as save_only_model leaves it"
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
            return f"{name} is not what was written"
    return None


def checkpoint_folders(output_dir: str | Path) -> list[Path]:
    """The checkpoints of an output folder, whole or not, by step."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        # With neither it is the remains of a kill: an earlier version wrote the trainer's state last.
        if number and any((folder / name).is_file() for name in (TRAINER_STATE_NAME, MANIFEST)):
            found.append((int(number[1]), folder))
    return [folder for _, folder in sorted(found)]


def newest_whole_checkpoint(output_dir: str | Path) -> Path:
    """The checkpoint to resume from; says which newer ones were passed over.

    Raises:
        InputError: there is none, or none is whole.
    """
    folders = checkpoint_folders(output_dir)
    if not folders:
        raise InputError(f"no checkpoint to resume from in {output_dir}")
    problems: dict[str, str] = {}
    for folder in reversed(folders):
        problem = checkpoint_problem(folder)
        if problem is None:
            for name, what in problems.items():
                logger.warning("%s is not whole (%s)", name, what)
            logger.info("resuming from %s", folder)
            return folder
        problems[folder.name] = problem
    listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    raise InputError(f"no checkpoint in {output_dir} is whole ({listed}); move them away to start anew")


def asked_checkpoint(asked: str | bool | None, output_dir: str | Path) -> str | bool:
    """What `resume_from_checkpoint` means: a folder, `True` for the newest whole checkpoint, `False` for a new start.

    `auto` is `True` where `output_dir` has checkpoints. Words are taken in any case; `./false` is a folder.
    """
    word = str(asked or "").lower()
    if word == AUTO:
        return bool(checkpoint_folders(output_dir))
    if word in ("", "false", "no", "none"):
        return False
    return True if word in (LAST, "true") else str(asked)


def check_no_checkpoints(output_dir: str | Path) -> None:
    """Raises `InputError` where a new training would overwrite the checkpoints of another run."""
    checkpoints = checkpoint_folders(output_dir)
    if checkpoints:
        raise InputError(
            f"{output_dir} already holds {checkpoints[-1].name} of another run, which would be overwritten; resume "
            "from it (resume_from_checkpoint) or name another output_dir"
        )


def check_checkpoint(folder: str | Path) -> None:
    """Raises `InputError` for a folder that is no whole checkpoint; says why."""
    problem = checkpoint_problem(folder)
    if problem is not None:
        raise InputError(f"{folder} is no whole checkpoint ({problem}); resume from another, or from `auto`")


def read_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a whole checkpoint."""
    return read_json_object(folder / TRAINER_STATE_NAME, allow_nan=True)

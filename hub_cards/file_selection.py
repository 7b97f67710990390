"""Selects the files of a folder to publish, with reasons for those left out."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from modeling_tsarank.ranking_errors import InputError


LICENSES = ("LICENSE", "LICENSE[.-]*", "NOTICE", "NOTICE[.-]*")


@dataclass(frozen=True)
class PublishedFile:
    """One file of a publication.

    Attributes:
        path: Its path in the repository, with forward slashes.
        source: The file on disk, or its content.
    """

    path: str
    source: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self) -> bytes:
        """The complete content; meant for small files."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass
class Selection:
    """The files to publish, and the other files of the folder with the reason why they are left out."""

    files: list[PublishedFile] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, path: str, source: Path | bytes) -> None:
        """Adds a file, replacing one of the same name."""
        others = [file for file in self.files if file.path != path]
        self.files = sorted([*others, PublishedFile(path, source)], key=attrgetter("path"))
        self.left_out = [(name, why) for name, why in self.left_out if name != path]

    @property
    def paths(self) -> set[str]:
        """Paths in the repository."""
        return {file.path for file in self.files}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


# Names of files and folders that are never published, whatever the user includes, by reason.
_NEVER = {
    reason: re.compile("|".join(map(fnmatch.translate, patterns.split())))
    for reason, patterns in {
        "looks like a secret": """
            .env .env.* *.env *.key *.pem *.p12 *.pfx *.keystore id_rsa* id_dsa* id_ecdsa* id_ed25519* .netrc .npmrc
            .pypirc .git-credentials credentials* secrets* token *.token *_token .ssh .aws .gnupg stored_tokens *.kdbx
            *.jks *.ovpn""",
        "training state": """
            optimizer.* optimizer_* scheduler.* scaler.* rng_state* training_args.bin trainer_state.json
            trained_weights.safetensors checkpoint-* global_step* pytorch_model_fsdp* *.distcp failed_batch-*
            zero_to_fp32.py latest zero_pp_rank_*""",
        "a cache or a log": """
            __pycache__ *.pyc *.lock *.arrow cache-* wandb mlruns runs trackio events.out.tfevents* *.log logs
            teacher_cache* *.sqlite* *.tmp *~ *.swp Thumbs.db desktop.ini node_modules""",
    }.items()
}
HIDDEN = "hidden"
_HIDDEN_ALLOWED = {".gitattributes"}


def fits(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path matches one of some patterns, such as `*.py`."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def refusal(path: str) -> str | None:
    """Why a file with that path is never published, or `None`. Every parent folder is checked."""
    for part in path.split("/"):
        for reason, pattern in _NEVER.items():
            if pattern.match(part.lower()):
                return reason
        if part.startswith(".") and part not in _HIDDEN_ALLOWED:
            return HIDDEN
    return None


def select_files(folder: Path, wanted: Sequence[str] = ("*",), include: Sequence[str] = ()) -> Selection:
    """The files of a folder to publish.

    Args:
        folder: Searched recursively; links that point outside it are left out.
        wanted: Patterns of the files that belong to the publication.
        include: The user's patterns of further files. They cannot include what `refusal` excludes.

    Raises:
        InputError: There is no such folder, or a pattern of `include` matches no file that may be published.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    root, selection, used = folder.resolve(), Selection(), set()
    for path, file in _walk(folder):
        reason = refusal(path)
        hits = {pattern for pattern in include if fnmatch.fnmatchcase(path, pattern)}
        if reason is None and not file.resolve().is_relative_to(root):
            reason = "a link to outside the folder"
        if reason is None and not hits and not fits(path, wanted):
            reason = "not needed"
        if reason is None:
            used |= hits
            selection.files.append(PublishedFile(path, file))
        else:
            selection.left_out.append((path, reason))
    unused = [pattern for pattern in include if pattern not in used]
    if unused:
        raise InputError(f"--include {unused[0]}: no file of {folder} that may be published matches")
    return selection


def _walk(folder: Path) -> Iterable[tuple[str, Path]]:
    """Files with their paths in the repository; an excluded folder is listed instead of its files."""
    for current, folders, names in os.walk(folder):
        relative = Path(current).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for name in sorted(folders):
            if refusal(f"{prefix}{name}"):
                yield f"{prefix}{name}", Path(current, name)
        folders[:] = sorted(name for name in folders if not refusal(f"{prefix}{name}"))
        for name in sorted(names):
            yield f"{prefix}{name}", Path(current, name)

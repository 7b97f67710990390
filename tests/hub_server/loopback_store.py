"""What the loopback Hub keeps: repositories, commits and blobs as plain files, so that a killed upload can be seen.

    lfs/SHA256                       contents uploaded by Git LFS
    blobs/SHA1                       contents of ordinary files, by their git blob id
    repos/TYPE/NAMESPACE/NAME.json   visibility, branches, tags
    commits/SHA1.json                parent, message and the whole list of files

A commit becomes visible when the repository's file, which names the branch's head, is replaced in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.parquet filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = {".safetensors", ".parquet", ".bin", ".gz", ".zip", ".onnx", ".gguf", ".model", ".npz", ".arrow"}


class HubError(Exception):
    """An answer that is an error: status, the Hub's error code and a message."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Entry:
    """A file of a commit: git blob id (of the pointer, for LFS), size, and SHA-256 where it is stored by LFS."""

    oid: str
    size: int
    lfs: str | None = None


def blob_id(data: bytes) -> str:
    """The id git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in the place of a file stored by LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


class Store:
    """Repositories in a folder. Every change is one `os.replace` under one lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        for name in ("lfs", "blobs", "repos", "commits"):
            (root / name).mkdir(parents=True, exist_ok=True)

    # ---- repositories ----------------------------------------------------------------------------

    def _path(self, kind: str, repo_id: str) -> Path:
        return self.root / "repos" / kind / f"{repo_id}.json"

    def create(self, kind: str, repo_id: str, private: bool, sdk: str | None = None) -> None:
        with self.lock:
            path = self._path(kind, repo_id)
            if path.exists():
                raise HubError(409, None, f"You already created this {kind} repo: {repo_id}")
            entry = Entry(self.add_blob(GITATTRIBUTES), len(GITATTRIBUTES))
            head = self._write_commit(None, "initial commit", {".gitattributes": entry})
            value = {"private": private, "sdk": sdk, "created": _now(), "branches": {"main": head}, "tags": {}}
            self._write(path, value)

    def repo(self, kind: str, repo_id: str) -> dict[str, Any]:
        path = self._path(kind, repo_id)
        if not path.is_file():
            raise HubError(404, "RepoNotFound", "Repository not found")
        value: dict[str, Any] = json.loads(path.read_text())
        return value

    def delete(self, kind: str, repo_id: str) -> None:
        self.repo(kind, repo_id)
        self._path(kind, repo_id).unlink()

    def update(self, kind: str, repo_id: str, **changes: Any) -> None:
        with self.lock:
            self._write(self._path(kind, repo_id), self.repo(kind, repo_id) | changes)

    def resolve(self, kind: str, repo_id: str, revision: str) -> str:
        """The commit that a branch, a tag or a commit id of this repository stands for."""
        repo = self.repo(kind, repo_id)
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for refs in (repo["branches"], repo["tags"]):
            if revision in refs:
                return str(refs[revision])
        if revision in self.history(repo["branches"]["main"]):
            return revision
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    # ---- commits ---------------------------------------------------------------------------------

    def commit(self, commit: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.root / "commits" / f"{commit}.json").read_text())
        return value

    def files(self, commit: str) -> dict[str, Entry]:
        return {path: Entry(**entry) for path, entry in self.commit(commit)["files"].items()}

    def history(self, commit: str | None) -> list[str]:
        found = []
        while commit is not None:
            found.append(commit)
            commit = self.commit(commit)["parent"]
        return found

    def add_commit(
        self, kind: str, repo_id: str, branch: str, message: str, changes: dict[str, Entry | None], parent: str | None
    ) -> str:
        """One commit of added (`Entry`) and deleted (`None`) files. All or nothing."""
        with self.lock:
            repo = self.repo(kind, repo_id)
            if branch not in repo["branches"]:
                raise HubError(404, "RevisionNotFound", f"Invalid rev id: {branch}")
            head = repo["branches"][branch]
            if parent is not None and parent != head:
                raise HubError(412, None, f"A commit has happened since. Please refresh and try again: {head}")
            files: dict[str, Entry] = self.files(head)
            for path, entry in changes.items():
                if entry is None:
                    if path not in files:
                        raise HubError(400, None, f"File not found: {path}")
                    del files[path]
                else:
                    files[path] = entry
            new = self._write_commit(head, message, files)
            self._write(self._path(kind, repo_id), repo | {"branches": repo["branches"] | {branch: new}})
            return new

    def _write_commit(self, parent: str | None, message: str, files: dict[str, Entry]) -> str:
        value = {"parent": parent, "message": message, "date": _now()}
        value["files"] = {path: vars(entry) for path, entry in sorted(files.items())}
        name = hashlib.sha1(json.dumps(value).encode()).hexdigest()
        self._write(self.root / "commits" / f"{name}.json", value)
        return name

    # ---- contents --------------------------------------------------------------------------------

    def add_blob(self, data: bytes) -> str:
        oid = blob_id(data)
        self._write_bytes(self.root / "blobs" / oid, data)
        return oid

    def lfs_path(self, sha256: str) -> Path:
        return self.root / "lfs" / sha256

    def content(self, entry: Entry) -> bytes:
        folder, name = ("lfs", entry.lfs) if entry.lfs else ("blobs", entry.oid)
        return (self.root / folder / name).read_bytes()

    def add_lfs(self, sha256: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, None, "the content does not have that SHA-256")
        self._write_bytes(self.lfs_path(sha256), data)

    def _write(self, path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write_bytes(path, json.dumps(value, indent=1).encode())

    def _write_bytes(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{threading.get_ident()}")
        temporary.write_bytes(data)
        os.replace(temporary, path)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")

"""A small Hub on loopback for the unmodified clients: huggingface_hub, transformers, datasets, evaluate.

It serves what these clients ask for when they publish and load: creating repositories, preupload, Git LFS ("basic"
transfer), commits, trees, paths-info, refs, tags, branches, and `resolve` with ETags, ranges and a redirect to
signed addresses for LFS files. Tokens decide who reads and who writes. What is not there (Xet, pull requests,
discussions, search) answers 501, so that a client which begins to need it is noticed.

Faults are injected by rules: `hub.fail(method, pattern, action, times)`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from loopback_http import Answer, Fault, RequestHandler, Server, as_json
from loopback_metadata import validate_card
from loopback_store import LFS_SUFFIXES, Entry, HubError, Store, blob_id, pointer


PREFIXES = {"datasets": "dataset", "spaces": "space"}
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{REPO}"


class LoopbackHub:
    """The server: `with LoopbackHub(folder) as hub:` and clients with `HF_ENDPOINT=hub.url`.

    Attributes:
        tokens: token to (user, "read" or "write").
        requests: (method, path) of everything that was asked, in order.
        lfs_over: ordinary files of more bytes than this are stored by LFS.
    """

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.tokens = {"hf_loopback_writer": ("alice", "write"), "hf_loopback_reader": ("alice", "read")}
        self.tokens["hf_loopback_stranger"] = ("mallory", "write")
        self.requests: list[tuple[str, str]] = []
        self.bytes_uploaded = 0
        self.lfs_over = 1_000_000
        self.signature = secrets.token_hex(8)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = Server(("127.0.0.1", 0), _Handler)
        self._server.hub, self._server.routes = self, ROUTES
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LoopbackHub:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        for fault in self._faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(
        self, method: str, pattern: str, action: int | str | threading.Event, times: int = 1, skip: int = 0
    ) -> Fault:
        """Injects a fault for the next `times` matching requests, but for the first `skip`."""
        fault = Fault(method, pattern, action, times, skip)
        with self._lock:
            self._faults.append(fault)
        return fault

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def count(self, method: str, pattern: str) -> int:
        """How many requests of that method had an address that matches."""
        return sum(verb == method and re.search(pattern, path) is not None for verb, path in self.requests)


class _Handler(RequestHandler):
    """The answers."""

    # ---- repositories ----------------------------------------------------------------------------

    def whoami(self) -> Answer:
        if self.user is None:
            raise HubError(401, None, "Invalid username or password.")
        token = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": self.role}}
        return as_json({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": token})

    def create(self) -> Answer:
        data = self._json()
        kind, owner = data.get("type") or "model", data.get("organization") or self.user
        if self.user is None:
            raise HubError(401, None, "Invalid username or password.")
        if self.role != "write" or owner != self.user:
            raise HubError(403, None, f"You don't have the rights to create a {kind} under the namespace {owner}")
        repo = f"{owner}/{data['name']}"
        private = data.get("private") or data.get("visibility") == "private"
        prefix = "" if kind == "model" else f"{kind}s/"
        answer = {"url": f"{self.hub.url}/{prefix}{repo}", "name": repo, "id": repo}
        try:
            self.hub.store.create(kind, repo, bool(private), data.get("sdk"))
        except HubError as error:
            return as_json({"error": error.message, **answer}, 409)
        return as_json(answer)

    def delete(self) -> Answer:
        data = self._json()
        kind, repo = data.get("type") or "model", f"{data.get('organization') or self.user}/{data['name']}"
        self._writable(kind, repo)
        self.hub.store.delete(kind, repo)
        return as_json({})

    def info(self, kind: str, repo: str, revision: str = "main") -> Answer:
        found = self._readable(kind, repo)
        commit = self.hub.store.resolve(kind, repo, revision)
        files = self.hub.store.files(commit)
        value: dict[str, Any] = {"_id": repo, "id": repo, "author": repo.split("/")[0], "sha": commit, "gated": False}
        value |= {"private": found["private"], "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        value |= {"lastModified": self.hub.store.commit(commit)["date"], "createdAt": found["created"]}
        with_blobs = "blobs" in parse_qs(self.address.query)
        value["siblings"] = [self._sibling(path, entry, with_blobs) for path, entry in files.items()]
        if found["sdk"]:
            value["sdk"] = found["sdk"]
        if "README.md" in files:
            card, _ = validate_card(self.hub.store.content(files["README.md"]).decode())
            if card:
                value["cardData"] = card
                tags = card.get("tags")
                value["tags"] = tags if isinstance(tags, list) else []
                if kind == "model":
                    value["pipeline_tag"] = card.get("pipeline_tag")
                    value["library_name"] = card.get("library_name")
        return as_json(value)

    def _sibling(self, path: str, entry: Entry, with_blobs: bool) -> dict[str, Any]:
        if not with_blobs:
            return {"rfilename": path}
        value: dict[str, Any] = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
        if entry.lfs:
            value["lfs"] = {"sha256": entry.lfs, "size": entry.size, "pointerSize": 134}
        return value

    def settings(self, kind: str, repo: str) -> Answer:
        self._writable(kind, repo)
        data = self._json()
        private = data.get("private", data.get("visibility") == "private")
        self.hub.store.update(kind, repo, private=bool(private))
        return as_json({"private": bool(private)})

    def validate(self) -> Answer:
        _, errors = validate_card(self._json()["content"])
        return as_json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    # ---- refs ------------------------------------------------------------------------------------

    def refs(self, kind: str, repo: str) -> Answer:
        found = self._readable(kind, repo)
        answer: dict[str, Any] = {"converts": []}
        for name, folder in (("branches", "heads"), ("tags", "tags")):
            items = found[name].items()
            answer[name] = [{"name": k, "ref": f"refs/{folder}/{k}", "targetCommit": v} for k, v in items]
        return as_json(answer)

    def tag(self, kind: str, repo: str, revision: str) -> Answer:
        self._writable(kind, repo)
        commit = self.hub.store.resolve(kind, repo, revision)
        name, tags = self._json()["tag"], self.hub.store.repo(kind, repo)["tags"]
        if name in tags:
            raise HubError(409, None, f"Tag {name} already exists")
        self.hub.store.update(kind, repo, tags=tags | {name: commit})
        return as_json({})

    def delete_tag(self, kind: str, repo: str, revision: str) -> Answer:
        self._writable(kind, repo)
        tags = dict(self.hub.store.repo(kind, repo)["tags"])
        if tags.pop(revision, None) is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        self.hub.store.update(kind, repo, tags=tags)
        return as_json({})

    def branch(self, kind: str, repo: str, revision: str) -> Answer:
        self._writable(kind, repo)
        branches = self.hub.store.repo(kind, repo)["branches"]
        if revision in branches:
            raise HubError(409, None, f"Reference {revision} already exists")
        start = (self._json() if self.body else {}).get("startingPoint") or "main"
        self.hub.store.update(kind, repo, branches=branches | {revision: self.hub.store.resolve(kind, repo, start)})
        return as_json({})

    def commits(self, kind: str, repo: str, revision: str) -> Answer:
        self._readable(kind, repo)
        found = []
        for name in self.hub.store.history(self.hub.store.resolve(kind, repo, revision)):
            commit = self.hub.store.commit(name)
            found.append(
                {"id": name, "title": commit["message"], "message": "", "date": commit["date"], "authors": []}
            )
        return as_json(found)

    # ---- trees -----------------------------------------------------------------------------------

    def _file(self, path: str, entry: Entry) -> dict[str, Any]:
        value: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
        if entry.lfs:
            value["lfs"] = {"oid": entry.lfs, "size": entry.size, "pointerSize": 134}
        return value

    def _folder(self, path: str) -> dict[str, Any]:
        return {"type": "directory", "path": path, "size": 0, "oid": blob_id(path.encode())}

    def tree(self, kind: str, repo: str, revision: str, path: str = "") -> Answer:
        self._readable(kind, repo)
        files = self.hub.store.files(self.hub.store.resolve(kind, repo, revision))
        recursive = parse_qs(self.address.query).get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{path}/" if path else ""
        if path and not any(name.startswith(prefix) for name in files):
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        found: dict[str, dict[str, Any]] = {}
        for name, entry in files.items():
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    found[folder] = self._folder(folder)
            if recursive or len(parts) == 1:
                found[name] = self._file(name, entry)
        return as_json(list(found.values()))

    def paths_info(self, kind: str, repo: str, revision: str) -> Answer:
        self._readable(kind, repo)
        files = self.hub.store.files(self.hub.store.resolve(kind, repo, revision))
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = self._json()["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        found = [self._file(path, files[path]) for path in paths if path in files]
        folders = [path for path in paths if any(name.startswith(f"{path}/") for name in files)]
        return as_json(found + [self._folder(path) for path in folders])

    # ---- writing ---------------------------------------------------------------------------------

    def preupload(self, kind: str, repo: str, revision: str) -> Answer:
        self._writable(kind, repo)
        files = self.hub.store.files(self.hub.store.resolve(kind, repo, revision))
        answers = []
        for file in self._json()["files"]:
            lfs = Path(file["path"]).suffix in LFS_SUFFIXES or file["size"] > self.hub.lfs_over
            entry = files.get(file["path"])
            mode = "lfs" if lfs else "regular"
            oid = None if entry is None else (entry.lfs if lfs else entry.oid)
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return as_json({"files": answers})

    def lfs_batch(self, repo: str, prefix: str | None = None) -> Answer:
        self._writable(PREFIXES.get(prefix or "", "model"), repo)
        objects = []
        for wanted in self._json()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.hub.store.lfs_path(wanted["oid"]).exists():
                verify = {"href": f"{self.hub.url}/lfs/verify"}
                answer["actions"] = {"upload": {"href": self._signed(wanted["oid"])}, "verify": verify}
            objects.append(answer)
        return as_json({"transfer": "basic", "objects": objects})

    def _signed(self, sha256: str) -> str:
        # Another origin than the Hub's, as with the real one: clients must not send their token there.
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        return f"{storage}/cdn/{sha256}?signature={self.hub.signature}"

    def _check_signature(self) -> None:
        if self.headers.get("Authorization"):
            raise HubError(400, None, "a token was sent to the storage, where only the signature counts")
        if parse_qs(self.address.query).get("signature") != [self.hub.signature]:
            raise HubError(403, None, "the signature is wrong")

    def put(self, sha256: str) -> Answer:
        self._check_signature()
        self.hub.store.add_lfs(sha256, self.body)
        self.hub.bytes_uploaded += len(self.body)
        return Answer()

    def verify(self) -> Answer:
        data = self._json()
        path = self.hub.store.lfs_path(data["oid"])
        if not path.exists() or path.stat().st_size != data["size"]:
            raise HubError(404, None, "no such object")
        return as_json({})

    def commit(self, kind: str, repo: str, revision: str) -> Answer:
        self._writable(kind, repo)
        header: dict[str, Any] = {}
        changes: dict[str, Entry | None] = {}
        for line in self.body.splitlines():
            item = json.loads(line)
            value, path = item["value"], item["value"].get("path", "")
            if ".." in path.split("/") or path.startswith("/"):
                raise HubError(400, None, f"not a path: {path}")
            if item["key"] == "header":
                header = value
            elif item["key"] == "file":
                data = base64.b64decode(value["content"])
                changes[path] = Entry(self.hub.store.add_blob(data), len(data))
            elif item["key"] == "lfsFile":
                content = self.hub.store.lfs_path(value["oid"])
                if not content.exists():
                    raise HubError(400, None, f"{path}: the LFS object {value['oid']} was not uploaded")
                size = content.stat().st_size
                changes[path] = Entry(blob_id(pointer(value["oid"], size)), size, value["oid"])
            elif item["key"] == "deletedFile":
                changes[path] = None
            else:
                raise HubError(501, None, f"unknown operation {item['key']}")
        self._check_card(changes)
        parent = header.get("parentCommit")
        new = self.hub.store.add_commit(kind, repo, revision, header["summary"], changes, parent)
        prefix = "" if kind == "model" else f"{kind}s/"
        return as_json({"success": True, "commitOid": new, "commitUrl": f"{self.hub.url}/{prefix}{repo}/commit/{new}"})

    def _check_card(self, changes: dict[str, Entry | None]) -> None:
        card = changes.get("README.md")
        if card is not None:
            _, errors = validate_card(self.hub.store.content(card).decode())
            if errors:
                raise HubError(400, None, f"Invalid metadata in README.md: {'; '.join(errors)}")

    # ---- reading ---------------------------------------------------------------------------------

    def download(self, repo: str, revision: str, path: str, prefix: str | None = None) -> Answer:
        kind = PREFIXES.get(prefix or "", "model")
        self._readable(kind, repo)
        commit = self.hub.store.resolve(kind, repo, revision)
        files = self.hub.store.files(commit)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path not in files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return as_json({"error": "Entry not found"}, 404, **headers)
        entry = files[path]
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.lfs}"', "X-Linked-Size": str(entry.size)}
            return Answer(302, b"", headers | {"Location": self._signed(entry.lfs)})
        return self._content(self.hub.store.content(entry), entry.oid, headers)

    def cdn(self, sha256: str) -> Answer:
        self._check_signature()
        path = self.hub.store.lfs_path(sha256)
        if not path.exists():
            raise HubError(404, None, "no such object")
        return self._content(path.read_bytes(), hashlib.md5(sha256.encode()).hexdigest(), {"Accept-Ranges": "bytes"})

    def _content(self, data: bytes, etag: str, headers: dict[str, str]) -> Answer:
        headers = {**headers, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
        if self.headers.get("If-None-Match") == f'"{etag}"':
            return Answer(304, b"", headers)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if match is None:
            return Answer(200, data, headers)
        start, end = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
        return Answer(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


REVISION = r"(?P<revision>[^/]+|refs/\w+/[^/]+)"
GIT = rf"/(?:(?P<prefix>datasets|spaces)/)?{REPO}"
ROUTES: list[tuple[str, str, Callable[..., Answer]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("DELETE", "/api/repos/delete", _Handler.delete),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("GET", API, _Handler.info),
    ("PUT", f"{API}/settings", _Handler.settings),
    ("GET", f"{API}/revision/{REVISION}", _Handler.info),
    ("GET", f"{API}/refs", _Handler.refs),
    ("POST", f"{API}/tag/{REVISION}", _Handler.tag),
    ("DELETE", f"{API}/tag/{REVISION}", _Handler.delete_tag),
    ("POST", f"{API}/branch/{REVISION}", _Handler.branch),
    ("GET", f"{API}/commits/{REVISION}", _Handler.commits),
    ("GET", f"{API}/tree/{REVISION}", _Handler.tree),
    ("GET", f"{API}/tree/{REVISION}/(?P<path>.+)", _Handler.tree),
    ("POST", f"{API}/paths-info/{REVISION}", _Handler.paths_info),
    ("POST", f"{API}/preupload/{REVISION}", _Handler.preupload),
    ("POST", f"{API}/commit/{REVISION}", _Handler.commit),
    ("POST", rf"{GIT}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("POST", "/lfs/verify", _Handler.verify),
    ("PUT", "/cdn/(?P<sha256>[0-9a-f]{64})", _Handler.put),
    ("GET HEAD", "/cdn/(?P<sha256>[0-9a-f]{64})", _Handler.cdn),
    ("GET HEAD", rf"{GIT}/resolve/{REVISION}/(?P<path>.+)", _Handler.download),
]

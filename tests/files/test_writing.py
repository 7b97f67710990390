"""Files appear whole or not at all, links and devices stay what they are."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modeling_tsarank.files.writing import whole_file, whole_folder, whole_text, write_json, write_jsonl, write_text
from modeling_tsarank.ranking_errors import InputError, ResourceError


def write_half(path: Path) -> None:
    with whole_text(path) as file:
        file.write("half of the sec")
        raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "first")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "first"
    assert names(path.parent) == ["file.txt"]


def test_a_kill_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "first")
    code = "import os, sys\nfrom modeling_tsarank.files.writing import whole_text\n"
    code += "with whole_text(sys.argv[1]) as file:\n    file.write('x' * 100_000)\n    os._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    assert path.read_text() == "first"


def test_a_new_file_is_as_readable_as_any_other_and_a_replaced_one_keeps_its_mode(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    write_text(tmp_path / "new", "x")
    assert (tmp_path / "new").stat().st_mode == plain.stat().st_mode
    plain.chmod(0o640)
    write_text(plain, "y")
    assert stat.S_IMODE(plain.stat().st_mode) == 0o640
    if os.geteuid() == 0:
        os.chown(plain, 1234, 4321)
        write_text(plain, "z")
        assert (plain.stat().st_uid, plain.stat().st_gid) == (1234, 4321)


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target.json"
    target.write_text("old")
    target.chmod(0o600)
    (tmp_path / "second").symlink_to("far/target.json")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    inode = target.stat().st_ino
    write_json(tmp_path / "first", {"a": 1})
    assert target.read_text() == '{\n  "a": 1\n}\n'
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.stat().st_ino != inode  # replaced, not written over
    assert names(tmp_path / "far") == ["target.json"]
    (tmp_path / "dangling").symlink_to("far/new.txt")
    write_text(tmp_path / "dangling", "made")
    assert (tmp_path / "far" / "new.txt").read_text() == "made"
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ResourceError, match="cannot write"):
        write_text(tmp_path / "circle", "x")
    (tmp_path / "linked").symlink_to("far", target_is_directory=True)
    write_text(tmp_path / "linked" / "below.txt", "x")
    assert (tmp_path / "linked").is_symlink()


@pytest.mark.parametrize("kind", ["models", "datasets", "spaces"])
def test_a_file_of_the_hubs_cache_is_refused(tmp_path, kind):
    repository = tmp_path / f"{kind}--owner--name"
    blob = repository / "blobs" / "0a1b2c"
    snapshot = repository / "snapshots" / "abc"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_text("shared")
    (snapshot / "README.md").symlink_to("../../blobs/0a1b2c")
    (tmp_path / "card.md").symlink_to(snapshot / "README.md")
    for path in (snapshot / "README.md", tmp_path / "card.md", blob):
        with pytest.raises(InputError, match="the Hub's cache"):
            write_text(path, "mine")
    assert blob.read_text() == "shared"
    assert names(blob.parent) == ["0a1b2c"]


def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "real" / "old").write_text("x")
    (tmp_path / "link").symlink_to("real")
    with contextlib.suppress(KeyboardInterrupt), whole_folder(tmp_path / "link") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["old"]
    with whole_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["new"]
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link"}


def test_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path, "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
def test_a_device_is_written_to_and_stays(tmp_path):
    device = tmp_path / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "link").symlink_to(device)
    for path in (device, tmp_path / "link"):
        write_text(path, "gone")
        with whole_file(path) as temporary:
            temporary.write_bytes(b"gone")
    assert stat.S_ISCHR(device.stat().st_mode)
    assert names(tmp_path) == ["link", "null"]


def test_a_pipe_and_a_socket_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_text(pipe, "through the pipe")
    reader.join(10)
    assert got == [b"through the pipe"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    here, there = socket.socketpair()
    with here, there:
        write_text(f"/proc/self/fd/{here.fileno()}", "through the socket")
        assert there.recv(100) == b"through the socket"


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1"])
def test_standard_output_is_written_to_where_it_is(tmp_path, name):
    code = "import sys\nfrom modeling_tsarank.files.writing import write_text\n"
    code += f"print('before', flush=True)\nwrite_text({name!r}, 'card\\n')\nprint('after')\n"
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert piped.stdout == "before\ncard\nafter\n"
    path = tmp_path / "out.txt"
    with path.open("w") as file:
        inode = path.stat().st_ino
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert path.read_text() == "before\ncard\nafter\n"
    assert path.stat().st_ino == inode
    assert Path("/dev/stdout").is_symlink()


def test_broken_unicode_is_one_line_and_leaves_nothing(tmp_path):
    for write in (lambda path: write_text(path, "\ud800"), lambda path: write_jsonl(path, [{"a": "\udfff"}])):
        with pytest.raises(InputError, match="broken Unicode") as caught:
            write(tmp_path / "out")
        assert "\n" not in str(caught.value)
        str(caught.value).encode()
    assert names(tmp_path) == []

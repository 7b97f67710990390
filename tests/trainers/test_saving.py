"""Folders and files that are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modeling_tsarank.files.writing import replace_folder, write_json
from modeling_tsarank.trainers.checkpoint_files import set_config_dtype, whole_files


def test_files_appear_together_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    (tmp_path / "both").write_text("before")
    with whole_files(tmp_path) as staging:
        (staging / "both").write_text("after")
        (staging / "sub").mkdir()
        (staging / "sub" / "new").write_text("x")
        assert (tmp_path / "both").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"old", "both", "sub"}
    assert (tmp_path / "both").read_text() == "after"
    assert (tmp_path / "sub" / "new").read_text() == "x"


def test_an_error_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")

    def fail() -> None:
        with whole_files(tmp_path) as staging:
            (staging / "file").write_text("after")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "before"}


def test_folder_is_replaced(tmp_path: Path) -> None:
    for name, text in (("a", "new"), ("b", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / text).write_text(text)
    replace_folder(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["new"]


def test_json_and_dtype(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "config.json", {"a": "ü", "dtype": "bfloat16"})
    set_config_dtype(tmp_path / "deep", torch.float32)
    assert json.loads((tmp_path / "deep" / "config.json").read_text()) == {"a": "ü", "dtype": "float32"}
    with pytest.raises(TypeError):
        write_json(tmp_path / "bad.json", {"a": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]

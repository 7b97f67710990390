"""Nothing that is resumed or cached takes a changed input for the old one, though its name, size and time are kept."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.eval.checkpoint_sources import scorer_source
from modeling_tsarank.eval.harness import hash_file
from modeling_tsarank.models import default_model
from modeling_tsarank.models.arguments import add_model_arguments
from modeling_tsarank.models.fingerprints import model_fingerprint
from modeling_tsarank.rankers.chat_local import LocalChat
from modeling_tsarank.rankers.pointwise import scorer_identity
from modeling_tsarank.trainers.data.provenance import describe_file
from modeling_tsarank.trainers.data.teacher_cache import RequestCache
from modeling_tsarank.trainers.data.teacher_scores import CachedScorer
from modeling_tsarank.trainers.training_data import load_training_rows
from modeling_tsarank.trainers.training_record import describe_data


SIZE = 6_000_000
ROWS = [{"query": f"question {n}", "positive": f"answer {n}", "negatives": ["x", "y"]} for n in range(50)]


def edit_in_place(path: Path, old: bytes, new: bytes) -> None:
    """Replaces the last `old`; size, times and name stay."""
    status = path.stat()
    content = path.read_bytes()
    at = content.rindex(old)
    path.write_bytes(content[:at] + new + content[at + len(old) :])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of files; nothing in it is ever loaded."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    # One byte of weights that lies between any samples.
    (folder / "model.safetensors").write_bytes(bytes(SIZE // 2 + 77_777) + b"w" + bytes(SIZE // 2))
    (folder / "1_Pooling" / "config.json").write_text('{"mode": "mean"}')
    return folder


def evaluated(folder: Path) -> Any:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    args = parser.parse_args(["--model", str(folder), "--dtype", "float32", "--device", "cpu"])
    return scorer_source(str(folder), args).settings


def local_teacher(folder: Path) -> Any:
    cache = RequestCache(folder.parent / "cache.jsonl")
    return LocalChat(str(folder), cache, device="cpu", dtype="float32")._identity


MODELS: dict[str, Callable[[Path], Any]] = {
    "indexes of first stages": lambda folder: model_fingerprint(str(folder)),
    "teachers that score": lambda folder: scorer_identity(str(folder)),
    "cross-encoders": lambda folder: scorer_identity(f"ce:{folder}"),
    "bi-encoders": lambda folder: scorer_identity(f"dense:{folder}"),
    "local teachers": local_teacher,
    "evaluations": evaluated,
    "a model file": lambda folder: model_fingerprint(str(folder / "model.safetensors")),
    "a first stage's run": lambda folder: hash_file(folder / "model.safetensors"),
    "records of a file of data": lambda folder: describe_data(str(folder / "model.safetensors")),
    "records of inputs": lambda folder: describe_file(folder / "model.safetensors"),
    "records of folders of inputs": describe_file,
}


@pytest.mark.parametrize("place", list(MODELS))
def test_one_changed_byte_is_another_identity(model: Path, place: str) -> None:
    before = MODELS[place](model)
    assert MODELS[place](model) == before
    edit_in_place(model / "model.safetensors", b"w", b"v")
    assert MODELS[place](model) != before


@pytest.mark.parametrize("place", ["indexes of first stages", "teachers that score", "local teachers", "evaluations"])
def test_an_adapter_is_known_with_the_model_that_it_belongs_to(model: Path, tmp_path: Path, place: str) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    before = MODELS[place](adapter)
    edit_in_place(model / "model.safetensors", b"w", b"v")
    assert MODELS[place](adapter) != before


@pytest.mark.parametrize("place", ["indexes of first stages", "teachers that score", "local teachers", "evaluations"])
def test_a_hub_name_is_known_with_its_commit(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the Hub's client keeps a model: a branch that moves to another commit."""
    cache = tmp_path / "hub" / "models--org--model"
    for commit in ("a" * 40, "b" * 40):
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
    (cache / "refs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    found = []
    for commit in ("a" * 40, "b" * 40):
        (cache / "refs" / "main").write_text(commit)
        found.append(json.dumps(MODELS[place](Path("org/model")), default=str))
    assert found[0] != found[1]
    assert "a" * 40 in found[0]


def test_training_rows_are_converted_again_when_a_byte_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    load_training_rows(path, cache_dir=tmp_path / "cache")
    edit_in_place(path, b"question 7", b"question X")
    rows = load_training_rows(path, cache_dir=tmp_path / "cache")
    assert rows[7]["query"] == "question X"


def test_scores_of_other_documents_are_never_taken_from_the_cache(model: Path, tmp_path: Path) -> None:
    cache = RequestCache(tmp_path / "cache.jsonl")
    work = CachedScorer(str(model), cache)._work
    one, other = work._key("q", ["a\0b", "c"]), work._key("q", ["a", "b\0c"])
    assert one != other


def test_a_cached_model_that_was_edited_or_damaged_is_made_again(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (folder / name).write_text(f"{name}: whole")

    folder = tmp_path / "cached"
    for _ in range(2):
        default_model.made_once(folder, make)
    assert len(made) == 1
    os.utime(folder / "model.safetensors")
    assert default_model.made_once(folder, make) == folder
    assert len(made) == 1, "touched only"
    edit_in_place(folder / "model.safetensors", b"whole", b"whale")
    default_model.made_once(folder, make)
    assert len(made) == 2
    assert (folder / "model.safetensors").read_text() == "model.safetensors: whole"
    (folder / ".hashes.json").write_text("{")
    default_model.made_once(folder, make)
    assert len(made) == 3


def test_a_cached_gguf_file_of_the_right_size_and_another_content_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path))
    path = tmp_path / "models" / default_model.DEFAULT_NAME / default_model.GGUF_NAME
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(default_model.GGUF_BYTES)

    def fetch(_: Path) -> Path:
        raise InterruptedError

    with pytest.raises(default_model.ResourceError, match="cannot write the default model"):
        default_model.fetched_gguf(fetch)

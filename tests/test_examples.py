"""Every script of `examples/` runs from start to end, on small models."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_models import EXAMPLES, bi_encoder, save_language_model

from modeling_tsarank import TSARankModel, TwolarModel, load_ranker


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("examples") / "language-model")


@pytest.fixture(scope="module")
def ranker(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "ranker"
    template = "Document: {document} Query: {query} Relevant:"  # as the default model's, so that states can be cached
    TwolarModel.from_backbone(str(language_model), template=template).save_pretrained(folder)
    return folder


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable:
    """Runs a script in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSARANK_CACHE", str(tmp_path / "cache"))

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capfd.readouterr().out

    return run


def test_every_script_has_a_test() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {name.removeprefix("test_") for name in globals() if name.removeprefix("test_") in scripts}


def test_rag_langchain(run_example: Callable, ranker: Path) -> None:
    pytest.importorskip("langchain_core", reason="LangChain is in an environment of its own (extra integrations)")
    printed = run_example("rag_langchain.py", "batteries in winter", "--model", ranker)
    assert printed.count("\n[") == 3
    assert printed.rstrip().endswith("Question: batteries in winter")


def test_evaluate_folder(run_example: Callable, ranker: Path) -> None:
    lines = run_example("evaluate_folder.py", "--model", ranker, "--output", "results").splitlines()
    assert [line.split()[0] for line in lines] == ["first_stage", "reranked", "gain", "runs"]
    assert "ndcg@10 0.840" in lines[0]  # BM25's, which no model changes
    assert Path("results/run.trec").is_file()


def test_train_ranker(run_example: Callable, language_model: Path) -> None:
    printed = run_example("train_ranker.py", "--model", language_model, "--steps", 2)
    assert "In frost the chemistry" in printed
    assert isinstance(load_ranker("my-ranker"), TSARankModel)


def test_distil_bi_encoder(run_example: Callable, language_model: Path) -> None:
    printed = run_example("distil_bi_encoder.py", "--model", language_model, "--teacher", bi_encoder(), "--steps", 2)
    assert "60 lists" in printed
    assert isinstance(load_ranker("my-ranker"), TwolarModel)


def test_serve_and_call(run_example: Callable, ranker: Path) -> None:
    lines = run_example("serve_and_call.py", "--model", ranker).splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_distil_your_corpus(language_model: Path, tmp_path: Path) -> None:
    """The whole pipeline by one command, as a reader runs it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"STUDENT": str(language_model), "QUERIES": "12", "LIST_SIZE": "4", "STEPS": "1"}
    command = ["bash", EXAMPLES / "distil_your_corpus.sh", EXAMPLES / "collection.jsonl", f"dense:{bi_encoder()}"]
    done = subprocess.run([*command, tmp_path / "out"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert isinstance(load_ranker(tmp_path / "out" / "student"), TwolarModel)


def test_tutorial(ranker: Path, run_example: Callable, tmp_path: Path) -> None:
    """The code cells of the notebook, in order; its outputs are those of the default model."""
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    cells = json.loads((EXAMPLES / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(
        cell["outputs"] or "print" not in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"
    )
    names: dict[str, object] = {}
    for block in code:
        exec(block.replace("load_ranker(", f"load_ranker({str(ranker)!r}, "), names)
    assert set(names["run"]) == set(names["queries"])

"""`tsarank serve` as a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient
from filelock import FileLock

from modeling_tsarank import TSARankModel, cli
from modeling_tsarank.cache.folder_store import open_store
from modeling_tsarank.cli.serve import make_app
from modeling_tsarank.scores.calibration import Calibration


QUERY = "why does bread rise"
DOCUMENTS = {"a": "Bees dance.", "b": "Bread dough rises because yeast turns sugar into gas.", "c": "A pilot"}


def ask(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextlib.contextmanager
def served(*options: Any, seconds: float = 120, status: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address and process of `tsarank serve`, which is stopped by SIGTERM and ends with that status."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = ["serve", "--port", address.rpartition(":")[2], "--dtype", "float32", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "modeling_tsarank.cli", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + seconds
    try:
        while True:
            with contextlib.suppress(OSError):  # no server yet, or one that makes requests wait
                ask(address, "/health")
                break
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.1)
        yield address, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == status


@pytest.fixture
def corpus(tmp_path: Path) -> list[dict[str, str]]:
    rows = [{"_id": name, "title": "On", "text": text} for name, text in DOCUMENTS.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def model(zoo: Any, tmp_path: Path) -> Any:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    model.save_pretrained(tmp_path / "tiny")
    return model


def test_documents_are_indexed_at_start_and_ranked_by_id(model: Any, corpus: Any, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    calibration = Calibration("platt", "none", (1.0, 6.0))
    calibration.save(tmp_path / "calibration.json")
    expected = model.rank(QUERY, corpus, calibration=calibration, output="probability")

    options = ["--model", tmp_path / "tiny", "--store", tmp_path / "states", "--documents", tmp_path / "corpus.jsonl"]
    options += ["--calibration", tmp_path / "calibration.json", "--output", "probability"]
    with served(*options) as (address, _):
        found = ask(address, "/v1/rerank", {"query": QUERY, "documents": [{"id": name} for name in DOCUMENTS]})
        encoded = ask(address, "/v1/documents", {"documents": corpus})
        ask(address, "/v1/rerank", {"query": QUERY, "documents": ["A text that came with a request."]})
    assert [(row["index"], row["relevance_score"]) for row in found["results"]] == [
        (row["corpus_id"], pytest.approx(row["probability"], abs=1e-3)) for row in expected
    ]
    assert encoded == {"documents": 3, "encoded": 0}, "their states were cached at start"
    with open_store(str(tmp_path / "states")) as store:
        assert model.index(["A text that came with a request."], store) == 0, "what was ranked is stored at the end"


def test_a_second_interrupt_ends_the_service_at_once(model: Any, corpus: Any, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    options = ["--model", tmp_path / "tiny", "--store", tmp_path / "states"]
    lock = FileLock(tmp_path / "states" / ".lock")
    with served(*options, status=130) as (address, process), ThreadPoolExecutor(1) as pool, lock:
        # The model's thread waits for the lock, to write states.
        pool.submit(ask, address, "/v1/documents", {"documents": corpus})
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.wait(10)


def test_replicas_on_ray_give_the_same_scores_and_share_a_store(model: Any, corpus: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    expected = [(row["corpus_id"], pytest.approx(row["score"], abs=2e-3)) for row in model.rank(QUERY, corpus)]
    options = ["--model", tmp_path / "tiny", "--ray", "local", "--replicas", "2"]
    body = {"query": QUERY, "documents": [{"id": name} for name in DOCUMENTS]}

    def results(address: str, body: Any) -> list[tuple[int, float]]:
        return [(row["index"], row["relevance_score"]) for row in ask(address, "/v1/rerank", body)["results"]]

    with served(*options, "--store", tmp_path / "states", seconds=300) as (address, process):
        assert ask(address, "/v1/documents", {"documents": corpus})["documents"] == 3
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: results(address, body), range(40))) == [expected] * 40
        started = [" ".join(one.cmdline()) for one in psutil.Process(process.pid).children(recursive=True)]
        assert sum("ServeReplica" in one for one in started) == 2
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(address, "/v1/rerank", {**body, "model": "another"})
        assert refused.value.code == 404


def test_replicas_without_a_store_refuse_uploads(model: Any, corpus: Any, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    parser = cli.build_parser()
    given = [
        "serve",
        "--model",
        str(tmp_path / "tiny"),
        "--ray",
        "local",
        "--documents",
        str(tmp_path / "corpus.jsonl"),
    ]
    args = parser.parse_args([*given, "--dtype", "float32"])
    args.api_key = None
    with TestClient(make_app(args)) as client:
        assert client.post("/v1/documents", json={"documents": corpus}).status_code == 501
        body = {"query": QUERY, "documents": [{"id": name} for name in DOCUMENTS]}
        assert len(client.post("/v1/rerank", json=body).json()["results"]) == 3, (
            "every replica has the documents given"
        )


def test_a_replica_that_does_not_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray.serve")
    (tmp_path / "empty").mkdir()
    assert cli.main(["serve", "--port", "0", "--model", str(tmp_path / "empty"), "--ray", "local"]) == 2
    assert f"{tmp_path / 'empty'}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "a", "--model", "b", "--calibration", "FOLDER"], "--calibration is for one model"),
        (["--ray", "local", "--replicas", "3", "--max-replicas", "2"], "must not be smaller than --replicas"),
        (["--replicas", "3"], "--replicas has no effect without --ray"),
        (["--max-replicas", "3"], "--max-replicas has no effect without --ray"),
    ],
)
def test_options_that_do_not_belong_together(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("uvicorn")
    words = [str(tmp_path) if word == "FOLDER" else word for word in words]
    assert cli.main(["serve", "--port", "0", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_none_is_refused_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", "99999"]) == 2
    assert "--port: expected a whole number from 0 to 65,535, got '99999'" in capsys.readouterr().err

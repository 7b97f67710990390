"""`tsarank serve` as a process of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank import TSARankModel, cli
from modeling_tsarank.cache.folder_store import open_store
from modeling_tsarank.scores.calibration import Calibration


QUERY = "why does bread rise"
DOCUMENTS = {"a": "Bees dance.", "b": "Bread dough rises because yeast turns sugar into gas.", "c": "A pilot"}


def ask(address: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_documents_are_indexed_at_start_and_ranked_by_id(zoo: Any, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    model.save_pretrained(tmp_path / "tiny")
    calibration = Calibration("platt", "none", (1.0, 6.0))
    calibration.save(tmp_path / "calibration.json")
    rows = [{"_id": name, "title": "On", "text": text} for name, text in DOCUMENTS.items()]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = model.rank(QUERY, rows, calibration=calibration, output="probability")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["serve", "--model", tmp_path / "tiny", "--port", port, "--store", tmp_path / "states", "--dtype"]
    command += ["float32", "--documents", tmp_path / "corpus.jsonl", "--calibration", tmp_path / "calibration.json"]
    command += ["--output", "probability"]
    process = subprocess.Popen(
        [sys.executable, "-m", "modeling_tsarank.cli", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                ask(address, "/health")
                break
            except urllib.error.URLError:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.1)
        found = ask(address, "/v1/rerank", {"query": QUERY, "documents": [{"id": name} for name in DOCUMENTS]})
        encoded = ask(address, "/v1/documents", {"documents": rows})
        ask(address, "/v1/rerank", {"query": QUERY, "documents": ["A text that came with a request."]})
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert [(row["index"], row["relevance_score"]) for row in found["results"]] == [
        (row["corpus_id"], pytest.approx(row["probability"], abs=1e-3)) for row in expected
    ]
    assert encoded == {"documents": 3, "encoded": 0}, "their states were cached at start"
    with open_store(str(tmp_path / "states")) as store:
        assert model.index(["A text that came with a request."], store) == 0, "what was ranked is stored at the end"


def test_one_calibration_is_for_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn")
    words = ["serve", "--port", "0", "--model", "a", "--model", "b", "--calibration", str(tmp_path)]
    assert cli.main(words) == 2
    assert "--calibration is for one model" in capsys.readouterr().err

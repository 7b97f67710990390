"""Scores do not depend on what a store held before: they come from what is stored, rounded as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import begin, join

from modeling_tsarank import TSARankModel, TwolarModel
from modeling_tsarank.cache.folder_store import FolderStore, MemoryStore
from modeling_tsarank.cli import main
from modeling_tsarank.engine.state_keys import model_identity
from modeling_tsarank.jobs.bulk_scoring import BulkJob, score_pairs
from modeling_tsarank.ranking_errors import InputError


WORDS = ["bread", "dough", "yeast", "harbour", "pilot", "ship", "channel", "bees", "dance", "glacier", "violin", "bow"]
DOCUMENTS = [" ".join(WORDS[(i * k) % 12] for k in range(1, 3 + 5 * (i % 7))) + f" {i}" for i in range(20)]
# Some documents are asked twice in one call, some once.
PAIRS = [(f"{WORDS[i % 12]} {WORDS[(i * 5) % 12]}", DOCUMENTS[(i * 7) % 20]) for i in range(30)]


def load(zoo, name: str):
    if name == "true/false":
        template = "Document: {document} Query: {query} Relevant:"
        return TwolarModel.from_backbone(str(zoo.folders["llama"]), template=template, dtype=torch.float32)
    return TSARankModel.from_backbone(str(zoo.folders[name]), dtype=torch.float32)


@pytest.fixture(scope="module")
def model(zoo):
    return load(zoo, "llama")


@pytest.fixture
def read_only_folder(tmp_path) -> Iterator[Path]:
    """A folder that is mounted read-only: permissions would not stop root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def mount_read_only(folder: Path) -> None:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a folder read-only needs root")
    for options in (["--bind", folder], ["-o", "remount,bind,ro"]):
        done = subprocess.run(["mount", *options, folder], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"cannot mount a folder read-only: {done.stderr.decode().strip()}")


def scores_with(model, store) -> np.ndarray:
    model.document_store = store
    try:
        return model.predict(PAIRS, batch_tokens=256)
    finally:
        model.document_store = None


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("llama", "int8"), ("llama", "bfloat16"), ("llama", "float32"), ("bloom", "int8"), ("true/false", "int8")],
)
def test_scores_are_the_same_whatever_the_store_held_before(zoo, name, dtype, tmp_path) -> None:
    model = load(zoo, name)
    plain = model.predict(PAIRS)
    with FolderStore(tmp_path / "store", dtype) as store:
        expected = scores_with(model, store)
        assert np.array_equal(scores_with(model, store), expected), "the same call again"
    assert np.ptp(expected) > 0.1
    assert bool(np.abs(expected - plain).max() > 1e-5) is (dtype != "float32"), "they are rounded"
    with FolderStore(tmp_path / "store", max_memory_bytes=0) as store:
        assert np.array_equal(scores_with(model, store), expected), "read back from the files"
    for part in (1, 13):  # filled in part, in other batches
        with FolderStore(tmp_path / f"part{part}", dtype) as store:
            model.index(DOCUMENTS[:part][::-1], store, batch_tokens=64 * part)
            assert np.array_equal(scores_with(model, store), expected), part
    with FolderStore(tmp_path / "part1", read_only=True) as store:
        assert np.array_equal(scores_with(model, store), expected)
        assert store.count() == 20
    FolderStore(tmp_path / "empty", dtype).close()
    with FolderStore(tmp_path / "empty", read_only=True) as store:
        assert np.array_equal(scores_with(model, store), expected), "nothing can be kept"
        assert store.count() == 0
    with FolderStore(tmp_path / "bounded", dtype, max_disk_bytes=100_000) as store:
        assert np.array_equal(scores_with(model, store), expected), "documents leave as others come"
    for bound in (None, 1):
        memory = MemoryStore(bound, dtype)
        assert np.array_equal(scores_with(model, memory), expected), bound
        assert np.array_equal(scores_with(model, memory), expected), bound


def test_scores_after_a_full_disk_are_those_of_an_empty_store(model, small_disk, tmp_path) -> None:
    with FolderStore(tmp_path / "store") as store:
        expected = scores_with(model, store)
    with FolderStore(small_disk / "store") as store:
        model.index(DOCUMENTS[:3], store)
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 8192))
        assert np.array_equal(scores_with(model, store), expected)
        with FolderStore(small_disk / "store", read_only=True) as full:
            assert np.array_equal(scores_with(model, full), expected)
        filler.unlink()
        assert np.array_equal(scores_with(model, store), expected)


def test_threads_over_one_empty_store_give_the_same_scores(model, tmp_path) -> None:
    with FolderStore(tmp_path / "alone") as store:
        expected = scores_with(model, store)
    found: list[np.ndarray] = []
    with FolderStore(tmp_path / "shared", shard_bytes=8192) as store:
        model.document_store = store
        threads = [threading.Thread(target=lambda: found.append(model.predict(PAIRS, batch_tokens=256))) for _ in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        model.document_store = None
        assert store.count() == 20
    assert len(found) == 2
    # Threads switch the kernel of attention under each other, which moves the last digit; a rounding is far larger.
    for scores in found:
        np.testing.assert_allclose(scores, expected, atol=2e-6)


# ---- the commands ----------------------------------------------------------------------------------------


def write_pairs(folder: Path, copies: int = 1) -> Path:
    path = folder / "pairs.jsonl"
    rows = [{"query": f"{query} {n}", "document": text} for n in range(copies) for query, text in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def output_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("scores-*.parquet"))}


@pytest.fixture(scope="module")
def options(zoo) -> list[str]:
    return ["--model", str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32"]


def test_rank_gives_the_same_bytes_over_a_new_a_filled_and_a_read_only_store(
    options, tmp_path, read_only_folder, capsys
) -> None:
    documents = tmp_path / "documents.txt"
    documents.write_text("\n".join(DOCUMENTS))
    command = ["rank", "--query", "bread dough", "--documents", str(documents), "--json", *options]

    def ranked(folder: Path) -> str:
        assert main([*command, "--store", str(folder)]) == 0
        # How many tokens were read depends on what was stored, the scores do not.
        return re.sub(r'"tokens": \d+', "", capsys.readouterr().out)

    FolderStore(tmp_path / "store").close()
    first = ranked(tmp_path / "store")
    assert ranked(tmp_path / "store") == first
    FolderStore(read_only_folder).close()
    mount_read_only(read_only_folder)
    before = {path.name: path.read_bytes() for path in read_only_folder.iterdir()}
    assert ranked(read_only_folder) == first
    assert {path.name: path.read_bytes() for path in read_only_folder.iterdir()} == before


def test_score_with_a_store_on_a_read_only_mount_equals_a_writable_one(
    zoo, tmp_path, read_only_folder, caplog
) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    source = str(write_pairs(tmp_path))
    FolderStore(tmp_path / "store").close()
    loading = {"name_or_path": str(zoo.folders["llama"]), "device": "cpu", "dtype": "float32"}
    job = BulkJob((source,), str(tmp_path / "a"), shard_pairs=12, model=loading, store=str(tmp_path / "store"))
    score_pairs(job)
    with FolderStore(read_only_folder) as store:
        model.index(DOCUMENTS[::3], store)
    mount_read_only(read_only_folder)
    score_pairs(BulkJob((source,), str(tmp_path / "b"), shard_pairs=12, model=loading, store=str(read_only_folder)))
    assert output_bytes(tmp_path / "a") == output_bytes(tmp_path / "b")
    assert "is not writable" in caplog.text


def test_serve_with_a_store_on_a_read_only_mount_ranks_as_with_a_writable_one(
    options, tmp_path, read_only_folder, monkeypatch
) -> None:
    pytest.importorskip("uvicorn")
    from fastapi.testclient import TestClient

    answers = []

    def ask(server) -> None:
        server.started = True
        rows = [{"id": str(number), "text": text} for number, text in enumerate(DOCUMENTS)]
        with TestClient(server.config.app) as client:
            assert client.post("/v1/documents", json={"documents": rows}).status_code == 200
            ids = [{"id": row["id"]} for row in rows]
            answers.append(
                client.post("/v1/rerank", json={"query": "bread dough", "documents": ids}).json()["results"]
            )

    monkeypatch.setattr("uvicorn.Server.run", ask)
    FolderStore(read_only_folder).close()
    mount_read_only(read_only_folder)
    before = {path.name: path.read_bytes() for path in read_only_folder.iterdir()}
    for folder in (tmp_path / "store", read_only_folder):
        assert main(["serve", "--port", "0", "--store", str(folder), *options]) == 0
    assert answers[0] == answers[1]
    assert (tmp_path / "store" / "documents.sqlite").is_file()
    assert {path.name: path.read_bytes() for path in read_only_folder.iterdir()} == before


def test_killed_and_resumed_over_a_store_the_files_are_those_of_an_undisturbed_run(options, tmp_path) -> None:
    """Two processes are killed in the middle over one store, one after the other; then two at once go on."""
    source = str(write_pairs(tmp_path, copies=30))
    command = ["score", "--pairs", source, "--shard-pairs", "30", *options]
    torch.set_num_threads(1)
    for name in ("store", "own"):
        FolderStore(tmp_path / name).close()

    def start(output: str) -> BaseProcess:
        words = [*command, "--output", str(tmp_path / output), "--store", str(tmp_path / "store")]
        return begin(lambda: main(words))

    killed = start("first")
    try:
        while killed.is_alive() and len(output_bytes(tmp_path / "first")) < 2:
            time.sleep(0.005)
    finally:
        killed.kill()
        killed.join()
    assert 2 <= len(output_bytes(tmp_path / "first")) < 30
    join([start("first"), start("second")])
    assert main([*command, "--output", str(tmp_path / "whole"), "--store", str(tmp_path / "own")]) == 0
    assert len(output_bytes(tmp_path / "whole")) == 30
    assert output_bytes(tmp_path / "first") == output_bytes(tmp_path / "whole")
    assert output_bytes(tmp_path / "second") == output_bytes(tmp_path / "whole")


FULL_ATTENTION = ["llama", "qwen3", "bloom", "gpt_neox", "opt", "gpt2"]


@pytest.mark.parametrize("name", FULL_ATTENTION)
def test_scores_from_a_float32_folder_equal_uncached_ones(zoo, pairs, name, tmp_path) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders[name]), dtype=torch.float32)
    expected = model.predict(pairs)
    assert np.ptp(expected) > 0.1
    documents = sorted({document for _, document in pairs})
    with FolderStore(tmp_path / "store", "float32", max_memory_bytes=0) as store:
        assert model.index(documents[:-2], store) == len(documents) - 2
        for _ in range(2):  # the second time, all of them come out of the files
            np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
            store.flush()
        assert store.count() == store.count(model_identity(model.backbone)) == len(documents)
    again = TSARankModel.from_backbone(str(zoo.folders[name]), dtype=torch.float32)
    with FolderStore(tmp_path / "store") as store:
        assert again.index(documents, store) == 0
        np.testing.assert_allclose(again.predict(pairs), expected, atol=1e-5)


def test_the_name_of_a_folder_is_no_store(zoo) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]))
    for store in ("states", None):
        with pytest.raises(InputError, match="store must be a MemoryStore or a FolderStore, got"):
            model.index(["a"], store)
    assert model.document_store is None


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 0.05), ("float16", 0.01), ("int8", 0.1)])
def test_smaller_formats_come_close(zoo, pairs, dtype, error, tmp_path) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    expected = model.predict(pairs)
    with FolderStore(tmp_path / "store", dtype) as store:
        model.index([document for _, document in pairs], store)
        difference = np.abs(model.predict(pairs) - expected).max()
    assert 0 < difference < error


def test_documents_beyond_the_context_are_kept_once_whatever_the_query(zoo, tmp_path) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), max_length=96, max_query_length=40)
    long = "The harbour pilot climbs aboard every ship before it enters the narrow channel. " * 20
    pairs = [("bees", long), ("who guides a ship into the harbour at night", long), ("bees", "a short one")]
    expected = model.predict(pairs)
    with FolderStore(tmp_path / "store", "float32") as store:
        model.index([long, "a short one"], store)
        assert store.count() == 2
        np.testing.assert_allclose(model.predict(pairs), expected, atol=1e-5)
        assert store.count() == 2

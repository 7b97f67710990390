"""`tsarank index`: what it says before it starts, what it does, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from modeling_tsarank import TSARankModel, TwolarModel
from modeling_tsarank.cache.folder_store import FolderStore
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.cli import main
from modeling_tsarank.cli.index import Cost, estimate
from modeling_tsarank.files.sizes import readable_size


def test_index_command(zoo, tmp_path, capsys) -> None:
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": f"Bees dance {n} times."}) + "\n" for n in range(30)))
    base = ["index", "--documents", str(source), "--store", str(tmp_path / "s"), "--model"]
    llama = [*base, str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32"]
    assert main(llama) == 0
    done = capsys.readouterr()
    assert "30 documents, 0 of them in the store; 30 to encode" in done.err
    assert "on disk as int8" in done.err
    assert done.out.startswith("30 documents encoded; ")
    assert main([*llama, "--verify"]) == 0
    done = capsys.readouterr()
    assert "30 documents in the store are intact, 0 are damaged" in done.err
    assert "30 documents, 30 of them in the store\n" in done.err
    assert done.out.startswith("0 documents encoded; ")
    assert main([*llama, "--store-dtype", "float32"]) == 2
    assert "has the format int8, not float32" in capsys.readouterr().err
    t5 = [*base, str(zoo.folders["t5"])]
    assert main(t5) == 2
    assert "no document states can be cached" in capsys.readouterr().err
    assert main([*t5, "--store", str(tmp_path / "other" / "store")]) == 2
    assert [(tmp_path / name).exists() for name in ("s", "other")] == [True, False]


def test_the_stated_cost_is_what_the_store_takes(zoo, tmp_path) -> None:
    model = TSARankModel.from_backbone(str(zoo.folders["llama"]), dtype=torch.float32)
    texts = [f"Bees dance {'round and ' * n}round." for n in range(40)]
    for dtype in ("int8", "float32"):
        with FolderStore(tmp_path / dtype, dtype) as store:
            cost, todo = estimate(model, texts, store)
            assert (cost.documents, cost.kept, len(todo)) == (40, 0, 40)
            model.index(texts, store)
            assert cost.bytes <= store.disk_bytes() <= cost.bytes + 40 * 512
            assert estimate(model, texts, store) == (Cost(40, 40, 0, 0), [])


def test_an_empty_document_without_a_prompt_is_not_asked_for_again(zoo) -> None:
    model = TwolarModel.from_backbone(str(zoo.folders["llama"]), template="{document} {query} Relevant:")
    store = MemoryStore(dtype="float32")
    assert estimate(model, ["", "Bees dance."], store)[0].documents == 2
    model.index(["", "Bees dance."], store)
    assert estimate(model, ["", "Bees dance."], store) == (Cost(2, 2, 0, 0), [])


def test_the_index_command_says_before_it_starts_that_the_disk_is_too_small(zoo, small_disk, tmp_path, capsys) -> None:
    source = tmp_path / "documents.txt"
    source.write_text("".join(f"{n} bees dance in the hive and tell the way to the flowers\n" for n in range(600)))
    command = ["index", "--documents", str(source), "--store", str(small_disk / "s"), "--store-dtype", "float32"]
    command += ["--model", str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32"]
    assert main(command) == 2
    assert "the document states would take" in capsys.readouterr().err
    assert not (small_disk / "s").exists()


def test_sizes_for_people() -> None:
    assert [readable_size(size) for size in (7, 11_880, 2.4e9, 3e15)] == ["7 B", "11.9 kB", "2.4 GB", "3e+03 TB"]


# ---- commands that score from a store ------------------------------------------------------------------


TEXTS = [f"Bees dance {'round and ' * n}round." for n in range(12)]


@pytest.fixture
def filled(zoo, tmp_path) -> list[str]:
    """A corpus of bees in BEIR's layout with two stores of its states, and the model as options."""
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    rows = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(TEXTS)]
    (beir / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "how bees dance"}\n{"_id": "q2", "text": "round"}\n')
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td3\t1\nq2\td9\t1\n")
    model = ["--model", str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32"]
    documents = tmp_path / "documents.txt"
    documents.write_text("\n".join(TEXTS))
    for kind in ("float32", "int8"):
        store = ["--store", f"{tmp_path}/{kind}", "--store-dtype", kind]
        assert main(["index", "--documents", str(documents), *store, *model]) == 0
    return model


def test_evaluate_with_a_store(filled, tmp_path, capsys) -> None:
    command = ["evaluate", "--dataset", str(tmp_path / "beir"), "--quiet", *filled]
    command += ["--cache-dir", str(tmp_path / "cache")]
    runs, spent = [], []
    for name, store in (("plain", []), ("kept", ["--store", str(tmp_path / "float32")])):
        assert main([*command, "--output", str(tmp_path / name), *store]) == 0
        run = (tmp_path / name / "beir" / "run.trec").read_text().split()
        runs.append(dict(zip(zip(run[::6], run[2::6], strict=True), map(float, run[4::6]), strict=True)))
        spent.append(json.loads((tmp_path / name / "beir" / "metrics.json").read_text())["tokens"])
    assert len(runs[0]) > 12
    assert runs[1] == pytest.approx(runs[0], abs=1e-5)
    # Documents that begin alike are shared in both.
    assert spent[1] < 0.6 * spent[0]
    capsys.readouterr()
    # Scores of rounded states are not mixed with exact ones.
    assert main([*command, "--output", str(tmp_path / "kept"), "--store", str(tmp_path / "int8")]) == 2
    assert "document_states" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "no"), "--store", str(tmp_path / "missing")]) == 2
    assert "there is no store" in capsys.readouterr().err


def test_score_with_a_store(filled, tmp_path, capsys) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"query": "how bees dance", "document": text}) + "\n" for text in TEXTS))
    command = ["score", "--pairs", str(pairs), *filled]
    scores = []
    for name, store in (("plain", []), ("kept", ["--store", str(tmp_path / "float32")])):
        assert main([*command, "--output", str(tmp_path / name), *store]) == 0
        scores.append(pq.read_table(tmp_path / name / "scores-000000.parquet")["score"].to_numpy())
    assert np.ptp(scores[0]) > 0.01
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    capsys.readouterr()
    assert main([*command, "--output", str(tmp_path / "kept"), "--store", str(tmp_path / "int8")]) == 2
    assert "document_states was 'float32' and is now 'int8'" in capsys.readouterr().err

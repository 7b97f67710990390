"""`tsarank index`: what it says before it starts, what it does, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch

from modeling_tsarank import TSARankModel
from modeling_tsarank.cli import main
from modeling_tsarank.document_store import FolderStore
from modeling_tsarank.index_command import Cost, estimate, parse_size, readable
from modeling_tsarank.ranking_errors import InputError


def test_index_command(zoo, tmp_path, capsys) -> None:
    source = tmp_path / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": f"Bees dance {n} times."}) + "\n" for n in range(30)))
    base = ["index", "--documents", str(source), "--store", str(tmp_path / "s"), "--model"]
    llama = [*base, str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32"]
    assert main(llama) == 0
    done = capsys.readouterr()
    assert "30 documents, 0 of them in the store; 30 to read" in done.err
    assert "on disk as int8" in done.err
    assert done.out.startswith("30 documents read; ")
    assert main([*llama, "--verify"]) == 0
    done = capsys.readouterr()
    assert "30 documents in the store are whole, 0 are damaged" in done.err
    assert "30 documents, 30 of them in the store\n" in done.err
    assert done.out.startswith("0 documents read; ")
    assert main([*llama, "--store-dtype", "float32"]) == 2
    assert "keeps document states as int8, not float32" in capsys.readouterr().err
    assert main([*base, str(zoo.folders["t5"])]) == 2
    assert "no document states can be kept" in capsys.readouterr().err


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


def test_the_index_command_says_before_it_starts_that_the_disk_is_too_small(zoo, small_disk, tmp_path, capsys) -> None:
    source = tmp_path / "documents.txt"
    source.write_text("".join(f"{n} bees dance in the hive and tell the way to the flowers\n" for n in range(600)))
    command = ["index", "--documents", str(source), "--store", str(small_disk / "s"), "--store-dtype", "float32"]
    command += ["--model", str(zoo.folders["llama"]), "--device", "cpu", "--dtype", "float32"]
    assert main(command) == 2
    assert "the document states would take" in capsys.readouterr().err
    assert list((small_disk / "s").glob("*.safetensors")) == []


def test_sizes_for_people() -> None:
    assert [parse_size(text) for text in ("20GB", "1.5 k", "500M", "7")] == [20 * 10**9, 1500, 5 * 10**8, 7]
    for text in ("", "many", "-1GB", "0"):
        with pytest.raises(InputError, match="is no size"):
            parse_size(text)
    assert [readable(size) for size in (7, 11_880, 2.4e9, 3e15)] == ["7 B", "11.9 kB", "2.4 GB", "3e+03 TB"]

"""A checkpoint's own code and the installed engine: two versions that meet, and one without the other."""

from __future__ import annotations

import logging
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModel

from modeling_tsarank import MemoryStore, TSARankModel, TwolarModel, load_ranker, ranking_engine
from modeling_tsarank.models import installed


# The code and configuration files of folders that commit 74722d2 saved, before there was an engine to ask for.
FROZEN = Path(__file__).parent / "data" / "saved_by_74722d2.tar.xz"
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "likelihood": (TSARankModel, {}),
    "answer": (TwolarModel, {"template": "Document: {document} Query: {query} Relevant:"}),
}


@pytest.fixture(params=FAMILIES)
def saved(request: Any, zoo: Any, tmp_path: Path) -> Path:
    """A folder that this version saved."""
    cls, options = FAMILIES[request.param]
    folder = tmp_path / f"saved-{request.param}"
    cls.from_backbone(str(zoo.folders["llama"]), **options).save_pretrained(folder)
    return folder


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes how many pairs each call of the engine reads."""
    calls: list[int] = []
    read: Callable[..., Any] = installed.read
    monkeypatch.setattr(
        installed, "read", lambda backbone, tasks, *rest: calls.append(len(tasks)) or read(backbone, tasks, *rest)
    )
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_saved_before_score_as_now(family: str, zoo: Any, pairs: Any, tmp_path: Path) -> None:
    cls, options = FAMILIES[family]
    with tarfile.open(FROZEN) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / family
    for file in (tmp_path / "code").iterdir():
        shutil.copy(file, folder)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo.folders["llama"] / name, folder)
    expected = cls.from_backbone(str(zoo.folders["llama"]), **options).predict(pairs)
    old = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert not hasattr(old, "explain"), "its own code is to be used"
    np.testing.assert_allclose(old.predict(pairs), expected, atol=1e-5)
    np.testing.assert_allclose(load_ranker(folder, device="cpu", dtype="float32").predict(pairs), expected, atol=1e-5)
    np.testing.assert_allclose(cls.from_pretrained(folder).predict(pairs), expected, atol=1e-5)
    old.index([document for _, document in pairs], MemoryStore())
    np.testing.assert_allclose(old.predict(pairs), expected, atol=1e-5)


def test_a_checkpoints_code_uses_the_engine_with_a_store_too(saved: Path, pairs: Any, engine_calls: list[int]) -> None:
    remote = AutoModel.from_pretrained(saved, trust_remote_code=True)
    assert type(remote).__module__.startswith("transformers_modules")
    expected = load_ranker(saved, device="cpu", dtype="float32").predict(pairs)
    engine_calls.clear()
    np.testing.assert_allclose(remote.predict(pairs), expected, atol=1e-5)
    assert engine_calls == [len(pairs)]
    assert remote.index([document for _, document in pairs], MemoryStore()) > 0
    np.testing.assert_allclose(remote.predict(pairs), expected, atol=1e-5)
    assert engine_calls == [len(pairs)] * 2


@pytest.mark.parametrize(("oldest", "newest"), [(0, 0), (7, 9)], ids=["older engine", "newer engine"])
def test_versions_that_do_not_understand_each_other(
    saved: Path, pairs: Any, oldest: int, newest: int, engine_calls: list[int], monkeypatch: Any, caplog: Any
) -> None:
    remote = AutoModel.from_pretrained(saved, trust_remote_code=True)
    expected = remote.predict(pairs)
    engine_calls.clear()
    monkeypatch.setattr(installed, "OLDEST_API", oldest)
    monkeypatch.setattr(installed, "ENGINE_API", newest)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_allclose(remote.predict(pairs), expected, atol=1e-5)
    told = [record.getMessage() for record in caplog.records if "engine API" in record.getMessage()]
    assert len(told) == 1
    assert f"API {oldest} to {newest}" in told[0]
    assert f"code has {ranking_engine.ENGINE_API}" in told[0]
    assert not engine_calls
    remote.document_store = MemoryStore()
    with pytest.raises(ValueError, match=r"store of document states needs the engine .* API"):
        remote.predict(pairs)
    remote.document_store, remote.number_format = None, "int8"
    with pytest.raises(ValueError, match="int8 needs the engine"):
        remote.predict(pairs)


def test_without_the_package_batches_are_plain(saved: Path, pairs: Any, monkeypatch: Any, caplog: Any) -> None:
    remote = AutoModel.from_pretrained(saved, trust_remote_code=True)
    expected = remote.predict(pairs)
    monkeypatch.setitem(sys.modules, "modeling_tsarank.models.installed", None)
    np.testing.assert_allclose(remote.predict(pairs), expected, atol=1e-5)
    np.testing.assert_allclose(remote.predict(pairs, batch_tokens=48), expected, atol=1e-5)
    lengths = [len(remote._task(pair).ids) for pair in remote.encoder.pairs(pairs)]
    assert remote.last_stats["tokens"] == sum(lengths)
    assert "engine" not in caplog.text
    with pytest.raises(ValueError, match="the package tsarank is not installed"):
        remote.index([pairs[0][1]], MemoryStore())
    # The package itself has no second way.
    with pytest.raises(ModuleNotFoundError):
        ranking_engine.installed_engine()


def test_another_error_on_importing_the_engine_is_shown(saved: Path, pairs: Any, monkeypatch: Any) -> None:
    remote = AutoModel.from_pretrained(saved, trust_remote_code=True)

    class Broken:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name == "modeling_tsarank.models.installed":
                raise ModuleNotFoundError("No module named 'numpy_of_another_kind'", name="numpy_of_another_kind")

    monkeypatch.delitem(sys.modules, "modeling_tsarank.models.installed")
    monkeypatch.setattr(sys, "meta_path", [Broken, *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="numpy_of_another_kind"):
        remote.predict(pairs)

"""The ranker that comes with the package: found, whole, merged as PEFT would, and ranking as it was recorded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import join, start
from peft import PeftModel
from transformers import AutoModelForCausalLM

from modeling_tsarank import load_ranker
from modeling_tsarank.cache.memory_store import MemoryStore
from modeling_tsarank.cache.state_files import read_documents
from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.models import default_model, embedded_models
from modeling_tsarank.models.checkpoints import load_backbone
from modeling_tsarank.models.default_model import default_model_folder
from modeling_tsarank.models.embedded_models import (
    ADAPTER_WEIGHTS,
    DEFAULT_RELEASE,
    RELEASE_FILE,
    embedded_source,
    releases,
)
from modeling_tsarank.models.resolver import resolve, resolve_language_model


FIRST, DISTILLED = "tsarank-smollm2-135m", "twolar-smollm2-135m-v2"
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def ranker():
    return load_ranker(FIRST, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def distilled():
    return load_ranker(device="cpu", dtype="float32")


def test_names_mean_what_the_documentation_says() -> None:
    assert resolve(None).name == resolve("default").name == DEFAULT_RELEASE == DISTILLED
    assert resolve("zero-shot").name == resolve("smollm2-135m-instruct").name == "smollm2-135m-instruct"
    assert not resolve("some/model").packaged
    assert resolve_language_model(None).name == "smollm2-135m-instruct"
    assert resolve_language_model(FIRST).name == FIRST


def test_the_release_is_small_and_documented() -> None:
    release = releases()[FIRST]
    assert (release.folder / ADAPTER_WEIGHTS).stat().st_size <= 20_000_000
    assert f"# {FIRST}" in (release.folder / "README.md").read_text(encoding="utf-8")
    record = json.loads((release.folder / "training_run.json").read_text(encoding="utf-8"))
    # Both stages, the second one with all three terms.
    assert record["kind"] == "sft"
    assert record["settings"]["ntp"] is record["settings"]["dp"] is True
    assert record["started_from"]["training"]["kind"] == "cpt"


def test_the_distilled_release_stands_on_the_first() -> None:
    release = releases()[DISTILLED]
    assert [part.name for part in release.parts] == [FIRST, DISTILLED]
    release.check()
    assert (release.folder / ADAPTER_WEIGHTS).stat().st_size <= 20_000_000
    assert f"# {DISTILLED}" in (release.folder / "README.md").read_text(encoding="utf-8")
    record = json.loads((release.folder / "training_run.json").read_text(encoding="utf-8"))
    kinds = []
    while record:
        kinds.append(record["kind"])
        record = (record.get("started_from") or {}).get("training")
    assert kinds == ["distill", "distill", "distill", "sft", "cpt"]


@pytest.mark.parametrize("name", [FIRST, DISTILLED])
def test_scores_are_the_recorded_ones(request, name) -> None:
    ranker = request.getfixturevalue("ranker" if name == FIRST else "distilled")
    recorded = json.loads((releases()[name].folder / RELEASE_FILE).read_text(encoding="utf-8"))["example"]
    documents = read_documents(str(EXAMPLES / recorded["documents"]), None)
    found = ranker.predict([(recorded["query"], document.text) for document in documents])
    assert [document.id for document in documents] == list(recorded["scores"])
    np.testing.assert_allclose(found, list(recorded["scores"].values()), atol=1e-4)
    assert documents[int(np.argmax(found))].id == "flea-lifespan"


def test_the_adapter_loads_with_peft_on_the_plain_base(ranker, default_folder) -> None:
    plain = AutoModelForCausalLM.from_pretrained(default_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(releases()[FIRST].folder)).eval()
    ids = torch.tensor([ranker.encoder.pairs([("how long does a flea live", "Two to three months.")])[0].prompt])
    with torch.inference_mode():
        np.testing.assert_allclose(model(ids).logits, ranker.backbone(ids).logits, atol=2e-3)


# The tokenizer joins the space before the query to a letter, not to a digit.
@pytest.mark.parametrize("query", ["how long does a flea live", "3 facts about fleas", "蚤の寿命"])
def test_the_distilled_release_keeps_document_states(distilled, query: str) -> None:
    documents = [document.text for document in read_documents(str(EXAMPLES / "fleas.jsonl"), None)]
    pairs = [(query, document) for document in documents]
    cold = distilled.predict(pairs)
    store = MemoryStore()
    distilled.index(documents, store)
    try:
        np.testing.assert_allclose(distilled.predict(pairs), cold, atol=1e-4)
        assert distilled.last_stats["tokens"] < 20 * len(pairs)
        assert len(store) == len(documents)
    finally:
        distilled.document_store = None


@pytest.mark.parametrize("old", [b"{}", None])
def test_a_merged_folder_of_an_earlier_version_gets_the_record_of_this_one(old, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedded_models, "made_once", lambda folder, make: tmp_path)
    record = tmp_path / "training_run.json"
    if old is not None:
        record.write_bytes(old)
    assert embedded_source(FIRST) == tmp_path
    assert record.read_bytes() == (releases()[FIRST].folder / record.name).read_bytes()


def test_the_merged_folder_is_made_once_and_is_an_ordinary_checkpoint(ranker) -> None:
    folder = embedded_source(FIRST)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded_source(FIRST) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert (folder / "training_run.json").is_file()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    found = plain.state_dict()
    for name, value in ranker.backbone.state_dict().items():
        assert torch.equal(found[name], value), name


def test_the_second_process_of_a_distributed_run_makes_both_models(tmp_path, default_folder) -> None:
    """transformers writes weights in the first process only; of another the cache then had folders without them."""

    def make(rank: int) -> None:
        os.environ["TSARANK_CACHE"] = str(tmp_path)
        # To take the GGUF file apart needs half a minute, and is the same in every process.
        default_model.read_gguf = lambda _: load_backbone(default_folder, lambda _: AutoModelForCausalLM)
        torch.distributed.init_process_group("gloo")
        if rank == 1:
            default_model_folder()
            embedded_source(DEFAULT_RELEASE)
        torch.distributed.barrier()

    join(start(2, make), 300)
    for folder in (default_folder, embedded_source(DEFAULT_RELEASE)):
        made = tmp_path / "models" / folder.name
        # A cache of long standing has the code files of its day.
        names = [{one.name for one in kept.iterdir() if one.suffix != ".py"} for kept in (made, folder)]
        names = [found - {".hashes.json"} for found in names]  # nor has it this
        assert names[0] == names[1]
        assert hash_file(made / "model.safetensors") == hash_file(folder / "model.safetensors")

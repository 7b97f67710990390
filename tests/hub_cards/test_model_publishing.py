"""A trained model, published on the loopback Hub and loaded by processes that know nothing of this package."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

from modeling_tsarank import TSARankModel, TwolarModel, hub_cards, load_ranker
from modeling_tsarank.cli import main
from modeling_tsarank.hub_cards import uploading
from modeling_tsarank.hub_cards.model_publishing import ModelOptions, _model_info, prepare_model
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError


CARD_QUERY = "how long does a flea live"
CARD_DOCUMENTS = ["An adult flea lives for two to three months.", "The flea market opens every Sunday at eight."]
QUERY, DOCUMENTS = "ship bee", ["bread yeast oven", "a harbour ship", "snow melt snow melt snow"]

READER = """
import importlib.util, json, sys
for name in ("modeling_tsarank", "peft", "sentence_transformers", "datasets"):
    assert importlib.util.find_spec(name) is None, name
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, pipeline

query, documents = json.loads(sys.argv[1])
found = {}
for repo in sys.argv[2:]:
    model = AutoModel.from_pretrained(repo, revision="v1", trust_remote_code=True)
    piped = pipeline("text-ranking", model=repo, revision="v1", trust_remote_code=True)
    plain_class = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    found[repo] = {
        "scores": model.predict([(query, document) for document in documents]).tolist(),
        "piped": piped({"query": query, "documents": documents}, return_documents=False),
        "plain": type(plain_class.from_pretrained(repo, revision="v1")).__module__,
    }
print(json.dumps(found))
"""
SNIPPETS = """
import contextlib, io, json, re, sys
from huggingface_hub import hf_hub_download

outputs = {}
for repo in sys.argv[1:]:
    card = open(hf_hub_download(repo, "README.md", revision="v1"), encoding="utf-8").read()
    outputs[repo] = []
    for block in re.findall(r"```python\\n(.*?)```", card, re.DOTALL):
        assert "revision=" in block
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile(block, "card", "exec"), {"__name__": "__main__"})
        outputs[repo].append(output.getvalue())
print(json.dumps(outputs))
"""
LOADER = """
import json, sys
from modeling_tsarank import load_ranker

query, documents = json.loads(sys.argv[2])
ranker = load_ranker(sys.argv[1], revision="v1", device="cpu", dtype="float32")
print([row["score"] for row in ranker.rank(query, documents)])
"""
UPLOAD_BASE = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("alice/base")
print(HfApi().upload_folder(repo_id="alice/base", folder_path=sys.argv[1]).oid)
"""
FAMILIES = {"alice/tsarank": TSARankModel, "alice/twolar": TwolarModel}


def test_round_trips_and_the_snippets_of_every_card(
    trained: Any, base_folder: Path, publish: Any, in_process: Any, hub: Any, clean_python: Path
) -> None:
    models = {}
    for repo, cls in FAMILIES.items():
        folder = trained(repo.partition("/")[2])
        done = publish("model", folder, repo, "--license", "apache-2.0", "--language", "en")
        assert done.stdout == f"published as v1: {hub.url}/{repo}/tree/v1\n"
        models[repo] = cls.from_pretrained(folder)
        _check_repository(hub, repo, folder)
    commit = in_process(UPLOAD_BASE, str(base_folder)).split()[-1]
    _publish_adapter(publish, hub, trained("adapter"), commit)

    output = in_process(READER, json.dumps([QUERY, DOCUMENTS]), *FAMILIES, python=clean_python, cache="reader")
    for repo, read in json.loads(output.splitlines()[-1]).items():
        expected = models[repo].predict([(QUERY, document) for document in DOCUMENTS])
        assert len(set(expected.tolist())) == 3
        np.testing.assert_array_equal(np.float32(read["scores"]), expected)
        assert {row["corpus_id"]: np.float32(row["score"]) for row in read["piped"]} == dict(enumerate(expected))
        assert read["plain"].startswith("transformers.models.")

    outputs = json.loads(in_process(SNIPPETS, *FAMILIES, "alice/adapter", cache="snippets").splitlines()[-1])
    assert [len(found) for found in outputs.values()] == [4, 4, 4]
    for repo, model in models.items():
        pairs = [(CARD_QUERY, document) for document in CARD_DOCUMENTS]
        # tsarank's own loader, in the last snippet, takes bfloat16 where the processor has it.
        found = [model.predict(pairs)] * 3 + [load_ranker(str(trained(repo.partition("/")[2]))).predict(pairs)]
        for text, expected in zip(outputs[repo], found, strict=True):
            assert all(_has(text, score) for score in expected), (text, expected)
    adapter = [set(re.findall(r"-\d+\.\d{3}", text)) for text in outputs["alice/adapter"][:3]]
    assert adapter[0]
    assert adapter[0] == adapter[1] == adapter[2]
    assert outputs["alice/adapter"][3].startswith("['default']")
    # By its name alone: its base and how it ranks are recorded.
    loaded = in_process(LOADER, "alice/adapter", json.dumps([CARD_QUERY, CARD_DOCUMENTS]), cache="loader")
    assert set(re.findall(r"-\d+\.\d{3}", loaded.splitlines()[-1])) == adapter[0]


def _check_repository(hub: Any, name: str, folder: Path) -> None:
    repo = hub.store.repo("model", name)
    head = repo["branches"]["main"]
    assert repo["private"] is True
    assert repo["tags"] == {"v1": head}
    assert len(hub.store.history(head)) == 2, "one commit upon the Hub's own first one"
    files = hub.store.files(head)
    assert {"README.md", "model.safetensors", "tokenizer.json", "modules.json", "training_run.json"} <= set(files)
    assert not {"training_args.bin", "trainer_state.json", "adapter/adapter_config.json"} & set(files)
    for path, entry in files.items():
        assert str(folder.parent).encode() not in hub.store.content(entry), f"{path} names a folder of this machine"


def _publish_adapter(publish: Any, hub: Any, folder: Path, base_commit: str) -> None:
    refused = publish("model", folder, "alice/adapter", check=False)
    assert refused.returncode == 2
    assert "--adapter-only" in refused.stderr
    publish(
        *("model", folder, "alice/adapter", "--license", "apache-2.0"),
        *("--adapter-only", "--base-model", "alice/base"),
    )
    main = hub.store.files(hub.store.resolve("model", "alice/adapter", "main"))
    config = json.loads(hub.store.content(main["adapter_config.json"]))
    assert (config["base_model_name_or_path"], config["revision"]) == ("alice/base", base_commit)
    assert "model.safetensors" not in main


def _has(text: str, score: float) -> bool:
    """Whether a printed number is that score, to the digits in which batches may differ."""
    return any(abs(float(found) - score) < 1e-3 for found in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text))


# ---- one commit, or none ---------------------------------------------------------------------------


def in_shards(folder: Path, target: Path, size: int) -> Path:
    """A copy of a model's folder whose weights are in files of at most `size` bytes."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("model.safetensors"))
    save_torch_state_dict(load_file(folder / "model.safetensors"), target, max_shard_size=size)
    return target


def test_a_killed_upload_leaves_nothing_half_and_goes_on(
    trained: Any, hub: Any, publish: Any, hub_environment: Any, tmp_path: Path
) -> None:
    folder = in_shards(trained("tsarank"), tmp_path / "model", 60_000)
    arguments = ("model", str(folder), "alice/ranker", "--license", "mit")
    arrived = threading.Event()
    # The third shard hangs on its way; the process is killed there.
    fault = hub.fail("PUT", "/cdn/", arrived, skip=2)
    process = forked.begin(lambda: main(["publish", *arguments]), hub_environment(), tmp_path)
    assert arrived.wait(120), "the upload ended before it could be killed"
    process.kill()
    process.join()
    fault.release.set()
    repo = hub.store.repo("model", "alice/ranker")
    assert set(hub.store.files(repo["branches"]["main"])) == {".gitattributes"}, "half a model is visible"
    assert repo["tags"] == {}
    time.sleep(0.5)
    puts, uploaded = hub.count("PUT", "/cdn/"), hub.bytes_uploaded
    assert uploaded > 0
    publish(*arguments)
    files = hub.store.files(hub.store.resolve("model", "alice/ranker", "v1"))
    shards = {name: entry for name, entry in files.items() if name.endswith(".safetensors")}
    assert len(shards) > 3
    stored = sum(entry.size for entry in files.values() if entry.lfs)
    assert hub.bytes_uploaded == stored, "something was uploaded twice"
    assert hub.count("PUT", "/cdn/") - puts < len(shards)


def test_faults_on_the_way_are_survived(trained: Any, hub: Any, publish: Any) -> None:
    faults = [
        hub.fail("GET", "/api/models/alice/ranker$", 503),
        hub.fail("PUT", "/cdn/", "cut"),
        hub.fail("POST", "/preupload/", 502),
        hub.fail("POST", "/commit/", 500),
        hub.fail("POST", "/tag/", "drop"),
    ]
    publish("model", trained("tsarank"), "alice/ranker", "--license", "mit")
    assert [fault.times for fault in faults] == [0] * 5
    head = hub.store.repo("model", "alice/ranker")["branches"]["main"]
    assert len(hub.store.history(head)) == 2
    assert hub.store.resolve("model", "alice/ranker", "v1") == head


def test_a_commit_whose_answer_is_lost_is_not_made_twice(trained: Any, hub: Any, publish: Any) -> None:
    fault = hub.fail("POST", "/commit/", "lost")
    publish("model", trained("tsarank"), "alice/ranker", "--license", "mit")
    assert fault.times == 0
    head = hub.store.repo("model", "alice/ranker")["branches"]["main"]
    assert len(hub.store.history(head)) == 2


def test_a_hub_that_is_down_is_one_line(trained: Any, hub: Any, publish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "FIRST_WAIT", 0.01)
    hub.fail("POST", "/commit/", 503, times=99)
    done = publish("model", trained("tsarank"), "alice/ranker", "--license", "mit", check=False)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("tsarank: error:")]
    assert len(errors) == 1
    assert "run the same command again" in errors[0]
    assert set(hub.store.files(hub.store.resolve("model", "alice/ranker", "main"))) == {".gitattributes"}


def test_publishing_again(trained: Any, hub: Any, publish: Any, tmp_path: Path) -> None:
    folder, shards = trained("tsarank"), in_shards(trained("tsarank"), tmp_path / "model", 100_000)
    publish("model", shards, "alice/ranker", "--license", "mit")
    again = publish("model", shards, "alice/ranker", "--license", "mit")
    assert "already up to date" in again.stdout
    # Another content under the same tag is refused; a new tag makes a commit, which takes the old shards out.
    refused = publish("model", folder, "alice/ranker", "--license", "mit", check=False)
    assert refused.returncode == 2
    assert "give this version another --tag" in refused.stderr
    publish("model", folder, "alice/ranker", "--license", "mit", "--tag", "v2")
    repo = hub.store.repo("model", "alice/ranker")
    assert set(repo["tags"]) == {"v1", "v2"}
    assert len(hub.store.history(repo["branches"]["main"])) == 3
    first, second = (hub.store.files(repo["tags"][tag]) for tag in ("v1", "v2"))
    assert any(name.startswith("model-00001-of-") for name in first)
    assert {name for name in second if "safetensors" in name} == {"model.safetensors"}


def test_visibility_and_tokens(trained: Any, hub: Any, publish: Any) -> None:
    folder = trained("tsarank")
    for token, message in (
        (None, "no Hub token"),
        ("hf_nobody", "rejected the token"),
        ("hf_loopback_reader", "has no write access"),
        ("hf_loopback_stranger", "has no write access"),
    ):
        done = publish("model", folder, "alice/ranker", "--license", "mit", check=False, token=token)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
    publish("model", folder, "alice/ranker", "--license", "mit", "--public")
    assert hub.store.repo("model", "alice/ranker")["private"] is False
    done = publish("model", folder, "alice/ranker", "--license", "mit", "--tag", "v2", check=False)
    assert done.returncode == 2
    assert "exists and is public" in done.stderr


TRAINER = """
import sys
from modeling_tsarank import TSARankModel
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

rows = [{"query": "ship", "positives": ["harbour"], "negatives": ["snow", "bee"]}] * 8
args = RankingSFTConfig("out", use_cpu=True, max_steps=2, num_negatives=2, trainable="lora", save_strategy="steps",
    save_steps=1, push_to_hub=True, hub_model_id="alice/trained", report_to="none")
model = TSARankModel.from_backbone(sys.argv[1], max_length=120, max_query_length=30)
trainer = RankingSFTTrainer(model, args, rows)
trainer.train()
print(trainer.push_to_hub())
trainer.create_model_card()
"""


@pytest.mark.slow
def test_a_trainer_publishes_the_same_card(base_folder: Path, hub: Any, in_process: Any, tmp_path: Path) -> None:
    output = in_process(TRAINER, str(base_folder)).splitlines()
    repo = hub.store.repo("model", "alice/trained")
    head = repo["branches"]["main"]
    assert output[-1] == f"{hub.url}/alice/trained/commit/{head}"
    assert repo["private"] is True
    assert len(hub.store.history(head)) == 2
    (tag,) = repo["tags"]
    assert tag.startswith("run-")
    files = hub.store.files(head)
    card = hub.store.content(files["README.md"]).decode()
    assert f'AutoModel.from_pretrained("alice/trained", revision="{tag}", trust_remote_code=True)' in card
    assert "## Training\n\n### 1. Fine-tuning" in card
    assert "license: unknown" in card
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == card
    assert not any("optimizer" in name or name.startswith("checkpoint-") for name in files)


def test_a_hub_that_cannot_be_reached_is_named_as_such(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ResourceError, match="cannot be reached to look up org/base; give --license"):
        _model_info("org/base", "--license", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="has no information on org/base"):
        _model_info("org/base", "--license", None)


def test_an_adapter_that_stands_on_another_release_is_not_published_alone() -> None:
    folder = Path(hub_cards.__file__).parent / "releases" / "twolar-smollm2-135m-v2"
    with pytest.raises(ModelError, match="an adapter on another release"):
        prepare_model(folder, "alice/ranker", ModelOptions(adapter_only=True, license="mit"))

"""Cards claim what is so: what is pinned, which results there are; and a preview names what would be refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from modeling_tsarank import InputError
from modeling_tsarank.hub_cards.dataset_publishing import prepare_dataset
from modeling_tsarank.hub_cards.model_facts import EVALUATIONS, release_evaluations
from modeling_tsarank.hub_cards.model_publishing import ModelOptions, prepare_model
from modeling_tsarank.hub_cards.space_publishing import prepare_metric, prepare_space
from modeling_tsarank.models.embedded_models import embedded_checkpoint, embedded_source, releases


ROOT = Path(__file__).parent.parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RELEASES = sorted(releases())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"query": "q", "document": "d"}\n')
    return folder


def test_no_card_says_that_a_movable_tag_is_pinned(trained: Any, make_ranker: Any, rows: Path, tmp_path: Path) -> None:
    ranker = make_ranker("tsarank")
    ranker.backbone.save_pretrained(tmp_path / "plain")
    ranker.tokenizer.save_pretrained(tmp_path / "plain")
    options = ModelOptions(license="mit")
    adapter = replace(options, base_model="org/base", base_revision=COMMIT, adapter_only=True)
    cards = {
        "ranker": prepare_model(trained("tsarank"), "alice/x", options),
        "true/false": prepare_model(trained("twolar"), "alice/x", options),
        "plain": prepare_model(tmp_path / "plain", "alice/x", options),
        "adapter": prepare_model(trained("adapter"), "alice/x", adapter),
        "dataset": prepare_dataset(rows, "alice/x", license="mit"),
        "metric": prepare_metric("alice/x"),
        "space": prepare_space("alice/x", app=ROOT / "app.py"),
    }
    for name, publication in cards.items():
        text = publication.card.partition("\n---\n")[2]
        assert "pinned" not in text, name
        if "`trust_remote_code=True` is said" in text or "runs the file" in text:
            assert "can\nmove: " in text or "owner can move: " in text, name
    assert f'revision="{COMMIT}"' in cards["adapter"].card


@pytest.mark.parametrize("revision", [None, "main", "v1", "0123456789abcdef"])
def test_an_adapters_base_has_a_commit_or_is_refused(trained: Any, revision: str | None) -> None:
    options = ModelOptions(license="mit", base_model="org/base", base_revision=revision, adapter_only=True)
    preview = prepare_model(trained("adapter"), "alice/x", options)
    assert ['revision="COMMIT"' in preview.card, len(preview.refusals)] == [True, 1]
    with pytest.raises(InputError, match="--base-revision COMMIT"):
        preview.carry_out()


def test_a_bases_branch_becomes_the_commit_it_stands_for(
    trained: Any, base_folder: Path, publish: Any, in_process: Any, hub: Any
) -> None:
    upload = (
        "import sys\nfrom huggingface_hub import HfApi\nHfApi().create_repo('alice/base')\n"
        "print(HfApi().upload_folder(repo_id='alice/base', folder_path=sys.argv[1]).oid)"
    )
    commit = in_process(upload, str(base_folder)).split()[-1]
    said = ("--license", "mit", "--adapter-only", "--base-model", "alice/base", "--base-revision", "main")
    card = publish("model", trained("adapter"), "alice/adapter", *said, "--dry-run").stdout
    assert f'revision="{commit}"' in card
    assert 'revision="main"' not in card


@pytest.mark.parametrize("name", RELEASES)
def test_a_published_release_shows_its_results(name: str) -> None:
    publication = prepare_model(embedded_source(name), "alice/release", ModelOptions())
    card = publication.card
    assert "none is claimed" not in card
    shown = {
        one.dataset_name: one.metric_value
        for one in ModelCard(card).data.eval_results
        if one.metric_type == "ndcg_at_10"
    }
    own = {
        one.dataset_name: one.metric_value
        for one in ModelCard.load(releases()[name].folder / "README.md").data.eval_results
        if one.metric_type == "ndcg_at_10"
    }
    assert shown == own
    assert len(shown) == len(json.loads((releases()[name].folder / EVALUATIONS).read_text(encoding="utf-8"))) > 0
    assert publication.refusals == []


@pytest.mark.parametrize("name", RELEASES)
def test_the_results_of_a_release_are_those_that_were_measured(name: str) -> None:
    found = json.loads((releases()[name].folder / EVALUATIONS).read_text(encoding="utf-8"))
    measured = sorted((ROOT / "benchmarks" / "results").glob(f"*/{name}/metrics.json"))
    assert found == [json.loads(path.read_text(encoding="utf-8")) for path in measured]
    assert {one["checkpoint"] for one in found} == {embedded_checkpoint(name)}
    assert release_evaluations(releases()[name].folder) == [], "the folder of the adapter is not the merged model"


@pytest.mark.parametrize("name", RELEASES)
def test_every_teacher_of_a_release_is_named_wherever_its_results_are(name: str) -> None:
    """As the training's own record has them, those of the stages before included, each with what it learned from."""
    folder = releases()[name].folder
    stage = json.loads((folder / "training_run.json").read_text(encoding="utf-8"))
    teachers = {}
    while stage:
        teachers |= {one["name"]: one["trained_on"] for one in stage["data"].get("teachers") or []}
        stage = (stage.get("started_from") or {}).get("training")
    assert teachers
    card = (folder / "README.md").read_text(encoding="utf-8").replace("\\_", "_")
    for teacher, learned_from in teachers.items():
        assert f"| Teacher | {teacher}, trained on {learned_from}" in card
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md"):
        text = page.read_text(encoding="utf-8")
        if name in re.findall(r"[\w.-]+", text):
            assert all(teacher.rpartition("/")[2] in text for teacher in teachers), page.name


def test_the_command_shows_a_releases_results(publish: Any) -> None:
    done = publish("model", "twolar-smollm2-135m-v2", "alice/release", "--dry-run", token=None)
    assert re.search(r"\| trec-dl-19 \(test\) \| 43 \| bm25\.top100 \| top 100 \| 0\.5058 \| 0\.6788 \|", done.stdout)
    assert "will fail" not in done.stdout


def test_a_dry_run_previews_without_a_licence_and_names_it(
    trained: Any, rows: Path, publish: Any, hub: Any, tmp_path: Path
) -> None:
    for what in (("model", trained("tsarank")), ("dataset", rows)):
        done = publish(*what, "alice/x", "--dry-run", "--card", "card.md", token=None)
        assert "the real run will fail because:\n  the license is not recorded; give --license" in done.stdout
        assert "license: unknown" in done.stdout
        assert "The license is not known." in done.stdout
        assert "license: unknown" in (tmp_path / "card.md").read_text(encoding="utf-8")
        real = publish(*what, "alice/x", check=False)
        assert real.returncode == 2
        assert "the license is not recorded" in real.stderr
        named = publish(*what, "alice/x", "--dry-run", "--license", "mit", token=None)
        assert "will fail" not in named.stdout
    # The Hub knows nothing of the base model, or cannot be reached.
    said = ("model", trained("tsarank"), "alice/x", "--base-model", "alice/nothing", "--dry-run")
    assert "the real run will fail because:\n  the Hub has no information on alice/nothing" in publish(*said).stdout
    done = publish(*said, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the real run will fail because:\n  the Hub cannot be reached" in done.stdout

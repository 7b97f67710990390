"""Cards: every fact in its place, no place empty, valid metadata, nothing that was not recorded."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from loopback_metadata import validate_card

from modeling_tsarank import InputError, ModelError, TwolarModel
from modeling_tsarank.files.hashes import hash_folder
from modeling_tsarank.files.templates import cell, duration, line, number, render
from modeling_tsarank.hub_cards.model_cards import render_model_card
from modeling_tsarank.hub_cards.model_facts import ModelFacts, read_evaluations, read_model
from modeling_tsarank.hub_cards.model_publishing import ModelOptions, prepare_model, select_model_files
from modeling_tsarank.modeling_twolar import LogitOptions
from modeling_tsarank.scores import RAW_SCORES
from modeling_tsarank.scores.calibration import Calibration


RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"
METRICS = RESULTS / "trec-dl-19" / "tsarank-smollm2-135m" / "metrics.json"


def check_card(card: str) -> dict[str, Any]:
    """The metadata of a card, after what must hold of any: valid, every snippet pinned, nothing empty or left over."""
    data, errors = validate_card(card)
    assert errors == []
    assert data is not None
    body = card.split("---", 2)[2]
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    for sign in ("{{", "{%", "None", "Undefined", " nan", "()", "``  ``"):
        assert sign not in prose, f"{sign!r} is on the card"
    for heading, text in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", body, re.MULTILINE | re.DOTALL):
        assert text.strip(), f"nothing stands under {heading}"
    for row in re.findall(r"^\|.*\|$", body, re.MULTILINE):
        cells = [part.strip() for part in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert all(cells) or set(cells) == {""}, row
    tables = re.findall(r"(?:^\|.*\|\n)+", body, re.MULTILINE)
    assert tables
    for table in tables:
        widths = {len(re.split(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table
    for block in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
        compile(block, "card", "exec")
        assert all("revision=" in found for found in re.findall(r'from_pretrained\("\w+/[^)]*\)', block))
    return data


def evaluation_of(folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """A real result of `tsarank evaluate`, as if it had been measured on `folder`."""
    values = json.loads(METRICS.read_text(encoding="utf-8"))
    values |= {"checkpoint": f"sha256:{hash_folder(folder)[:16]}", **changes}
    path = tmp_path / "results" / str(values["dataset"])
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.json").write_text(json.dumps(values), encoding="utf-8")
    return path.parent


@pytest.mark.parametrize("kind", ["tsarank", "twolar"])
def test_the_card_of_a_trained_ranker(trained: Any, tmp_path: Path, kind: str) -> None:
    folder = trained(kind)
    results = evaluation_of(folder, tmp_path)
    evaluation_of(folder, tmp_path, dataset="scifact", limit_queries=10)
    options = ModelOptions(license="apache-2.0", languages=["en"], base_model="org/base", results=[results])
    card = prepare_model(folder, "alice/ranker", options).card
    data = check_card(card)
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "org/base"
    assert data["base_model_relation"] == "finetune"
    assert data["pipeline_tag"] == "text-ranking"
    assert data["library_name"] == "transformers"
    assert {"text-ranking", "tsarank"} <= set(data["tags"])
    parsed = ModelCard(card).data
    assert parsed.model_name == "ranker"
    shown = {(r.dataset_type, r.metric_type): r.metric_value for r in parsed.eval_results or []}
    assert shown[("trec-dl-19", "ndcg_at_10")] == pytest.approx(0.6031, abs=1e-4)
    assert ("BeIR/scifact", "ndcg_at_10") in shown
    assert "| trec-dl-19 (test) | 43 | bm25.top100 | top 100 | 0.5058 | 0.6031 |" in card
    assert "scifact: only the first 10 judged queries." in card
    record = json.loads((folder / "training_run.json").read_text())
    for value in (record["finished"], record["hardware"]["device"], "2 steps"):
        assert line(value) in card
    for name, value in record["settings"].items():
        shown_value = str(value).lower() if isinstance(value, bool) else str(value)
        assert f"| {name} | {cell(shown_value)} |" in card
    cited = "baldelli2024twolar" if kind == "twolar" else "zhang2024twostage"
    assert cited in card


def test_the_card_of_an_adapter(trained: Any) -> None:
    options = ModelOptions(license="mit", base_model="org/base", base_revision="0" * 40, adapter_only=True)
    publication = prepare_model(trained("adapter"), "alice/adapter", options)
    data = check_card(publication.card)
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft"
    assert publication.card.count(f'revision="{"0" * 40}"') == 7
    with pytest.raises(InputError, match="with a base on the Hub"):
        prepare_model(trained("adapter"), "a/b", replace(options, base_model=None, base_revision=None))


def test_the_card_of_a_ranker_that_nobody_trained(make_ranker: Any, tmp_path: Path) -> None:
    make_ranker("tsarank").save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match="--license"):
        prepare_model(tmp_path / "plain", "alice/plain").check()
    card = prepare_model(tmp_path / "plain", "alice/plain", ModelOptions(license="mit")).card
    check_card(card)
    assert "No training is recorded" in card
    assert "none is claimed" in card


def test_a_chain_of_trainings_leads_to_the_first_base(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "chained"
    shutil.copytree(trained("tsarank"), folder)
    record = json.loads((folder / "training_run.json").read_text())
    first = {**record, "kind": "cpt", "ranking_options": None}
    first["started_from"] = {"name": "org/first", "license": "mit", "local": False, "training": None}
    first["data"] = {**record["data"], "name": "org/pairs", "rows": 1234567}
    record["started_from"] = {"name": "cpt-model", "license": None, "local": True, "training": first}
    evaluations = [{"eval_loss": 0.51234, "eval_ndcg@10": 0.4, "eval_runtime": 3.0, "step": 1}]
    record |= {"evaluations": evaluations, "resumed_from_step": 1}
    (folder / "training_run.json").write_text(json.dumps(record))
    card = prepare_model(folder, "alice/chained").card
    data = check_card(card)
    assert data["base_model"] == "org/first"
    assert data["license"] == "mit"
    assert data["datasets"] == ["org/pairs"]
    assert card.index("### 1. Continual pre-training") < card.index("### 2. Fine-tuning")
    assert "| Rows | 1,234,567 |" in card
    assert "| step | loss | ndcg@10 |" in card
    assert "(since it was resumed at step 1)" in card


def test_a_card_names_teacher_and_leakage_check_as_the_data_recorded_them(
    make_ranker: Any, distill_rows: Any, tmp_path: Path
) -> None:
    from modeling_tsarank.trainers.data.provenance import write_provenance
    from modeling_tsarank.trainers.distill_config import RankingDistillConfig
    from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
    from modeling_tsarank.trainers.training_record import describe_data

    lists, output = tmp_path / "lists", tmp_path / "model"
    (lists / "data").mkdir(parents=True)
    teachers = [{"name": "all_mini|LM", "trained_on": "MS MARCO"}, {"name": "big", "trained_on": None}]
    checked = {"checked_against": {"sci_fact": {"queries": 300, "documents": 5183}}, "found": {"near_query:x": 7}}
    write_provenance(lists, "distillation_lists", {"teachers": teachers, "leakage": checked})
    args = RankingDistillConfig(
        output_dir=str(output), use_cpu=True, disable_tqdm=True, max_steps=1, save_strategy="no", num_documents=3
    )
    trainer = RankingDistillTrainer(make_ranker("twolar_t5"), args, distill_rows)
    trainer.data_source = describe_data(str(lists / "data"))
    trainer.train()
    trainer.save_model()
    results = evaluation_of(output, tmp_path)
    card = prepare_model(output, "alice/x", ModelOptions(license="mit", results=[results])).card
    check_card(card)
    named = "all\\_mini\\|LM, trained on MS MARCO; big, trained on data that are not recorded"
    assert f"| Teacher | {named} |" in card
    assert "sci\\_fact (300 queries, 5,183 documents) left out: 7 found |" in card
    assert named in card[card.index("## Evaluation") : card.index("## Limits")]


def test_a_card_says_where_teacher_and_leakage_check_are_not_recorded(trained: Any, tmp_path: Path) -> None:
    card = prepare_model(trained("twolar"), "alice/x", ModelOptions(license="mit")).card
    assert "| Teacher | not recorded |" in card
    assert "| Leakage check | not recorded" in card
    folder = shutil.copytree(trained("tsarank"), tmp_path / "old")
    record = json.loads((folder / "training_run.json").read_text())
    del record["data"]["teachers"], record["data"]["leakage"]  # as earlier versions wrote it
    (folder / "training_run.json").write_text(json.dumps(record))
    assert "| Teacher |" not in prepare_model(folder, "alice/x", ModelOptions(license="mit")).card
    record["settings"]["teacher_weight"] = 0.5
    (folder / "training_run.json").write_text(json.dumps(record))
    card = prepare_model(folder, "alice/x", ModelOptions(license="mit")).card
    assert "| Teacher | not recorded |" in card
    assert "| Leakage check | not recorded" in card


@pytest.mark.parametrize(
    ("objectives", "teachers", "named"),
    [
        (["listwise_softmax:0.5", "listnet:0.5"], None, "not recorded"),
        (["listnet"], [{"name": "big", "trained_on": "MS MARCO"}], "big, trained on MS MARCO"),
        (["ranknet:1"], [{"name": "big", "trained_on": "MS MARCO"}], "big, trained on MS MARCO"),
        (["ranknet:1"], None, None),
        (["listwise_softmax", "next_token"], [{"name": "big", "trained_on": None}], None),
    ],
)
def test_a_card_names_the_teacher_of_objectives(
    objectives: list[str], teachers: Any, named: str | None, trained: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained("tsarank"), tmp_path / "mixed")
    record = json.loads((folder / "training_run.json").read_text())
    for name in ("alpha", "ntp", "dp", "teacher_weight", "loss"):
        record["settings"].pop(name, None)
    record["settings"]["objectives"], record["data"]["teachers"] = objectives, teachers
    (folder / "training_run.json").write_text(json.dumps(record))
    card = prepare_model(folder, "alice/x", ModelOptions(license="mit")).card
    assert ("| Teacher |" in card) == (named is not None)
    assert named is None or f"| Teacher | {named} |" in card


def test_results_of_another_checkpoint_are_refused(trained: Any, tmp_path: Path) -> None:
    folder = trained("tsarank")
    results = evaluation_of(folder, tmp_path, checkpoint="sha256:0123456789abcdef")
    with pytest.raises(InputError, match="was measured on sha256:0123456789abcdef"):
        read_evaluations([results], folder)
    assert len(read_evaluations([results], folder, other_checkpoint=True)) == 1
    with pytest.raises(InputError, match=r"contains no metrics\.json"):
        read_evaluations([tmp_path / "results" / "trec-dl-19" / "nothing"], folder)


def test_what_is_no_model_is_refused(tmp_path: Path, trained: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        prepare_model(tmp_path / "empty", "alice/x", ModelOptions(license="mit"))
    pickled = tmp_path / "pickled"
    shutil.copytree(trained("tsarank"), pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights in safetensors"):
        prepare_model(pickled, "alice/x", ModelOptions(license="mit"))
    broken = tmp_path / "broken"
    shutil.copytree(trained("tsarank"), broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(ModelError, match="not a readable safetensors"):
        prepare_model(broken, "alice/x", ModelOptions(license="mit"))
    for repo_id in ("nameless", "a/b/c", "alice/..x", "alice/x y"):
        with pytest.raises(InputError):
            prepare_model(trained("tsarank"), repo_id, ModelOptions(license="mit")).check()


def test_a_folder_from_before_modules_json_gets_it(trained: Any, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(trained("twolar"), folder)
    for name in ("modules.json", "config_sentence_transformers.json", "crossencoder_tsarank.py"):
        (folder / name).unlink()
    publication = prepare_model(folder, "alice/old", ModelOptions(license="mit"))
    assert {
        "modules.json",
        "config_sentence_transformers.json",
        "crossencoder_tsarank.py",
    } <= publication.selection.paths
    assert not (folder / "modules.json").exists(), "the folder itself is left as it is"


@pytest.mark.parametrize("template", ["{query} {document} Relevant:", "{document} {query} Relevant:"])
@pytest.mark.parametrize("decoder_only", [True, False])
def test_a_true_false_card_says_whether_document_states_can_be_cached(template: str, decoder_only: bool) -> None:
    config = {"is_encoder_decoder": not decoder_only, "model_type": "x"}
    options = LogitOptions(template=template).to_dict()
    facts = ModelFacts(Path("x"), config, TwolarModel, options, False, None, None, parameters=1, dtype="F32")
    card = render_model_card(facts, "alice/x", "v1", "mit")
    shared = decoder_only and template.startswith("{document}")
    assert ("its cached states serve" in card) is shared
    assert ("Every pair is encoded" in card) is not shared


def test_names_that_would_break_a_card_do_not(trained: Any) -> None:
    facts = read_model(trained("tsarank"), "org/base")
    assert facts.training is not None
    facts.training["data"]["name"] = "rows | `x` <b>\n# not a heading.jsonl"
    card = render_model_card(facts, "alice/x", "v1", "mit")
    check_card(card)
    assert "\n# not a heading" not in card


def test_a_calibration_is_published_and_its_error_said(trained: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(trained("tsarank"), tmp_path / "calibrated")
    facts = read_model(folder, "org/base")
    assert "output=" not in render_model_card(facts, "alice/x", "v1", "mit")
    origin = {"held_out": {"platt": {"expected_calibration_error": 0.0312, "brier": 0.1}}}
    Calibration("platt", "none", (1.0, 0.0), origin=origin).save(folder / "calibration.json")
    card = render_model_card(facts, "alice/x", "v1", "mit")
    check_card(card)
    assert RAW_SCORES in card
    assert 'output="probability"' in card
    assert "error on held-out queries is 0.031." in card
    assert "calibration.json" in select_model_files(facts).paths
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match="there is no field 'method'"):
        render_model_card(facts, "alice/x", "v1", "mit")


def test_an_empty_fact_is_an_error() -> None:
    with pytest.raises(InputError, match="empty"):
        render(
            "modeling_tsarank.hub_cards", "space_card.md", metadata="x", title="x", model_text="", tsarank_version="1"
        )
    with pytest.raises(InputError, match="model_text"):
        render("modeling_tsarank.hub_cards", "space_card.md", metadata="x", title="x", tsarank_version="1")


@pytest.mark.parametrize(("seconds", "text"), [(0.28, "0.3 s"), (75, "1 min 15 s"), (7322, "2 h 2 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert number(1234567) == "1,234,567"
    assert cell("a|b`c") == "``a\\|b`c``"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "alchemy"},
        {"kind": ["sft"]},
        {"data": None},
        {"data": {}},
        {"trained": {"part": "nothing", "parameters": 1, "of": 2}},
        {"steps": "many"},
        {"settings": []},
        {"started_from": 3},
        {"started_from": {"training": {}}},
        {"started_from": {"training": "yes"}},
        {"finished": None},
        None,
    ],
)
def test_a_training_record_of_another_shape_is_one_line_that_names_the_field(
    trained: Any, tmp_path: Path, change
) -> None:
    folder = shutil.copytree(trained("tsarank"), tmp_path / "model")
    path = folder / "training_run.json"
    path.write_text(json.dumps({} if change is None else {**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=r"training_run\.json is not a valid tsarank training record") as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)
    assert change is None or f"'{next(iter(change))}" in str(caught.value) or "started_from" in change

"""The small search: trainings one after another, measured on the development set."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from modeling_tsarank.eval.commands import register
from modeling_tsarank.modeling_tsarank import QueryLikelihoodOptions
from modeling_tsarank.modeling_twolar import LogitOptions
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.sft_config import RankingSFTConfig


GRIDS = Path(__file__).parents[3] / "trainers" / "recipes" / "smollm2_135m"


@pytest.fixture
def search(search_script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script with its commands run in this process: starting Python with torch takes longer than all the rest."""
    module = search_script
    module.calls = []

    def call(name: str, arguments: list[str], processes: int = 1) -> float:
        module.calls.append((name, arguments))
        started = time.monotonic()
        if importlib.import_module(name).main(arguments):
            raise ModelError(f"{name} ended with an error")
        return time.monotonic() - started

    monkeypatch.setattr(module, "call", call)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return module


@pytest.fixture
def grid(make_ranker: Callable[..., Any], tmp_path: Path) -> Path:
    ranker = make_ranker("tsarank")
    ranker.backbone.save_pretrained(tmp_path / "model")
    ranker.tokenizer.save_pretrained(tmp_path / "model")
    content = {
        "kind": "sft",
        "config": ["smollm2_135m/sft", "smollm2_135m/cpu/sft"],
        "options": {
            "model_name_or_path": str(tmp_path / "model"),
            "train_data": "$RELEASE/sft/all.jsonl",
            "max_steps": 2,
            "lora_top_blocks": 2,
            "save_steps": 1,
            "disable_tqdm": True,
            "ranking_options": {"max_length": 200, "max_query_length": 60},
        },
        "evaluate": {"device": "cpu"},
        "runs": {"start": {}, "steeper": {"temperature": 0.02, "dp": False}},
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_search_trains_measures_and_goes_on(search: Any, grid: Path, release: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    # The second training stops after its first checkpoint, as if the machine had gone down.
    inner = search.call

    def dying(name: str, arguments: list[str], processes: int) -> float:
        inner(name, arguments, processes)
        if "trainers.sft" in name and any("steeper" in word for word in arguments):
            raise KeyboardInterrupt
        return 1.0

    search.call = dying
    with pytest.raises(KeyboardInterrupt):
        search.search(grid, release, output)
    assert (output / "start" / "result.json").is_file()
    assert not (output / "steeper" / "result.json").exists()
    search.call, search.calls[:] = inner, []
    table = search.search(grid, release, output).read_text()
    # Only the unfinished run went on, from its checkpoint.
    assert [name.rpartition(".")[2] for name, _ in search.calls] == ["sft", "cli"]
    lines = table.splitlines()
    assert lines[0] == "| run | changed | answers | objects | texts | mean | training, min |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["first stage", "start", "steeper"]
    assert "dp False, temperature 0.02" in lines[4]
    results = json.loads((output / "results.json").read_text())
    assert [one["name"] for one in results] == ["start", "steeper"]
    for one in results:
        parts = [one["values"][name] for name in ("answers", "objects", "texts")]
        assert all(0 <= value <= 1 for value in parts)
        assert one["values"]["mean"] == pytest.approx(sum(parts) / 3)
        # The weights are gone, the adapter and the record stay.
        assert not (output / one["name"] / "model" / "model.safetensors").exists()
        assert (output / one["name"] / "model" / "adapter" / "adapter_model.safetensors").is_file()
    search.calls.clear()
    assert search.search(grid, release, output).read_text() == table
    assert search.calls == []
    content = yaml.safe_load(grid.read_text())
    content["runs"]["start"] = {"alpha": 0.5}
    grid.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="a run 'start' with other options"):
        search.search(grid, release, output)


def test_collections_take_the_place_of_the_development_set(
    search: Any, grid: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each over the first stage that the grid gives it, on its test split."""
    monkeypatch.setenv("TSARANK_DATA", str(tmp_path))
    for name in ("answers", "texts"):
        shutil.copytree(release / "dev" / name, tmp_path / "beir" / name)
        qrels = tmp_path / "beir" / name / "qrels"
        shutil.copyfile(qrels / "dev.tsv", qrels / "test.tsv")
    content = yaml.safe_load(grid.read_text())
    stages = {"$TSARANK_DATA/beir/answers": "bm25", "$TSARANK_DATA/beir/texts": "candidates"}
    runs = {"baselines": {"start": content["options"]["model_name_or_path"]}, "runs": {"trained": {"max_steps": 1}}}
    limits = {"evaluate": {"device": "cpu", "max_length": 200, "max_query_length": 60}}
    grid.write_text(yaml.safe_dump(content | runs | limits | {"collections": stages}))
    table = search.search(grid, release, tmp_path / "runs", search.Settings(only=("start",))).read_text()
    assert table.splitlines()[0] == "| run | changed | answers | texts | mean | training, min |"
    for name, stage in (("answers", "bm25"), ("texts", "candidates")):
        settings = json.loads((tmp_path / "runs" / "start" / "measured" / name / "settings.json").read_text())
        assert settings["split"] == "test"
        assert str(settings["first_stage"]).startswith(stage)
    again = search.search(grid, release, tmp_path / "runs", search.Settings(only=("trained",))).read_text()
    assert table.splitlines()[-1] in again, "a baseline that was measured before keeps its row"


def test_a_wrong_grid_is_one_line(search: Any, grid: Path, release: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(grid.read_text())
    for change, message in (
        ({"kind": "rl"}, "kind must be cpt, sft or distill"),
        ({"runs": {}}, "runs must give, by name"),
        ({"rnus": {}}, "unknown 'rnus'"),
        ({"baselines": {"start": "default"}}, "start is both a run and a baseline"),
        ({"collections": ["beir/cisi"]}, "collections must give the first stage of every dataset"),
    ):
        grid.write_text(yaml.safe_dump(content | change))
        with pytest.raises(InputError, match=message):
            search.search(grid, release, tmp_path / "runs")
    grid.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="has no development set"):
        search.search(grid, tmp_path, tmp_path / "runs")
    with pytest.raises(InputError, match="no run 'other'"):
        search.search(grid, release, tmp_path / "runs", search.Settings(only=("other",)))


@pytest.mark.parametrize("name", ["search", "search_distill", "ablations"])
def test_the_shipped_grids_hold_together(search_script: Any, name: str, tmp_path: Path) -> None:
    """Their options are ones that training and evaluation take, with the model's other limits as they are."""
    content = search_script.read_grid(GRIDS / f"{name}.yaml", tmp_path)
    options = [*content["options"], *(option for run in content["runs"].values() for option in run)]
    trained = {"sft": RankingSFTConfig, "distill": RankingDistillConfig}[content["kind"]]
    known = {field.name for field in dataclasses.fields(trained)}
    assert set(options) - known <= {"model_name_or_path", "train_data"}
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    words = search_script.arguments_of(content["evaluate"], dashes=True)
    args = parser.parse_args(["evaluate", "--dataset", "d", "--output", "o", *words])
    limits = {limit: getattr(args, limit) for limit in ("max_length", "max_query_length")}
    family = {"sft": QueryLikelihoodOptions, "distill": LogitOptions}[content["kind"]]
    family().override(**{limit: value for limit, value in limits.items() if value is not None})


def test_a_failing_command_stops_the_search(search_script: Any) -> None:
    with pytest.raises(ModelError, match="ended with status 2"):
        search_script.call("modeling_tsarank.cli", ["no-such-command"])


def test_a_command_runs_in_two_processes(search_script: Any, capfd: pytest.CaptureFixture[str]) -> None:
    search_script.call("platform", [], 2)
    assert capfd.readouterr().err.count("Linux") == 2

"""The shipped files of a release's recipe are understood and agree with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.recipe_files import RECIPES, read_recipe
from modeling_tsarank.trainers.recipes.judged import read_plan
from modeling_tsarank.trainers.recipes.release_data import Plan
from modeling_tsarank.trainers.script_arguments import (
    BaseModelArguments,
    DataArguments,
    RankerArguments,
    RerankingArguments,
)
from modeling_tsarank.trainers.script_utils import parse_arguments
from modeling_tsarank.trainers.sft_config import RankingSFTConfig


FOLDER = RECIPES / "smollm2_135m"
KINDS: dict[str, Any] = {
    "cpt": (BaseModelArguments, DataArguments, CPTConfig, RerankingArguments),
    "sft": (RankerArguments, DataArguments, RankingSFTConfig, RerankingArguments),
    "distill": (RankerArguments, DataArguments, RankingDistillConfig, RerankingArguments),
}


@pytest.mark.parametrize("size", ["cpu", "cpu_bf16", "gpu"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_stage_and_its_size_are_understood_and_do_not_overlap(kind: str, size: str, tmp_path: Path) -> None:
    stage, sized = read_recipe(FOLDER / f"{kind}.yaml"), read_recipe(FOLDER / size / f"{kind}.yaml")
    # A size may lengthen a training; the rest of the recipe is the same at every size.
    assert stage.keys() & sized.keys() <= {"num_train_epochs"}
    machine = ["--bf16", "false", "--use_cpu", "true", "--output_dir", str(tmp_path)]
    configs = ["--config", f"smollm2_135m/{kind}", "--config", f"smollm2_135m/{size}/{kind}"]
    _, data, training, _ = parse_arguments(KINDS[kind], [*configs, *machine], f"tsarank train {kind}", "")
    for option, value in {**stage, **sized}.items():
        if option not in ("bf16", "use_cpu", "save_strategy") and hasattr(training, option):
            assert getattr(training, option) == value, option
    assert data.train_data is None


def test_the_adapters_of_both_stages_fit_into_twenty_megabytes() -> None:
    # Llama's seven linear layers with the sizes of SmolLM2-135M: inputs and outputs together, times its blocks.
    ends = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    stages = [read_recipe(FOLDER / f"{kind}.yaml") for kind in ("cpt", "sft")]
    assert 2 * sum(stage["lora_r"] * ends * stage.get("lora_top_blocks", 30) for stage in stages) <= 20_000_000


def test_all_three_terms_are_in_the_release() -> None:
    sft = read_recipe(FOLDER / "sft.yaml")
    assert sft["ntp"] is sft["dp"] is True
    assert 0 < sft["alpha"] < 1


def test_the_shipped_plan_names_only_training_data(tmp_path: Path) -> None:
    plan = Plan(**read_plan(FOLDER / "data.yaml", tmp_path))
    weak = read_plan((FOLDER / plan.weak_recipe).resolve(), tmp_path)
    assert plan.leakage == [f"{tmp_path}/beir"]
    files = [name for source in plan.labelled for name in (*source.files, *source.dev_files)]
    assert files
    assert not any("test" in name or "scifact" in name for name in files)
    assert {one["type"] for one in weak["sources"]} == set(PAIR_TYPES)
    assert all(one["path"].startswith(f"{tmp_path}/weak_pairs/") for one in weak["sources"])
    # The brackets of the Treebank, which the plan's cleaning undoes.
    wikiqa = next(source for source in plan.labelled if source.name == "wikiqa").cleaner
    assert wikiqa._mend("-LRB- a , b -RRB- it 's $ 2", wikiqa._document) == "(a, b) it's $2"


def test_a_plan_whose_options_have_no_names_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("true: 1\n")
    with pytest.raises(InputError, match="expected options by name"):
        read_plan(plan, tmp_path)

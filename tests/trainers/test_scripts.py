"""The training scripts: recipes, parsing, real processes, kill and resume."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forked import begin, join
from safetensors.torch import load_file

from modeling_tsarank.modeling_twolar import LogitOptions, TwolarModel
from modeling_tsarank.models.loading import load_ranker
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers import cpt, distill, sft
from modeling_tsarank.trainers.base_models import load_base_ranker
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.early_checks import check_settings
from modeling_tsarank.trainers.recipe_files import ACCELERATE_RECIPES, RECIPES, find_recipe, recipe_names
from modeling_tsarank.trainers.script_arguments import (
    BaseModelArguments,
    DataArguments,
    RankerArguments,
    RerankingArguments,
)
from modeling_tsarank.trainers.script_utils import parse_arguments, run_script
from modeling_tsarank.trainers.sft_config import RankingSFTConfig


TRAINERS = Path(sft.__file__).parent
TYPES = {
    "cpt": (BaseModelArguments, DataArguments, CPTConfig, RerankingArguments),
    "sft": (RankerArguments, DataArguments, RankingSFTConfig, RerankingArguments),
    "distill": (RankerArguments, DataArguments, RankingDistillConfig, RerankingArguments),
}
SMALL = [
    *("--max_length", "120", "--max_query_length", "30", "--learning_rate", "1e-3", "--logging_steps", "1"),
    *("--disable_tqdm", "true", "--use_cpu", "true"),
]
# The tiny models read fewer tokens than a ranker's default.
CONTEXT = ["--ranking_options", '{"max_length": 200, "max_query_length": 60}']


def parse(kind: str, *arguments: str) -> Any:
    return parse_arguments(TYPES[kind], arguments, f"tsarank train {kind}", "")


def kind_of(recipe: str) -> str:
    return next(kind for kind in TYPES if kind in recipe)


@pytest.fixture(scope="session")
def files(
    make_ranker: Callable[..., Any],
    sft_rows: list[dict[str, Any]],
    distill_rows: list[dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with a plain model, data for the three trainings and a small collection."""
    folder = tmp_path_factory.mktemp("scripts")
    ranker = make_ranker("tsarank")
    ranker.backbone.save_pretrained(folder / "model")
    ranker.tokenizer.save_pretrained(folder / "model")
    pairs = [{"query": row["query"], "document": row["positives"][0]} for row in sft_rows]
    for name, rows in (("pairs", pairs), ("sft", sft_rows), ("distill", distill_rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection = folder / "collection"
    (collection / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "text": f"{row['document']} {row['query']}"} for i, row in enumerate(pairs)]
    queries = [{"_id": f"q{i}", "text": row["query"]} for i, row in enumerate(pairs[:5])]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (collection / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(5))]
    (collection / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TSARANK_CACHE": str(tmp_path / "cache"),
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "HF_HUB_OFFLINE": "1",
    }


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# ---- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_understood(name: str, tmp_path: Path) -> None:
    machine = ("--bf16", "false", "--use_cpu", "true", "--output_dir", str(tmp_path))
    _, data, training, _ = parse(kind_of(name), "--config", name, *machine)
    written = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    for option, value in written.items():
        if option not in ("bf16", "use_cpu", "save_strategy") and hasattr(training, option):
            assert getattr(training, option) == value, option
    # What is trained on is never a recipe's business.
    assert data.train_data is None


def test_recipes_of_the_papers_have_their_numbers() -> None:
    cpt_recipe, sft_recipe, twolar = (
        yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        for name in ("tsarankllm-cpt", "tsarankllm-sft", "twolar-distill")
    )
    eight_gpus = yaml.safe_load((ACCELERATE_RECIPES / "ddp.yaml").read_text())["num_processes"]

    def global_batch(recipe: dict[str, Any]) -> int:
        return recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * eight_gpus

    assert [global_batch(recipe) for recipe in (cpt_recipe, sft_recipe, twolar)] == [256, 32, 32]
    assert [recipe["learning_rate"] for recipe in (cpt_recipe, sft_recipe, twolar)] == [5e-5, 3e-5, 5e-5]
    assert [recipe["num_train_epochs"] for recipe in (cpt_recipe, sft_recipe, twolar)] == [1, 1, 1]
    assert (cpt_recipe["warmup_steps"], sft_recipe["warmup_steps"]) == (0.1, 0.03)
    assert (sft_recipe["num_negatives"], sft_recipe["temperature"], sft_recipe["alpha"]) == (48, 0.001, 0.6)
    assert (sft_recipe["trainable"], sft_recipe["top_blocks"]) == ("top_blocks", 16)
    assert (twolar["loss"], twolar["num_documents"], twolar["max_length"]) == ("ranknet", 30, 500)
    assert twolar["lr_scheduler_type"] == "constant"


@pytest.mark.parametrize("name", recipe_names(ACCELERATE_RECIPES))
def test_accelerate_understands_its_recipes(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = ACCELERATE_RECIPES / f"{name}.yaml"
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.num_processes == written["num_processes"]
    assert str(config.distributed_type.value).lower() == str(written["distributed_type"]).lower()


def test_a_recipe_by_path_by_name_or_not_at_all(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("alpha: 0.5\n")
    assert find_recipe(str(own)) == own
    assert find_recipe("tsarankllm-sft") == find_recipe("tsarankllm-sft.yaml") == RECIPES / "tsarankllm-sft.yaml"
    with pytest.raises(InputError, match=r"no file 'tsarankllm' and no recipe of that name; there are .*twolar"):
        find_recipe("tsarankllm")


# ---- parsing ---------------------------------------------------------------------------------------


def test_the_command_line_overrules_configs_and_later_ones_overrule_earlier_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("alpha: 0.1\ntemperature: 2e-2\nnum_negatives: 5\nlora_target_modules: [q_proj, v_proj]\n")
    second.write_text('alpha: 0.2\nnum_negatives: 6\nranking_options: {"prompt_style": "separate"}\n')
    common = ("--output_dir", str(tmp_path), "--use_cpu")
    model, _, training, _ = parse("sft", "--config", str(first), f"--config={second}", "--num_negatives", "7", *common)
    assert (training.alpha, training.temperature, training.num_negatives) == (0.2, 0.02, 7)
    assert training.lora_target_modules == ["q_proj", "v_proj"]
    assert model.ranking_options == {"prompt_style": "separate"}


def test_yamls_no_is_the_word_that_strategies_take(tmp_path: Path) -> None:
    """And a file may begin with a byte order mark, as editors on Windows write it."""
    path = tmp_path / "config.yaml"
    lines = ["save_strategy: no", "eval_strategy: no", "dp: off", "ntp: yes", "bf16: no", "use_cpu: true"]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    _, _, training, _ = parse("sft", "--config", str(path), "--output_dir", str(tmp_path))
    assert (str(training.save_strategy.value), str(training.eval_strategy.value)) == ("no", "no")
    assert (training.dp, training.ntp, training.bf16, training.use_cpu) == (False, True, False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_negativs", "3"], "unknown option '--num_negativs'; did you mean num_negatives?"),
        (["--num_negatives", "many"], "invalid int value: 'many'"),
        (["--score_form", "cosine"], "invalid choice: 'cosine'"),
        (["--config"], "--config needs a file"),
        (["--config", "nowhere"], "no file 'nowhere' and no recipe"),
        (["--ranking_options", "{"], "ranking_options: not JSON"),
        (["--ranking_options", "3"], "ranking_options must be a JSON object"),
        (["--temperature", "0"], "temperature must be a number above 0"),
        (["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--save_strategy", "epoch"], "strategy"),
    ],
)
def test_wrong_options(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?").replace("{", r"\{")):
        parse("sft", "--use_cpu", *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("num_negativs: 3", "unknown option in the config 'num_negativs'; did you mean num_negatives?"),
        ("score_form: cosine", "score_form: 'cosine' is none of geometric_mean"),
        ("num_negatives: 2.5", "invalid int value: '2.5'"),
        ("- a list", "expected one option per line"),
        ("a: [1", "not YAML"),
        ("", "expected one option per line"),
    ],
)
def test_wrong_configs(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        parse("sft", "--use_cpu", "--config", str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--early_stopping_patience", "2"], "early_stopping_patience needs eval_strategy"),
        (["--eval_strategy", "steps"], "there is nothing to evaluate"),
        (["--eval_strategy", "steps", "--eval_data", "x", "--metric_for_best_model", "ndcg@10"], "rerank_collection"),
    ],
)
def test_settings_that_could_only_fail_later(arguments: list[str], message: str) -> None:
    _, data, training, reranking = parse("sft", "--use_cpu", *arguments)
    with pytest.raises(InputError, match=message):
        check_settings(reranking, data, training)


def test_a_missing_logger_is_named_before_anything_is_loaded() -> None:
    import importlib.util

    missing = next((name for name in ("wandb", "mlflow", "trackio") if importlib.util.find_spec(name) is None), None)
    if missing is None:
        pytest.skip("all loggers are installed")
    _, data, training, reranking = parse("sft", "--use_cpu", "--report_to", missing)
    with pytest.raises(ResourceError, match=f"report_to {missing} needs the package {missing}: pip install"):
        check_settings(reranking, data, training)


def test_errors_are_one_line_with_status_2(files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"query": "bread", "positives": ["dough"], "negatives": []}) + "\n" * 2)
    common = ["--use_cpu", "--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(files / "model")]
    for arguments, message in (
        ([*common], "train_data is missing"),
        ([*common, "--train_data", str(tmp_path / "none.jsonl")], "no file or folder"),
        ([*common, "--train_data", str(bad)], "1 row"),
        ([*common, "--train_data", str(files / "sft.jsonl"), "--max_train_rows", "1"], "max_train_rows must be"),
        ([*common, "--train_data", str(files / "sft.jsonl")], "expected at least 48, got 5"),
        (
            [
                *common,
                "--train_data",
                str(files / "sft.jsonl"),
                "--num_negatives",
                "3",
                "--family",
                "true_false_logits",
            ],
            "needs a ranker that scores query tokens",
        ),
        (
            [*common, "--train_data", str(files / "sft.jsonl"), "--rerank_collection", str(files / "collection")],
            "eval_strategy is no",
        ),
    ):
        assert run_script(sft.main, arguments) == 2
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tsarank: error")]
        assert len(error) == 1
        assert message in error[0]
    assert not (tmp_path / "run").exists()


# ---- the scripts in this process -------------------------------------------------------------------


def test_distillation_keeps_the_family_of_a_ranking_checkpoint(
    files: Path, make_ranker: Callable[..., Any], tmp_path: Path
) -> None:
    ranker = make_ranker("tsarank")
    ranker.set_options(prompt_style="separate")
    ranker.save_pretrained(tmp_path / "ranker")
    data = ["--train_data", str(files / "distill.jsonl"), "--max_steps", "1", "--save_strategy", "no"]
    for model, family in ((tmp_path / "ranker", "query_likelihood"), (files / "model", "true_false_logits")):
        output = tmp_path / family
        distill.main([*SMALL, *CONTEXT, *data, "--model_name_or_path", str(model), "--output_dir", str(output)])
        saved = json.loads((output / "config.json").read_text())["tsarank"]
        assert saved["family"] == family
        if family == "query_likelihood":
            assert saved["prompt_style"] == "separate"
        assert load_base_ranker(output, default_family="none").options.family == family


def test_another_family_starts_from_the_weights_of_a_ranking_checkpoint(
    files: Path, make_ranker: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranker = make_ranker("tsarank")
    ranker.save_pretrained(tmp_path / "ranker")
    template = "Document: {document} Query: {query} Relevant:"
    with caplog.at_level(logging.INFO):
        start = load_base_ranker(
            tmp_path / "ranker",
            family="true_false_logits",
            default_family="query_likelihood",
            ranking_options={"template": template},
        )
    assert "was saved as query_likelihood" in caplog.text
    assert start.options == LogitOptions(template=template)
    weights = ranker.backbone.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in start.backbone.state_dict().items())
    options = ["--family", "true_false_logits", "--max_steps", "1", "--save_strategy", "no"]
    files_of_it = ["--train_data", str(files / "distill.jsonl"), "--model_name_or_path", str(tmp_path / "ranker")]
    distill.main([*SMALL, *CONTEXT, *options, *files_of_it, "--output_dir", str(tmp_path / "run")])
    assert isinstance(load_ranker(tmp_path / "run"), TwolarModel)


@pytest.mark.parametrize("name", ["trust_remote_code", "dtype", "revision", "gguf_file", "new_head", "device"])
def test_ranking_options_do_not_say_how_a_model_is_loaded(name: str) -> None:
    """Least of all that code of the Hub may run."""
    with pytest.raises(InputError, match=f"^{name} is a loading option, not a ranking option"):
        load_base_ranker(None, default_family="query_likelihood", ranking_options={"max_length": 64, name: True})


# ---- processes -------------------------------------------------------------------------------------


def test_two_processes_train_and_rerank_as_one(files: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """CPT by `accelerate launch` on two processes: weights to 1e-5, and the same nDCG@10, as in one process."""
    options = [
        *("--model_name_or_path", str(files / "model"), "--train_data", str(files / "pairs.jsonl")),
        *("--max_steps", "3", "--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", "1"),
        *("--rerank_collection", str(files / "collection"), "--rerank_depth", "6", "--optim", "sgd"),
        *("--bf16", "false"),
    ]
    several = [*SMALL[:-2], *options, "--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "two")]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    config = ["--config_file", str(ACCELERATE_RECIPES / "cpu_2_processes.yaml"), str(TRAINERS / "cpt.py")]
    done = subprocess.run(
        [*launcher, *config, *several], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cpt.main([*SMALL, *options, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")])
    two, one = (json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in ("two", "one"))
    for key, tolerance in (("loss", 1e-4), ("eval_ndcg@10", 1e-9)):
        values = [[row[key] for row in state["log_history"] if key in row] for state in (two, one)]
        assert len(values[0]) == 3
        assert values[0] == pytest.approx(values[1], abs=tolerance)
    weights = final_weights(tmp_path / "one")
    start = final_weights(files / "model")
    assert any(not torch.equal(value, start[name]) for name, value in weights.items())
    for name, value in final_weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "data", "own"),
    [
        (sft, "sft.jsonl", "trainable: lora\nlora_dropout: 0.1\nnum_negatives: 3\nscore_form: mean_log_prob\n"),
        (cpt, "pairs.jsonl", "trainable: full\nbf16: false\n"),
    ],
    ids=["sft", "cpt"],
)
def test_killed_and_resumed_equals_uninterrupted(
    files: Path, environment: dict[str, str], tmp_path: Path, script: Any, data: str, own: str
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(own)
    options = [
        *("--config", str(config), "--model_name_or_path", str(files / "model"), *SMALL),
        *("--train_data", str(files / data), "--per_device_train_batch_size", "4"),
        *(
            "--max_steps",
            "40",
            "--save_steps",
            "4",
            "--resume_from_checkpoint",
            "auto",
            *(CONTEXT if script is sft else []),
        ),
    ]
    script.main([*options, "--output_dir", str(tmp_path / "whole")])
    killed = tmp_path / "killed"
    process = begin(lambda: script.main([*options, "--output_dir", str(killed)]), environment)
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint-8").exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    join([begin(lambda: script.main([*options, "--output_dir", str(killed)]), environment)], 300)
    steps = [row["step"] for row in json.loads((killed / "trainer_state.json").read_text())["log_history"]]
    assert steps == [*range(1, 41), 40]
    whole = final_weights(tmp_path / "whole")
    for name, value in final_weights(killed).items():
        assert torch.equal(value, whole[name]), name

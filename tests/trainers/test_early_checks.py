"""Whatever can be known before a model is loaded is said then, in one line."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers import cpt, distill, sft
from modeling_tsarank.trainers.checkpoint_files import checkpoint_folders, checkpoint_problem
from modeling_tsarank.trainers.early_checks import warn_of_missing_processes
from modeling_tsarank.trainers.script_utils import run_script


MODULES = {"cpt": cpt, "sft": sft, "distill": distill}
EVALUATED = ["--eval_strategy", "steps", "--eval_data", "rows.jsonl"]
BEST = [*EVALUATED, "--load_best_model_at_end", "true", "--save_strategy", "steps"]
RERANKED = ["--eval_strategy", "steps", "--rerank_collection", "a"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (
            "sft",
            [*BEST, "--metric_for_best_model", "ranking_acuracy"],
            "metric; did you mean ranking_acc",
        ),
        (
            "sft",
            [*BEST, "--metric_for_best_model", "penalty_loss", "--dp", "false"],
            "penalty_loss, which is not an evaluation metric",
        ),
        (
            "sft",
            [*BEST, "--metric_for_best_model", "eval_accuracy"],
            "metric_for_best_model is accuracy, which is not",
        ),
        ("distill", [*BEST, "--metric_for_best_model", "ranking_accuracy"], "did you mean pairwise_accuracy?"),
        ("cpt", [*BEST, "--metric_for_best_model", "perplexity"], "there are loss, runtime"),
        ("sft", [*RERANKED, "--metric_for_best_model", "ndcg@5"], "not an evaluation metric; did you mean ndcg@10?"),
        (
            "sft",
            [*RERANKED, "--metric_for_best_model", "loss"],
            "loss, which is not an evaluation metric; there are ndcg@10",
        ),
        ("sft", ["--save_strategy", "best"], "save_strategy best needs eval_strategy and metric_for_best_model"),
        ("sft", ["--optim", "adamw_8bit"], "optim adamw_8bit: You need to install `bitsandbytes`"),
        ("cpt", ["--optim", "galore_adamw"], "optim galore_adamw: You need to install `galore_torch`"),
        ("distill", ["--optim", "grokadamw"], "optim grokadamw: Please install grokadamw"),
        ("sft", ["--optim", "adamx"], "invalid choice: 'adamx'"),
        (
            "sft",
            ["--optim", "adafactor", "--optim_args", "x"],
            "optim adafactor cannot be created with optim_args 'x'",
        ),
        ("sft", ["--lr_scheduler_type", "cosin"], "cosin"),
        (
            "sft",
            ["--lr_scheduler_type", "warmup_stable_decay"],
            "warmup_stable_decay cannot be created",
        ),
        ("cpt", ["--lr_scheduler_kwargs", '{"power": "x", "z": 1}'], "with lr_scheduler_kwargs"),
        ("sft", ["--report_to", "tensorbord"], "report_to: unknown logger 'tensorbord'; did you mean tensorboard?"),
        ("sft", ["--report_to", "nothing"], "report_to: unknown logger 'nothing'; there are none, azure_ml"),
        ("cpt", ["--report_to", "wandb"], "report_to wandb needs the package wandb: pip install wandb"),
        ("cpt", ["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be a whole number from 1"),
        (
            "sft",
            ["--per_device_eval_batch_size", "-4"],
            "per_device_eval_batch_size must be a whole number",
        ),
        ("sft", ["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be a whole number from 1"),
        ("sft", ["--learning_rate", "-1"], "learning_rate must be a number from 0, got -1.0"),
        ("distill", ["--learning_rate", "nan"], "learning_rate must be a number from 0, got nan"),
        ("cpt", ["--learning_rate", "inf"], "learning_rate must be a number from 0, got inf"),
        ("sft", ["--num_train_epochs", "0"], "num_train_epochs must be a number above 0, got 0.0"),
        ("sft", ["--seed", "-1"], "seed must be a whole number from 0"),
        ("sft", ["--train_sampling_strategy", "group_by_length"], "unknown train_sampling_strategy"),
        ("sft", ["--neftune_noise_alpha", "5"], "neftune_noise_alpha is for language modelling"),
        ("sft", ["--remove_unused_columns", "true"], "remove_unused_columns is on, but ranking trainers need"),
        ("cpt", ["--dataloader_persistent_workers", "true"], "dataloader_persistent_workers needs dataloader_num"),
        ("sft", ["--dataloader_multiprocessing_context", "spawn"], "context needs dataloader_num_workers of at least"),
        ("sft", ["--use_liger_kernel", "true"], "use_liger_kernel needs the package liger-kernel"),
        ("distill", ["--torch_compile_backend", "zzz"], "unknown torch_compile_backend 'zzz'; expected one of"),
        ("distill", ["--torch_compile_mode", "zzz"], "unknown torch_compile_mode 'zzz'; expected one of default"),
        ("cpt", ["--model_init_kwargs", "zzz"], "model_init_kwargs must be a JSON object, got 'zzz'"),
        ("cpt", ["--dataset_kwargs", "zzz"], "dataset_kwargs must be a JSON object, got 'zzz'"),
        ("cpt", ["--assistant_only_loss", "true"], "are for conversations; remove them"),
        ("cpt", ["--chat_template_path", "zzz"], "are for conversations; remove them"),
        ("cpt", ["--activation_offloading", "true"], "activation_offloading moves activations from an accelerator"),
        ("cpt", ["--fp16", "true", "--bf16", "true"], "At most one of fp16 and bf16"),
        ("sft", ["--accelerator_config", "nowhere.json"], "nowhere.json"),
        ("sft", ["--deepspeed", "nowhere.json"], ""),
        ("sft", ["--output_dir", "/proc/run"], "cannot write to the output folder /proc/run"),
        ("cpt", ["--output_dir", "/dev/null"], "cannot write to the output folder /dev/null"),
        ("distill", ["--output_dir", "/dev/null/run"], "cannot write to the output folder /dev/null/run"),
        ("sft", ["--push_to_hub", "true"], "push_to_hub is on, but the Hub cannot be used"),
        ("sft", ["--train_data", "some-one/some-rows"], "and the Hub cannot be reached"),
        ("sft", ["--resume_from_checkpoint", "last"], "no checkpoint to resume from in"),
        ("sft", ["--resume_from_checkpoint", "nowhere"], "nowhere is not a complete checkpoint"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_before_any_model_is_loaded(
    kind: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    row = {"query": "q", "document": "d", "positives": ["p"], "negatives": ["n"], "documents": ["a", "b"]}
    (tmp_path / "rows.jsonl").write_text((json.dumps({**row, "permutation": [1, 0]}) + "\n") * 3)
    common = ["--train_data", "rows.jsonl", "--output_dir", "run", "--model_name_or_path", "nowhere/at-all"]
    assert run_script(MODULES[kind].main, [*common, "--use_cpu", *arguments]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line]
    assert "Traceback" not in "\n".join(errors)
    assert [line.startswith("tsarank: error: ") for line in errors][-1:] == [True]
    assert message in errors[-1]
    assert "nowhere/at-all" not in errors[-1], "the model was asked for first"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with these options."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a file system is not permitted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_a_full_disk_is_one_line_and_leaves_whole_checkpoints_only(
    trainable: str, make_trainer: Callable[..., Any], small_disk: Callable[[str], Path]
) -> None:
    folder = small_disk("size=2m") / "run"
    trainer = make_trainer(
        "distill", trainable=trainable, output_dir=str(folder), save_strategy="steps", save_steps=1, max_steps=50
    )
    with pytest.raises(ResourceError, match=r"checkpoint-\d+ cannot be written to .*: no space left on device"):
        trainer.train()
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert all(checkpoint_problem(checkpoint) is None for checkpoint in checkpoint_folders(folder))
    assert trainable == "full" or checkpoint_folders(folder)


def test_a_read_only_folder_is_named(make_trainer: Callable[..., Any], small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("ro")
    with pytest.raises((ResourceError, InputError), match="cannot write to the output folder"):
        make_trainer("distill", output_dir=str(folder)).train()


@pytest.mark.parametrize(
    ("environment", "warning"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE asks for 2 processes, but 1 started"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE asks for 4 processes, but 1 started"),
        ({"SLURM_NTASKS": "8"}, "SLURM_NTASKS asks for 8 processes, but 1 started"),
        # What `accelerate launch --num_processes 2` sets on a CPU.
        ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, "set up for several processes, but there is one"),
        ({"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, None),
        ({"SLURM_NTASKS": "1"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_fewer_processes_than_the_environment_asks_for_are_warned_of(
    environment: dict[str, str], warning: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.WARNING):
        warn_of_missing_processes(1)
    assert (warning in caplog.text) if warning else not caplog.text

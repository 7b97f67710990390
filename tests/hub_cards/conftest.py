"""Fixtures of the publishing room: the loopback Hub, clients in processes of their own, small trained models."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import torch

from modeling_tsarank import cli


TESTS = Path(__file__).resolve().parent.parent
if str(TESTS / "hub_server") not in sys.path:
    sys.path.insert(0, str(TESTS / "hub_server"))

from loopback_hub import LoopbackHub  # noqa: E402


_spec = importlib.util.spec_from_file_location("trainers_conftest", TESTS / "trainers" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_trainers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_trainers)
# The trainers' own small models and rows.
make_ranker, causal_tokenizer, t5_tokenizer = _trainers.make_ranker, _trainers.causal_tokenizer, _trainers.t5_tokenizer
sft_rows, distill_rows, make_trainer = _trainers.sft_rows, _trainers.distill_rows, _trainers.make_trainer

WRITER, READER, STRANGER = (f"hf_loopback_{name}" for name in ("writer", "reader", "stranger"))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub on loopback with an empty store under the test's folder."""
    with LoopbackHub(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def hub_environment(hub: LoopbackHub, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a client process: this Hub, an empty cache, a token or none, LFS instead of Xet."""

    def make(token: str | None = WRITER, cache: str = "cache", **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        home = tmp_path / cache
        values = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return {**kept, **values, **({} if token is None else {"HF_TOKEN": token}), **more}

    return make


@pytest.fixture
def in_process(hub_environment: Callable[..., dict[str, str]], tmp_path: Path) -> Callable[..., Any]:
    """Runs Python code in a process of its own as a client of the Hub: `in_process(code, token=…) -> its output`.

    The process is forked from this one, unless another interpreter is named.
    """

    def run(code: str, *arguments: str, python: Path | None = None, check: bool = True, **environment: Any) -> Any:
        def execute() -> None:
            sys.argv = ["code", *arguments]
            exec(compile(code, "code", "exec"), {"__name__": "__main__"})

        place = {"environment": hub_environment(**environment), "folder": tmp_path}
        if python is None:
            done = forked.run(execute, **place)
        else:
            done = subprocess.run(
                [python, "-I", "-c", code, *arguments],
                env=place["environment"],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        if not check:
            return done
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def publish(hub_environment: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Runs `tsarank publish …` in a process of its own against the Hub."""

    def run(*arguments: Any, check: bool = True, **environment: Any) -> subprocess.CompletedProcess[str]:
        done = forked.run(
            lambda: cli.main(["publish", *map(str, arguments)]), hub_environment(**environment), tmp_path
        )
        if check:
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, make_ranker: Any, sft_rows: Any, distill_rows: Any) -> Any:
    """Makes the folder of a small model trained for two steps: `trained("tsarank" | "twolar" | "adapter")`."""
    from modeling_tsarank.trainers.distill_config import RankingDistillConfig
    from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
    from modeling_tsarank.trainers.sft_config import RankingSFTConfig
    from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer

    made: dict[str, Path] = {}

    def train(kind: str) -> Path:
        if kind in made:
            return made[kind]
        folder = tmp_path_factory.mktemp("trained") / f"{kind}-model"
        common: dict[str, Any] = {"output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "max_steps": 2}
        common |= {"learning_rate": 1e-3, "save_strategy": "no", "logging_steps": 1, "per_device_train_batch_size": 4}
        if kind == "twolar":
            args: Any = RankingDistillConfig(**common, trainable="full", num_documents=3)
            trainer: Any = RankingDistillTrainer(make_ranker("twolar_t5"), args, distill_rows)
        else:
            common |= {"score_form": "mean_log_prob", "temperature": 0.1, "max_length": 120, "num_negatives": 2}
            args = RankingSFTConfig(**common, trainable="lora", lora_r=4, merge_adapter=kind == "tsarank")
            trainer = RankingSFTTrainer(make_ranker("tsarank"), args, sft_rows)
        trainer.train()
        trainer.save_model()
        made[kind] = folder
        return folder

    return train


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, make_ranker: Any) -> Path:
    """The plain model that the trained ones started from."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("base") / "base"
    ranker = make_ranker("tsarank")
    ranker.backbone.save_pretrained(folder)
    ranker.tokenizer.save_pretrained(folder)
    return folder

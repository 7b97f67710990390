"""A signal to `tsarank train`: no process goes on, one line, and the status that a shell would give."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.trainers.stopping import stopped_line


TOKEN = "TSARANK_TEST_OF_STOPPING"


@pytest.fixture(scope="session")
def distillation(
    make_ranker: Callable[..., Any], distill_rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    make_ranker("twolar").save_pretrained(folder / "start")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in distill_rows))
    return folder


def descendants(token: str) -> list[int]:
    """The processes that carry the token in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"{TOKEN}={token}".encode() in environment and state != "Z":
                found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def heed_signals() -> None:
    """A shell ignores them for what it starts in the background, and whoever is started inherits that."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("how", "processes", "number", "when"),
    [
        ("train", 1, signal.SIGINT, "starting"),
        ("train", 1, signal.SIGTERM, "training"),
        ("train", 2, signal.SIGINT, "training"),
        ("train", 1, signal.SIGKILL, "training"),
        pytest.param("script", 1, signal.SIGTERM, "training", marks=pytest.mark.slow),
        pytest.param("train", 2, signal.SIGTERM, "training", marks=pytest.mark.slow),
        pytest.param("train", 2, signal.SIGHUP, "training", marks=pytest.mark.slow),
        pytest.param("train", 2, signal.SIGTERM, "starting", marks=pytest.mark.slow),
        pytest.param("train", 1, signal.SIGHUP, "training", marks=pytest.mark.slow),
        pytest.param("script", 1, signal.SIGINT, "training", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_training_leaves_nobody_behind_and_says_one_line(
    how: str, processes: int, number: int, when: str, distillation: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    options = [
        *("--model_name_or_path", str(distillation / "start"), "--train_data", str(distillation / "rows.jsonl")),
        *("--output_dir", str(output), "--max_steps", "100000", "--save_steps", "5", "--save_total_limit", "1"),
        *("--per_device_train_batch_size", "2", "--disable_tqdm", "true", "--logging_strategy", "no"),
    ]
    start = ["-m", "modeling_tsarank.cli", "train", "distill", "--num-processes", str(processes)]
    start = start if how == "train" else ["-m", "modeling_tsarank.trainers.distill"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", TOKEN: str(tmp_path)}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
    command = [sys.executable, *start, *options]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals
    ) as process:
        if when == "starting":
            wait_for(lambda: len(descendants(str(tmp_path))) > 1)
        else:
            wait_for(lambda: list(output.glob("checkpoint-*")))
        process.send_signal(number)
        try:
            # A killed launcher's processes may hold the pipe open a little longer.
            errors = "" if number == signal.SIGKILL else process.communicate(timeout=90)[1]
            process.wait(60)
        except subprocess.TimeoutExpired:
            for left in descendants(str(tmp_path)):
                os.kill(left, signal.SIGKILL)
            raise
    wait_for(lambda: not descendants(str(tmp_path)), 30)
    if number == signal.SIGKILL:
        return
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors, errors
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}.get(number, "stopped by SIGHUP")
    lines = [line for line in errors.splitlines() if word in line]
    if when == "starting":
        assert lines == [f"tsarank: {word} before the first checkpoint; nothing was saved"]
    else:
        assert len(lines) == 1
        assert lines[0].startswith(
            f"tsarank: {word}; the same command with --resume_from_checkpoint auto resumes from"
        )
        assert not (output / ".unfinished-checkpoint").exists()
    assert errors.splitlines()[-1] == lines[0]


def test_the_line_knows_the_output_folder_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: {tmp_path / 'run'}\n")
    for arguments in (
        ["--config", str(recipe)],
        [f"--output-dir={tmp_path / 'run'}"],
        ["--output_dir", f"{tmp_path}/run"],
    ):
        assert stopped_line(signal.SIGINT, arguments).endswith("resumes from checkpoint-7")
    assert stopped_line(signal.SIGINT, ["--output_dir", str(tmp_path)]).endswith("nothing was saved")
    assert stopped_line(signal.SIGINT, ["--config", "nowhere"]) == "tsarank: interrupted"

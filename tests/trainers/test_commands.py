"""`tsarank train`: quick help that tells the truth, arguments handed on as they are, exit statuses."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers import commands, cpt, distill, sft
from modeling_tsarank.trainers.recipe_files import ACCELERATE_RECIPES, recipe_names


_PLAIN = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
MODULES = {"cpt": cpt, "sft": sft, "distill": distill}


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tsarank")
    parser.add_argument("-v", "--verbose", action="store_true")
    commands.register(parser.add_subparsers(dest="command", required=True))
    return parser


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would be handed to `accelerate launch`, without starting it."""
    calls: list[list[str]] = []

    def note(options: list[str], processes: int | None, module: str, script_options: list[str]) -> int:
        calls.append([*commands._with_defaults(options, processes), "--module", module, *script_options])
        return 0

    monkeypatch.setattr(commands, "_launch", note)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", "/nowhere")
    return calls


def test_help_is_quick_and_lists_the_recipes(parser: argparse.ArgumentParser) -> None:
    code = (
        "import argparse, sys\n"
        "from modeling_tsarank.trainers import commands\n"
        "parser = argparse.ArgumentParser()\n"
        "commands.register(parser.add_subparsers())\n"
        "args = parser.parse_args(['train', 'sft', '--help'])\n"
        "try:\n"
        "    args.run(args)\n"
        "except SystemExit as stop:\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'trl', 'accelerate'} & set(sys.modules)\n"
        "    sys.exit(f'loads {heavy}' if heavy or stop.code else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: tsarank train sft" in done.stdout
    kinds = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    text = kinds.choices["train"].format_help()
    for name in [*recipe_names(), *recipe_names(ACCELERATE_RECIPES)]:
        assert name in text


@pytest.mark.parametrize("kind", list(MODULES))
def test_the_help_names_only_options_that_exist(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        MODULES[kind].main(["--help"])
    assert stop.value.code == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    launcher = commands.launcher_parser(kind)
    own = {option for action in launcher._actions for option in action.option_strings}
    shown = set(re.findall(r"--\w[\w-]*", launcher.format_help()))
    assert len(shown) > 25
    assert shown - own - known == set()


def test_options_are_handed_on_as_they_are(parser: argparse.ArgumentParser, launched: list[list[str]]) -> None:
    given = ["--config", "smollm2-135m-sft-cpu", "--loss_options", '{"a": "b c"}', "-v", "--x=y", "--help_me"]
    args = parser.parse_args(["train", "distill", *given])
    assert not args.verbose
    assert args.run(args) == 0
    call = launched[0]
    at = call.index("--module")
    assert call[at + 1 :] == ["modeling_tsarank.trainers.distill", *given]
    assert call[call.index("--num_processes") + 1] == "1"


def test_launch_options(parser: argparse.ArgumentParser, launched: list[list[str]]) -> None:
    for arguments, expected in (
        (
            ["--accelerate-config", "zero3", "--num-processes", "4", "--alpha", "0.5"],
            ["--config_file", str(ACCELERATE_RECIPES / "zero3.yaml"), "--num_processes", "4"],
        ),
        (["--multi_gpu", "--gpu_ids", "0,1", "--", "--alpha", "0.5"], ["--multi_gpu", "--gpu_ids", "0,1"]),
        (
            ["--num_processes", "2", "--alpha", "0.5"],
            ["--multi_gpu", "--num_processes", "2", *_PLAIN],
        ),
    ):
        args = parser.parse_args(["train", "sft", *arguments])
        assert args.run(args) == 0
        assert launched.pop() == [*expected, "--module", "modeling_tsarank.trainers.sft", "--alpha", "0.5"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere"], "no file 'nowhere' and no recipe"),
        (["--accelerate-config", "nowhere"], "no accelerate config of that name; there are cpu_2_processes"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    parser: argparse.ArgumentParser, launched: list[list[str]], arguments: list[str], message: str
) -> None:
    args = parser.parse_args(["train", "sft", *arguments])
    with pytest.raises(InputError, match=message):
        args.run(args)
    assert launched == []


def test_a_kind_is_needed(parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["train"], ["train", "rlhf"]):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(arguments)
        assert stop.value.code == 2
    assert "cpt" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "status"), [(0, 0), (2, 2), (1, 1), (-9, 137), (-15, 143)])
def test_exit_statuses(code: int, status: int) -> None:
    assert commands._status(code) == status


def test_a_training_from_the_command_line(
    parser: argparse.ArgumentParser,
    make_ranker: Callable[..., Any],
    distill_rows: list[dict[str, Any]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through accelerate, in a process of its own: first with an option that is wrong, then to the end."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ranker = make_ranker("twolar")
    ranker.save_pretrained(tmp_path / "start")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in distill_rows))
    options = [
        *("--model_name_or_path", str(tmp_path / "start"), "--train_data", str(data), "--use_cpu", "true"),
        *("--output_dir", str(tmp_path / "end"), "--max_steps", "2", "--save_strategy", "no", "--logging_steps", "1"),
        *("--per_device_train_batch_size", "4"),
    ]
    args = parser.parse_args(["train", "distill", "--num-processes", "1", *options, "--los", "ranknet"])
    assert args.run(args) == 2
    errors = capfd.readouterr().err
    assert "tsarank: error: unknown option '--los'; did you mean loss?" in errors
    assert "Traceback" not in errors
    args = parser.parse_args(["train", "distill", "--num-processes", "1", *options, "--loss", "listnet"])
    assert args.run(args) == 0
    history = json.loads((tmp_path / "end" / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if "in_batch_ndcg" in row] == [1, 2]
    assert json.loads((tmp_path / "end" / "config.json").read_text())["tsarank"]["family"] == "true_false_logits"

"""`tsarank train`: starts a training script with `accelerate launch`."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import DEBUG_VARIABLE, CommandParser, whole
from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers.recipe_files import ACCELERATE_RECIPES, find_recipe, recipe_names
from modeling_tsarank.trainers.stopping import (
    LAUNCHER,
    SIGNALS,
    StoppedError,
    exit_status,
    raise_stopped,
    signals_held_back,
    stopped_line,
    stopping,
)


logger = logging.getLogger(__name__)


_COMMON = """\
  --config NAME|FILE          recipe or YAML file of options; repeatable, the command line takes precedence
  --model_name_or_path M      Hub id, folder or GGUF file (default: smollm2-135m-instruct, in the package)
  --train_data D              file (.jsonl, .json, .csv, .parquet, .gz), folder or Hub dataset
  --output_dir DIR            checkpoints, and finally the model
  --resume_from_checkpoint C  a checkpoint folder, `last`, or `auto` (the last one if there is any)
  --trainable PART            lora, top_blocks or full
  --per_device_train_batch_size, --gradient_accumulation_steps, --learning_rate, --num_train_epochs, --max_steps
  --bf16 true                 mixed precision, if the device supports bfloat16
  --drop_unusable_rows        leave out rows that fail the checks, with a warning
  --report_to NAME            trackio, tensorboard, wandb …
  --eval_strategy steps --eval_steps N --rerank_collection FOLDER --rerank_first_stage S --rerank_queries N
                              nDCG@10 on a small reranking set during training
  --load_best_model_at_end true --metric_for_best_model ndcg@10 --early_stopping_patience N
                              keep the checkpoint with the best ranking; stop when it no longer improves
"""

_OPTIONS = {
    "cpt": """\
  --packing true              several pairs per sequence
  --max_length N --max_query_length N, --train_eos true|false
""",
    "sft": """\
  --num_negatives M, --alpha A, --temperature T, --score_form F, --dp true|false, --ntp true|false
  --loss NAME, or --objectives NAME:WEIGHT …   another ranking loss, or any weighted sum instead of Eq. 5
  --chunk_tokens N            padded tokens per chunk of gradient caching; gradients are exact for any value
""",
    "distill": """\
  --loss NAME                 ranknet, listnet, lambdarank, margin_mse, dear …; --loss_options JSON
  --objectives NAME:WEIGHT …  a weighted sum instead, such as ranknet:0.6 next_token:0.2 penalty:0.2
  --num_documents M, --temperature T, --permutations FILE, --family F
  --chunk_tokens N            padded tokens per chunk of gradient caching; gradients are exact for any value
""",
}

_USAGE = "{program} [--accelerate-config NAME|FILE] [--num-processes N] [ACCELERATE OPTIONS --] OPTIONS"


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds `train` to the command line."""
    parser = subparsers.add_parser(
        "train",
        help="train a reranker",
        description="Train a reranker. Each kind is a script that runs under `accelerate launch`.",
        epilog=_train_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name in _OPTIONS:
        # With a prefix character that nobody types, every argument, options and --help included, is left for `run`.
        title = str(_script(name).__doc__).partition("\n")[0]
        one = kinds.add_parser(name, help=title, add_help=False, prefix_chars="\0")
        one.add_argument("arguments", nargs=argparse.REMAINDER)
        one.set_defaults(run=run, kind=name)


def _script(kind: str) -> Any:
    """The module of a kind's script; importing it loads nothing heavy."""
    return importlib.import_module(f"modeling_tsarank.trainers.{kind}")


def _train_epilog() -> str:
    recipes = "\n".join(f"  {name}" for name in recipe_names())
    ways = ", ".join(recipe_names(ACCELERATE_RECIPES))
    return (
        f"recipes (--config NAME):\n{recipes}\n\naccelerate configs (--accelerate-config NAME):\n  {ways}\n\n"
        "`tsarank train KIND --help` explains a kind."
    )


class _LauncherParser(CommandParser):
    """Leaves unknown options to the script, whose --debug takes a value."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """--debug without a value is this command's, `--debug underflow_overflow` is transformers'."""
        values = [*args[1:], "--"]
        own = [arg == "--debug" and values[at].startswith("-") for at, arg in enumerate(args)]
        if any(own):
            os.environ[DEBUG_VARIABLE] = "1"
        return super().parse_known_args([arg for arg, is_own in zip(args, own, strict=True) if not is_own], namespace)

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        """Accepts all: unknown options are the script's."""


def launcher_parser(name: str) -> argparse.ArgumentParser:
    """The parser of the options that are not the script's."""
    program = f"tsarank train {name}"
    parser = _LauncherParser(
        prog=program,
        usage=_USAGE.format(program=program),
        description=_script(name).__doc__,
        epilog=f"main options of the training:\n{_COMMON}{_OPTIONS[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="show this help message and exit")
    parser.add_argument("--help-all", action="store_true", help="show every option of the training (several hundred)")
    parser.add_argument(
        "--accelerate-config",
        "--accelerate_config",
        metavar="NAME|FILE",
        help=f"an accelerate config file, or one of {', '.join(recipe_names(ACCELERATE_RECIPES))}",
    )
    parser.add_argument(
        "--num-processes",
        "--num_processes",
        type=whole(most=65_536),
        metavar="N",
        help="number of processes (default: from the accelerate config, else one per GPU)",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Starts the training and returns the script's exit status."""
    # Options in front of a lone `--` are accelerate's.
    at = args.arguments.index("--") if "--" in args.arguments else -1
    launch_options, arguments = args.arguments[: max(at, 0)], args.arguments[at + 1 :]
    own, script_options = launcher_parser(args.kind).parse_known_args(arguments)
    module = f"modeling_tsarank.trainers.{args.kind}"
    if own.help_all:
        _script(args.kind).main(["--help"])
        return 0
    if own.accelerate_config is not None:
        path = find_recipe(own.accelerate_config, ACCELERATE_RECIPES, "accelerate config")
        launch_options = ["--config_file", os.fspath(path), *launch_options]
    for position, option in enumerate(script_options[:-1]):
        if option == "--config":
            find_recipe(script_options[position + 1])  # detects typing errors before anything heavy is loaded
    return _launch(launch_options, own.num_processes, module, script_options)


def _launch(options: list[str], processes: int | None, module: str, script_options: Sequence[str]) -> int:
    """Runs the script in its own processes; a signal to this process stops them and is reported in one line."""
    children: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int) -> None:
        for child in children:
            child.send_signal(number)
        if not children:
            raise_stopped(number)

    with stopping(hand_on) as received:
        try:
            status = _accelerate(options, processes, module, script_options, children)
        except StoppedError:
            status = 0
    number = received[0] if received else status - 128
    if number in SIGNALS:
        sys.stderr.write(f"{stopped_line(number, script_options)}\n")
        return exit_status(number)
    return status


def _accelerate(
    options: list[str],
    processes: int | None,
    module: str,
    script_options: Sequence[str],
    children: list[subprocess.Popen[bytes]],
) -> int:
    """Runs `accelerate launch`. The process is put into `children` while it runs, if it is a single one."""
    try:
        from accelerate.commands import launch
        from accelerate.utils.launch import prepare_simple_launcher_cmd_env
        from torch.distributed.elastic.multiprocessing.api import SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    except ImportError as error:
        raise ResourceError(f"training needs accelerate ({error}): pip install 'tsarank[train]'") from error

    def run_one(args: argparse.Namespace) -> None:
        command, environment = prepare_simple_launcher_cmd_env(args)
        with signals_held_back():
            child = subprocess.Popen(command, env=environment)
            children.append(child)
        if child.wait():
            raise subprocess.CalledProcessError(child.returncode, command)

    options = _with_defaults(options, processes)
    parsed = launch.launch_command_parser().parse_args([*options, "--module", module, *script_options])
    logger.info("accelerate launch %s", " ".join([*options, "--module", module, *script_options]))
    theirs, disabled = launch.simple_launcher, logging.root.manager.disable
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        # accelerate's own launcher abandons its process when a signal arrives.
        launch.simple_launcher = run_one
        # torch reports for every process how it ended; the processes report it themselves.
        logging.disable(logging.ERROR)
        launch.launch_command(parsed)
    except subprocess.CalledProcessError as error:
        return _status(error.returncode)
    except ChildFailedError as error:
        return _status(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return exit_status(error.sigval)
    except ImportError as error:
        # DeepSpeed, if the config uses it.
        raise ResourceError(str(error)) from error
    except ValueError as error:
        raise InputError(f"accelerate launch: {error}") from error
    finally:
        launch.simple_launcher = theirs
        logging.disable(disabled)
        del os.environ[LAUNCHER]
    return 0


def _status(code: int) -> int:
    """An exit status for a child's return code: the shell's status if a signal ended it."""
    return 128 - code if code < 0 else code


def _with_defaults(options: list[str], processes: int | None) -> list[str]:
    """Adds the options that accelerate would otherwise warn about having defaulted."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    given = [] if processes is None else ["--num_processes", str(processes)]
    if options or Path(default_config_file).is_file():
        return [*options, *given]
    processes = processes or max(torch.accelerator.device_count(), 1)
    several = ["--multi_gpu"] if processes > 1 else []
    plain = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*several, "--num_processes", str(processes), *plain]

"""Shared code of the training scripts: parsing, data, reranking sets, and process exit."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from modeling_tsarank.cli.command_line import DEBUG_VARIABLE, run_command
from modeling_tsarank.ranking_errors import InputError, ResourceError, TSARankError
from modeling_tsarank.trainers.recipe_files import config_options
from modeling_tsarank.trainers.stopping import (
    LAUNCHER,
    StoppedError,
    end_with_launcher,
    exit_status,
    stopped_line,
    stopping,
)


if TYPE_CHECKING:
    from transformers import TrainingArguments

    from modeling_tsarank.trainers.reranking_evaluation import RerankingSet
    from modeling_tsarank.trainers.row_checks import RowRules
    from modeling_tsarank.trainers.script_arguments import DataArguments, RerankingArguments

logger = logging.getLogger(__name__)


# ---- parsing ---------------------------------------------------------------------------------------


def parse_arguments(types: Sequence[Any], arguments: Sequence[str] | None, program: str, description: str) -> Any:
    """Dataclass instances from `--config FILE` and the command line, which takes precedence.

    `--config` takes a YAML file or a shipped recipe and may be repeated; later ones override earlier ones.

    Raises:
        InputError: an unknown option (with the nearest known one), a value of the wrong type, an unreadable file.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        """Raises errors: argparse would print the usage, hundreds of options, before the message."""

        def error(self, message: str) -> NoReturn:
            raise InputError(f"{message}; `{program} --help-all` lists all options")

    parser = Parser(types, prog=program, description=description, allow_abbrev=False)
    parser.add_argument(
        "--config", action="append", metavar="FILE", help="YAML file of options, or the name of a shipped recipe"
    )
    known, options = config_options(list(sys.argv[1:] if arguments is None else arguments))
    _set_defaults(parser, options)
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(
            args=known, return_remaining_strings=True, look_for_args_file=False
        )
    except TSARankError:
        raise
    except ImportError as error:
        raise ResourceError(str(error)) from error
    except (ValueError, TypeError, KeyError, AttributeError, OSError, NotImplementedError) as error:
        # `TrainingArguments` checks combinations of options, and reads the files that it is given.
        raise InputError(str(error)) from error
    if rest:
        raise InputError(_unknown(rest[0], parser, "option"))
    return parsed[: len(types)]


def _set_defaults(parser: Any, defaults: dict[str, Any]) -> None:
    from transformers.hf_argparser import string_to_bool

    for name, value in defaults.items():
        # A flag that is on by default has two actions: --name and --no_name.
        actions = [action for action in parser._actions if action.dest == name]
        if not actions or name in ("help", "config"):
            raise InputError(_unknown(name, parser, "option in the config"))
        choices, nargs = actions[0].choices, actions[0].nargs
        if choices is not None and value is not None and value not in choices:
            raise InputError(f"{name}: {value!r} is none of {', '.join(map(str, choices))}")
        if value in ("on", "off") and actions[0].type is string_to_bool:
            value = value == "on"
        if isinstance(value, str) and nargs in ("+", "*"):
            value = [value]
        # argparse converts a default only if it is a string, as on the command line.
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        for action in actions:
            action.default = str(value) if numeric and nargs is None else value
            action.required = False


def _unknown(name: str, parser: Any, what: str) -> str:
    plain = name.lstrip("-").partition("=")[0].replace("-", "_")
    near = difflib.get_close_matches(plain, [action.dest for action in parser._actions], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown {what} {name!r}{hint}"


# ---- data ------------------------------------------------------------------------------------------


def load_rows(args: DataArguments, training: TrainingArguments, rules: RowRules) -> tuple[Any, Any]:
    """Checked training and evaluation rows; the latter `None` if not given.

    Raises:
        InputError: no data were given, or they cannot be read or trained on.
    """
    from modeling_tsarank.trainers.row_checks import checked_rows

    if args.train_data is None:
        raise InputError("train_data is missing: give a file, a folder or a dataset on the Hub")
    if args.max_train_rows is not None and args.max_train_rows < 2:
        raise InputError(f"max_train_rows must be at least 2, got {args.max_train_rows}")

    common: dict[str, Any] = {"drop_unusable": args.drop_unusable_rows, "config": args.data_config}
    # The main process converts and fills the cache, the others read it.
    with training.main_process_first(desc="loading training data"):
        where: dict[str, Any] = {
            "split": args.train_split,
            "permutations": args.permutations,
            "limit": args.max_train_rows,
        }
        train = checked_rows(args.train_data, rules, **where, **common)
        if args.eval_data is None:
            return train, None
        return train, checked_rows(args.eval_data, rules, minimum_rows=1, split=args.eval_split, **common)


def load_reranking_sets(args: RerankingArguments, training: TrainingArguments) -> list[RerankingSet]:
    """The collections to rerank during training."""
    from modeling_tsarank.trainers.reranking_evaluation import RerankingSet

    if not args.rerank_collection:
        return []
    with training.main_process_first(desc="loading reranking sets"):
        return [
            RerankingSet.load(
                collection,
                split=args.rerank_split,
                first_stage=args.rerank_first_stage,
                run_format=args.rerank_run_format,
                depth=args.rerank_depth,
                limit_queries=args.rerank_queries or None,
                measures=args.rerank_measures,
            )
            for collection in args.rerank_collection
        ]


# ---- running ---------------------------------------------------------------------------------------


def train_ranker(trainer_class: Any, config: Any, program: str, description: str, arguments: Any) -> None:
    """The `main` of a script that trains a ranking model; see `train_model`."""
    from transformers import set_seed

    from modeling_tsarank.trainers.base_models import load_base_ranker
    from modeling_tsarank.trainers.script_arguments import RankerArguments

    def load(given: Any, args: Any) -> dict[str, Any]:
        options = given.loading_options()
        set_seed(args.seed)  # a new head is initialized here
        return {"model": load_base_ranker(given.model_name_or_path, default_family=args.default_family, **options)}

    train_model(trainer_class, config, RankerArguments, load, program, description, arguments)


def train_model(
    trainer_class: Any,
    config: Any,
    model_arguments: Any,
    load: Callable[[Any, Any], dict[str, Any]],
    program: str,
    description: str,
    arguments: Any,
) -> None:
    """The `main` of a training script: parses, builds the trainer, trains, saves.

    Args:
        trainer_class: the trainer.
        config: its configuration class.
        model_arguments: class of the model options.
        load: returns the trainer's `model`, and related arguments, from the model options and the configuration.
        program: the command, for messages.
        description: description of the command.
        arguments: command line arguments; `None` takes the process's.

    Raises:
        TSARankError: user errors.
    """
    from transformers import EarlyStoppingCallback

    from modeling_tsarank.trainers.early_checks import check_settings, output_folder
    from modeling_tsarank.trainers.reranking_evaluation import RerankingEvaluation
    from modeling_tsarank.trainers.script_arguments import DataArguments, RerankingArguments
    from modeling_tsarank.trainers.training_record import describe_data

    types = (model_arguments, DataArguments, config, RerankingArguments)
    model_args, data_args, args, reranking_args = parse_arguments(types, arguments, program, description)
    check_settings(reranking_args, data_args, args)
    patience, least = reranking_args.early_stopping_patience, reranking_args.early_stopping_threshold
    reranks = issubclass(trainer_class, RerankingEvaluation)
    with output_folder(args):
        rows, eval_rows = load_rows(data_args, args, args.row_rules())
        reranking_sets = load_reranking_sets(reranking_args, args)
        trainer = type("Trainer", (trainer_class,) if reranks else (RerankingEvaluation, trainer_class), {})(
            **load(model_args, args),
            args=args,
            train_dataset=rows,
            eval_dataset=eval_rows,
            reranking_sets=reranking_sets,
            rerank_batch_tokens=reranking_args.rerank_batch_tokens,
            callbacks=[] if patience is None else [EarlyStoppingCallback(patience, least)],
        )
        trainer.data_source = describe_data(data_args.train_data, data_args.data_config, data_args.train_split)
        _train_and_save(trainer)


def _train_and_save(trainer: Any) -> None:
    """Trains (from a checkpoint with `resume_from_checkpoint`), saves the model and the log, leaves the process group.

    `resume_from_checkpoint` is a folder, `last` for the last complete checkpoint in `output_dir`, or `auto`, which
    starts a new training if there is none: the same command then works for the first start and for every restart.
    """
    from modeling_tsarank.trainers.checkpoint_files import asked_checkpoint, writing_errors
    from modeling_tsarank.trainers.even_batches import settle_gloo

    args = trainer.args
    try:
        trainer.train(resume_from_checkpoint=asked_checkpoint(args.resume_from_checkpoint, args.output_dir))
    except TSARankError as error:
        error.of_this_process = not getattr(error, "said_by_the_first", False) or trainer.is_world_process_zero()  # type: ignore[attr-defined]
        raise
    with writing_errors("the trained model", args.output_dir):
        trainer.save_model(args.output_dir)
        trainer.save_state()
    if trainer.is_world_process_zero():
        logger.info("the model was saved to %s", args.output_dir)
    if args.push_to_hub:
        trainer.push_to_hub()
    # Finishes the loggers and leaves the process group cleanly.
    settle_gloo()
    trainer.end()


def run_script(main: Callable[[Sequence[str] | None], None], arguments: Sequence[str] | None = None) -> int:
    """Runs a script's `main` and returns its exit status, see `run_command`; 130 or 143 if a signal stopped it."""
    logging.basicConfig(stream=sys.stderr, format="tsarank: %(message)s", level=logging.WARNING)
    # For developers: deprecation warnings of transformers, TRL and PEFT.
    warnings.simplefilter("ignore", FutureWarning)
    rank = int(os.environ.get("RANK", "0"))
    logging.getLogger("modeling_tsarank.trainers").setLevel(logging.INFO if rank == 0 else logging.ERROR)
    end_with_launcher()

    def run() -> int:
        try:
            with stopping():
                main(arguments)
        except StoppedError as stopped:
            if LAUNCHER not in os.environ and rank == 0:
                sys.stderr.write(f"{stopped_line(stopped.signal, sys.argv[1:] if arguments is None else arguments)}\n")
            return exit_status(stopped.signal)
        except TSARankError as error:
            # One process reports for all of its machine, which have the same error.
            if getattr(error, "of_this_process", int(os.environ.get("LOCAL_RANK", "0")) == 0):
                raise
            return 2
        except Exception:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                # If another process has ended, a collective with it fails here; its launcher reports that soon.
                time.sleep(3)
            raise
        return 0

    return run_command(run, where=f" (process {rank})" if rank else "", hint=f"{DEBUG_VARIABLE}=1")


def exit_script(status: int) -> NoReturn:
    """Ends the process; after a signal immediately, since a collective with other processes may never end."""
    sys.stderr.flush()
    sys.stdout.flush()
    if status > 128:
        os._exit(status)
    sys.exit(status)

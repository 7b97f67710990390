"""Checks before anything is loaded, for settings that would fail at the first step or hours into a training."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.ranking_errors import InputError, ResourceError
from modeling_tsarank.trainers.checkpoint_files import (
    asked_checkpoint,
    check_no_checkpoints,
    checkpoint_folders,
    only_training_in,
)
from modeling_tsarank.trainers.publishing import installed_publisher


if TYPE_CHECKING:
    from modeling_tsarank.trainers.script_arguments import DataArguments, RerankingArguments


logger = logging.getLogger(__name__)

_MEASURED = ("loss", "runtime", "samples_per_second", "steps_per_second")
_PROCESS_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_NTASKS")


def check_settings(reranking: RerankingArguments, data: DataArguments, training: Any) -> None:
    """Raises for settings that would only fail later.

    Raises:
        InputError: an unknown metric for the best checkpoint, early stopping without its requirements, an evaluation
            without data, an unknown logger, or options that the optimizer or the schedule does not support.
        ResourceError: a package is not installed, or the Hub, for publishing the model, cannot be used.
    """
    if training.eval_strategy != "no" and data.eval_data is None and not reranking.rerank_collection:
        raise InputError(
            f"eval_strategy is {training.eval_strategy.value}, but there is nothing to evaluate; set eval_data or "
            "rerank_collection"
        )
    if reranking.rerank_collection and training.eval_strategy == "no":
        raise InputError("rerank_collection is set, but eval_strategy is no; set it to steps or epoch")
    if reranking.rerank_collection and getattr(training, "score_form", None) == "one_pass":
        raise InputError("rerank_collection scores pair by pair; evaluate one-pass ranking with `tsarank evaluate`")
    if reranking.rerank_queries < 0:
        raise InputError(f"rerank_queries must be at least 0, got {reranking.rerank_queries}")
    _check_best(reranking, data, training)
    _check_loggers(training.report_to or [])
    _check_optimizer(training)
    if training.push_to_hub:
        installed_publisher()
        _check_hub(training)
    warn_of_missing_processes(training.world_size)


def _check_best(reranking: RerankingArguments, data: DataArguments, training: Any) -> None:
    if reranking.early_stopping_patience is not None and not (
        training.load_best_model_at_end and training.metric_for_best_model and training.eval_strategy != "no"
    ):
        raise InputError(
            "early_stopping_patience needs eval_strategy, load_best_model_at_end: true and metric_for_best_model "
            "(such as ndcg@10)"
        )
    if training.save_strategy == "best" and (training.eval_strategy == "no" or not training.metric_for_best_model):
        raise InputError("save_strategy best needs eval_strategy and metric_for_best_model (such as ndcg@10)")
    metric = (training.metric_for_best_model or "").removeprefix("eval_")
    if not metric or training.eval_strategy == "no":
        return
    if "@" in metric and not reranking.rerank_collection:
        raise InputError(f"metric_for_best_model is {metric}, which needs rerank_collection; set it")
    known = [] if data.eval_data is None else [*_MEASURED, *training.evaluation_figures()]
    if reranking.rerank_collection:
        from modeling_tsarank.eval.metrics import canonical_measure

        measures = [canonical_measure(measure) for measure in reranking.rerank_measures]
        known += measures
        if len(reranking.rerank_collection) > 1 and metric.endswith(tuple(f"_{measure}" for measure in measures)):
            return  # of one of several collections, whose names are known only after loading
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise InputError(f"metric_for_best_model is {metric}, which is not an evaluation metric; {hint}")


def _check_loggers(names: list[str]) -> None:
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    available = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are none, {', '.join(INTEGRATION_TO_CALLBACK)}"
            raise InputError(f"report_to: unknown logger {name!r}; {hint}")
        if name not in available:
            raise ResourceError(f"report_to {name} needs the package {name}: pip install {name}")


def _check_optimizer(training: Any) -> None:
    """Creates optimizer and schedule for one dummy weight."""
    import torch
    from transformers import Trainer, get_scheduler

    name = training.optim.value
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer: Any = torch.optim.SGD([weight])
    try:
        made, options = Trainer.get_optimizer_cls_and_kwargs(training)
        if made.__module__.startswith(("torch.optim", "transformers.")) and "params" not in options:
            optimizer = made([weight], **options)
    except ImportError as error:
        raise ResourceError(f"optim {name}: {error}") from error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        if "install" in str(error).lower() or "failed to import" in str(error).lower():
            raise ResourceError(f"optim {name}: {error}") from error
        if training.optim_target_modules is None or "target" in str(error):
            given = f" with optim_args {training.optim_args!r}" if training.optim_args else ""
            raise InputError(f"optim {name} cannot be created{given}: {error}") from error
    try:
        get_scheduler(
            training.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=training.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=training.lr_scheduler_kwargs,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        scheduler = getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)
        given = f" with lr_scheduler_kwargs {training.lr_scheduler_kwargs!r}" if training.lr_scheduler_kwargs else ""
        raise InputError(f"lr_scheduler_type {scheduler} cannot be created{given}: {error}") from error


def _check_hub(training: Any) -> None:
    from huggingface_hub import HfApi

    try:
        HfApi().whoami(token=training.hub_token)
    except Exception as error:
        # From the network, the Hub or its client: in all cases nothing could be published in the end.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ResourceError(
            f"push_to_hub is on, but the Hub cannot be used ({reason}); log in, or publish later"
        ) from error


def warn_of_missing_processes(count: int) -> None:
    """Warns if the environment is set up for more processes than there are: each would train on all data."""
    for name in _PROCESS_COUNTS:
        value = os.environ.get(name, "")
        if value.isdecimal() and int(value) > count:
            logger.warning(
                "%s asks for %s processes, but %d started; start them with `tsarank train KIND --num-processes %s`",
                *(name, value, count, value),
            )
            return
    if count == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        logger.warning(
            "the environment is set up for several processes, but there is one: on a CPU, `accelerate launch` starts "
            "one whatever --num_processes says; use `tsarank train KIND --num-processes N`"
        )


@contextlib.contextmanager
def output_folder(training: Any) -> Iterator[None]:
    """Locks `output_dir` against other trainings while the body runs, after checking its content.

    Raises:
        InputError: another training is running there, there is no checkpoint to resume from, or there are checkpoints
            and `resume_from_checkpoint` is not set.
        ResourceError: the folder cannot be written.
    """
    folder = str(training.output_dir)
    with only_training_in(folder) if training.process_index == 0 else contextlib.nullcontext():
        resume = asked_checkpoint(training.resume_from_checkpoint, folder)
        if not resume:
            check_no_checkpoints(folder)
        elif resume is True:
            if not checkpoint_folders(folder):
                raise InputError(f"no checkpoint to resume from in {folder}")
        elif not Path(resume).is_dir():
            raise InputError(
                f"{resume} is not a complete checkpoint (there is no such folder); resume from another, or `auto`"
            )
        yield

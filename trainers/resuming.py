"""What a checkpoint was trained with, and whether what is asked for now is the same.

Resuming goes on with the optimizer, the schedule and the place in the data of the checkpoint. Another learning rate
would be ignored by them, other data be counted as if they had been trained on: such differences are named and refused.
Two are carried out: a later or an earlier end, and another division of the same batch among processes and steps.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.jobs.bulk_scoring import tokenizer_identity
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import CONFIG_KEY
from modeling_tsarank.trainers.checkpoint_files import read_state
from modeling_tsarank.trainers.rows import PLACE
from modeling_tsarank.trainers.training_record import settings


logger = logging.getLogger(__name__)

RUN_SETTINGS = "run_settings.json"
# Raised whenever the same settings train otherwise: with it, checkpoints of before are refused.
RUN_VERSION = 2
# How the work is divided, when it ends, and what shapes no weight.
_FREE = {
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps"),
    *("per_device_eval_batch_size", "load_best_model_at_end", "prediction_loss_only", "auto_find_batch_size"),
    *("torch_empty_cache_steps", "skip_memory_metrics", "do_train", "do_eval", "do_predict", "local_rank"),
    *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint", "full_determinism", "dataset_num_proc"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel", "liger_kernel_config"),
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "activation_offloading", "tf32"),
    *("batch_eval_metrics", "parallelism_config", "average_tokens_across_devices"),
}
_DIGESTS = {
    "rows": "the training rows",
    "evaluation": "the rows or collections that choose the best checkpoint",
    "frozen_weights": "the weights of the model it starts from",
    "start_weights": "the weights of the model it starts from",
    "configuration": "the model's configuration (model_init_kwargs)",
    "tokenizer": "the tokenizer's vocabulary or settings",
}
_KNOWN_LATE = {*_DIGESTS, "metric_for_best_model", "greater_is_better", "attn_implementation"}
# Of a configuration: where it came from, and what the trainers set themselves.
_OTHER = re.compile("_name_or_path|transformers_version|auto_map|custom_pipelines|use_cache|.*_token_id|dtype")


def run_settings(trainer: Any) -> dict[str, Any]:
    """Everything of a training that must be the same when it is resumed, as plain JSON values."""
    args, config = trainer.args, trainer.ranker.backbone.config
    kept = {k: v for k, v in config.to_dict().items() if k != CONFIG_KEY and not _OTHER.fullmatch(k)}
    found = {name: value for name, value in settings(args).items() if name not in _FREE}
    found |= {
        "version": RUN_VERSION,
        "batch": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "rows": None if trainer.training_rows is None else rows_digest(trainer.training_rows),
        "evaluation": evaluation_digest(trainer),
        "frozen_weights": weights_digest(trainer, trained=False),
        "start_weights": trainer.start_weights,
        "trainable": args.trainable,
        "attn_implementation": config._attn_implementation,
        "configuration": hash_parts([json.dumps(kept, sort_keys=True, default=str)]),
        "tokenizer": tokenizer_identity(trainer.ranker.tokenizer),
        **{f"ranking option {name}": value for name, value in trainer.ranker.options.to_dict().items()},
    }
    return dict(json.loads(json.dumps(found, default=str)))


def rows_digest(rows: Any) -> str:
    """A hash of all rows, in order."""
    told = ({name: value for name, value in dict(row).items() if name != PLACE} for row in rows)
    return hash_parts(json.dumps(row, sort_keys=True, default=str) for row in told)


def evaluation_digest(trainer: Any) -> str | None:
    """A hash of all that is evaluated, in order; `None` where no evaluation decides on a checkpoint."""
    if not trainer.args.metric_for_best_model or trainer.args.eval_strategy == "no":
        return None
    datasets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    parts = [
        f"{name} {rows_digest(getattr(rows, 'rows', rows))}" for name, rows in datasets.items() if rows is not None
    ]
    for one in getattr(trainer, "reranking_sets", ()):
        parts.append(json.dumps([one.name, one.queries, one.candidates, one.qrels, list(one.measures)], default=str))
    return hash_parts(parts)


def weights_digest(trainer: Any, trained: bool) -> str | None:
    """A checksum of the trained or of the other weights; `None` where they are sharded.

    A checkpoint holds the trained ones only, and these not as they were at the start.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return None
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    parts = []
    for name, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
        if parameter.requires_grad == trained:
            bits = parameter.detach().contiguous().view(-1).view(integers[parameter.element_size()])
            parts.append(f"{name} {tuple(parameter.shape)} {int(bits.sum(dtype=torch.int64))}")
    return hash_parts(parts)


def check_resumed(trainer: Any, checkpoint: Path, recorded: dict[str, Any] | None, total_steps: int) -> dict[str, Any]:
    """Compares a checkpoint with what is asked for now.

    Args:
        trainer: about to resume.
        checkpoint: a whole one.
        recorded: its `run_settings`; `None` where it has none.
        total_steps: updates of the training that is asked for.

    Returns:
        What was changed and is carried out, name to (before, now), for the record of the training.

    Raises:
        InputError: another version wrote it; or names every setting that differs.
    """
    state = read_state(checkpoint)
    asked = run_settings(trainer)
    if recorded is None or recorded.get("version") != RUN_VERSION:
        raise InputError(
            f"{checkpoint} was written by another version of tsarank, whose trainings this one cannot go on with; "
            "finish it with that version, or start a new training in another output_dir"
        )
    different = dict.fromkeys(
        _said(name, recorded.get(name), asked.get(name))
        for name in sorted({*recorded, *asked})
        if recorded.get(name) != asked.get(name)
        # One side cannot tell, or has had no use for it.
        and not (name in _KNOWN_LATE and None in (recorded.get(name), asked.get(name)))
    )
    if different:
        raise InputError(
            f"{checkpoint} was trained with other settings: {'; '.join(different)}. Resume with its own, or start a "
            "new training in another output_dir"
        )
    done, planned = int(state["global_step"]), int(state["max_steps"])
    if total_steps == planned:
        return {}
    if total_steps <= done:
        raise InputError(
            f"{checkpoint} is at update {done} of {planned} already, and {total_steps} are asked for: nothing is left "
            "to train; raise max_steps or num_train_epochs, or take an earlier checkpoint"
        )
    logger.warning(
        "%s was on its way to %d updates and goes on to %d; the learning rate follows the schedule of %d from here",
        *(checkpoint.name, planned, total_steps, total_steps),
    )
    return {"steps": [planned, total_steps]}


def _said(name: str, before: Any, now: Any) -> str:
    if name in _DIGESTS:
        return f"{_DIGESTS[name]} are others"
    said = "rows in an update (batch size x accumulation x processes)" if name == "batch" else name
    return f"{said} was {json.dumps(before)}, now {json.dumps(now)}"

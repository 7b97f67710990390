"""The settings of a checkpoint, and their comparison with the current ones.

A resumed training continues with the optimizer, the schedule and the data position of the checkpoint. They would
ignore another learning rate, and count other data as already trained on: such differences are listed and raise an
error. Two are allowed: another number of updates, and the same batch divided differently among processes and steps.
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
# Increase it whenever the same settings train differently: older checkpoints are then rejected.
RUN_VERSION = 2
# How the work is divided, when it ends, and settings that do not affect the weights.
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
    "evaluation": "the rows or collections that select the best checkpoint",
    "frozen_weights": "the weights of the model it starts from",
    "start_weights": "the weights of the model it starts from",
    "configuration": "the model's configuration (model_init_kwargs)",
    "tokenizer": "the tokenizer's vocabulary or settings",
}
_KNOWN_LATE = {*_DIGESTS, "metric_for_best_model", "greater_is_better", "attn_implementation"}
# Fields of a configuration on its origin, and fields that the trainers set themselves.
_OTHER = re.compile("_name_or_path|transformers_version|auto_map|custom_pipelines|use_cache|.*_token_id|dtype")


def run_settings(trainer: Any) -> dict[str, Any]:
    """All settings of a training that must not change on resuming, as plain JSON values."""
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
    """A hash of all evaluation data, in order; `None` if no evaluation selects a checkpoint."""
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
    """A checksum of the trained or of the other weights; `None` if they are sharded.

    A checkpoint contains only the trained ones, and not their initial values.
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
    """Compares a checkpoint with the current settings.

    Args:
        trainer: the trainer that is about to resume.
        checkpoint: a complete one.
        recorded: its `run_settings`; `None` if it has none.
        total_steps: number of updates of the current training.

    Returns:
        The allowed changes, name to (before, now), for the training record.

    Raises:
        InputError: it was written by another version; or the message lists every setting that differs.
    """
    state = read_state(checkpoint)
    asked = run_settings(trainer)
    if recorded is None or recorded.get("version") != RUN_VERSION:
        raise InputError(
            f"{checkpoint} was written by another version of tsarank and cannot be resumed by this one; "
            "finish it with that version, or start a new training in another output_dir"
        )
    different = dict.fromkeys(
        _said(name, recorded.get(name), asked.get(name))
        for name in sorted({*recorded, *asked})
        if recorded.get(name) != asked.get(name)
        # Unknown or unused on one of the two sides.
        and not (name in _KNOWN_LATE and None in (recorded.get(name), asked.get(name)))
    )
    if different:
        raise InputError(
            f"{checkpoint} was trained with other settings: {'; '.join(different)}. Resume with those, or start "
            "a new training in another output_dir"
        )
    done, planned = int(state["global_step"]), int(state["max_steps"])
    if total_steps == planned:
        return {}
    if total_steps <= done:
        raise InputError(
            f"{checkpoint} is already at update {done} of {planned}, and {total_steps} are requested: nothing is left "
            "to train; raise max_steps or num_train_epochs, or resume from an earlier checkpoint"
        )
    logger.warning(
        "%s was planned for %d updates and continues to %d; the learning rate follows the schedule of %d from here",
        *(checkpoint.name, planned, total_steps, total_steps),
    )
    return {"steps": [planned, total_steps]}


def _said(name: str, before: Any, now: Any) -> str:
    if name in _DIGESTS:
        return f"{_DIGESTS[name]} are different"
    said = "rows per update (batch size x accumulation x processes)" if name == "batch" else name
    return f"{said} was {json.dumps(before)}, now {json.dumps(now)}"

"""`training_run.json`: the record of a training, written next to the model, for its card.

It contains nothing private: only the names of local files, and neither tokens nor folders among the settings.
"""

from __future__ import annotations

import platform
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.versions import installed_version
from modeling_tsarank.models.default_model import GGUF_NAME
from modeling_tsarank.models.embedded_models import RECORD_FILE, releases
from modeling_tsarank.models.resolver import Kind, packaged_name, resolve
from modeling_tsarank.trainers.data.provenance import FILE_NAME as PROVENANCE_NAME
from modeling_tsarank.trainers.data.provenance import recorded_origin


RECORD_NAME = RECORD_FILE
RECORD_VERSION = 1
DEFAULT_MODEL = {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}

_DATA = ("name", "fingerprint", "config", "split", "teachers", "leakage")
_PACKAGES = ("tsarank", "torch", "transformers", "accelerate", "datasets", "peft", "trl")
# Settings of every training; a trainer's own are all recorded, the many others only if they were changed.
_ALWAYS = (
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "seed",
    "bf16",
    "fp16",
)
# Paths, logging, and the use of the machine: settings that do not affect the weights.
_NEVER = {
    *("output_dir", "logging_dir", "run_name", "push_to_hub", "resume_from_checkpoint", "report_to", "project"),
    *("deepspeed", "fsdp", "accelerator_config", "disable_tqdm", "use_cpu", "debug", "remove_unused_columns"),
    *("dataset_kwargs", "model_init_kwargs", "trackio_space_id", "checkpoint_ranker", "merge_adapter", "trainable"),
    *("activation_checkpointing", "gradient_checkpointing", "chunk_tokens"),
}
_NEVER_BEGINNING = ("logging_", "save_", "hub_", "eval_", "dataloader_", "ddp_", "log_", "include_", "push_")


def describe_data(source: str, config: str | None = None, split: str | None = None) -> dict[str, Any]:
    """The origin of training rows, for the record.

    Args:
        source: the user's path or Hub id.
        config: the dataset's configuration on the Hub, or `None`.
        split: the split, or `None`.

    Returns:
        `name` (without the path of a local file or folder), `fingerprint` of a local file, `config`, `split`, and the
        recorded `teachers` and `leakage` check, see `data.provenance.recorded_origin`.
    """
    path = Path(source)
    facts: dict[str, Any] = {"name": source, "fingerprint": None, "config": config, "split": split}
    if not path.exists():
        return facts | _published_origin(source)
    fingerprint = f"sha256:{hash_file(path)[:16]}" if path.is_file() else None
    return facts | {"name": path.resolve().name, "fingerprint": fingerprint, "config": None} | recorded_origin(path)


def _published_origin(dataset: str) -> dict[str, Any]:
    """The facts in the `provenance.json` of a dataset on the Hub, if it has one."""
    from huggingface_hub import hf_hub_download

    try:
        record = hf_hub_download(dataset, PROVENANCE_NAME, repo_type="dataset")
    except Exception:  # the card then says that nothing is recorded; a training must not fail because of it
        return {"teachers": None, "leakage": None}
    return recorded_origin(Path(record).parent)


def training_record(trainer: Any) -> dict[str, Any]:
    """The facts of a training so far, as plain values.

    `started_from` is the base model, with the record of its own training if it has one; `seconds` is the wall time
    of the last session, which is not the only one if `resumed_from_step` is set.
    """
    args, state = trainer.args, trainer.state
    source = trainer.data_source or dict.fromkeys(_DATA)
    kind = type(args).__name__.removesuffix("Config").removeprefix("Ranking").lower()
    return {
        "version": RECORD_VERSION,
        "kind": kind,
        "started_from": base_model_facts(trainer.started_from),
        "ranking_options": None if kind == "cpt" else trainer.ranker.options.to_dict(),
        "trained": _trained(trainer),
        "data": {
            **source,
            "rows": None if trainer.train_dataset is None else len(trainer.train_dataset),
            "teachers": _teachers(trainer, source["teachers"]),
        },
        "settings": settings(args),
        "steps": state.global_step,
        "epochs": None if state.epoch is None else round(float(state.epoch), 4),
        "final_loss": _last(state.log_history, "loss"),
        "evaluations": [entry for entry in state.log_history if any(name.startswith("eval_") for name in entry)],
        "best_checkpoint_metric": args.metric_for_best_model if args.load_best_model_at_end else None,
        "hardware": hardware(args),
        "seconds": _last(state.log_history, "train_runtime"),
        "resumed_from_step": trainer.resumed_from_step,
        "changed_on_resuming": trainer.changed_on_resuming or None,
        "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in _PACKAGES},
    }


def _teachers(trainer: Any, recorded: Any) -> list[dict[str, str | None]] | None:
    """The teachers in the data's record, else those in the rows' own column; `None` if neither has any."""
    rows: Any = getattr(trainer.train_dataset, "rows", None)
    if recorded is not None or "teacher" not in (getattr(rows, "column_names", None) or ()):
        return recorded
    return [{"name": str(name), "trained_on": None} for name in sorted(filter(None, rows.unique("teacher")))]


def base_model_facts(name_or_path: str) -> dict[str, Any]:
    """Name, licence and earlier training of a base model; unknown facts are `None`.

    For a local folder written by a training, the base is that training's own base.
    """
    path, record = Path(name_or_path), None
    source = resolve(packaged_name(name_or_path)) if name_or_path else None
    facts: dict[str, Any] = {"name": name_or_path or None, "license": None, "local": False, "training": None}
    if path.name == GGUF_NAME or (source is not None and source.kind is Kind.EMBEDDED):
        facts |= DEFAULT_MODEL
    elif source is not None and source.kind is Kind.RELEASE:
        facts |= {"name": source.name, "license": DEFAULT_MODEL["license"]}
        record = releases()[source.name].folder / RECORD_NAME
    elif name_or_path and path.exists():
        facts |= {"name": path.resolve().name, "local": True}
        record = path / RECORD_NAME if path.is_dir() else path.with_name(RECORD_NAME)
    if record is not None and record.is_file():
        facts["training"] = read_json_object(record, allow_nan=True)
    return facts


def settings(args: TrainingArguments) -> dict[str, Any]:
    """The settings that affect the weights: the training's own, the usual ones, and others that were changed."""
    common = {field.name: field for field in fields(TrainingArguments)}
    found = {}
    for name, value in args.to_dict().items():
        if name in _NEVER or not _has_effect(name, args):
            continue
        field = common.get(name)
        if name in _ALWAYS or field is None or value != _default(field):
            found[name] = Path(value).name if name == "ref_model" and value else value
    return {name: value for name, value in sorted(found.items()) if value is not None}


def _has_effect(name: str, args: Any) -> bool:
    if name.startswith(_NEVER_BEGINNING):
        return name == "dataloader_drop_last"  # the only one of them that affects which rows are trained on
    part = getattr(args, "trainable", None)
    if name in getattr(args, "idle_settings", set)():
        return False
    return not (name.startswith("lora_") and part != "lora") and not (name == "top_blocks" and part != "top_blocks")


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def hardware(args: Any) -> dict[str, Any]:
    """The hardware of the training."""
    if args.device.type == "cuda":
        name = torch.cuda.get_device_name(args.device)
    else:
        name = _processor() if args.device.type == "cpu" else args.device.type
    return {"device": name, "processes": args.world_size}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _trained(trainer: Any) -> dict[str, Any]:
    parameters = list(trainer.accelerator.unwrap_model(trainer.model).parameters())
    counted = {id(parameter): parameter for parameter in parameters}.values()
    trained = sum(parameter.numel() for parameter in counted if parameter.requires_grad)
    return {"part": trainer.args.trainable, "parameters": trained, "of": sum(p.numel() for p in counted)}


def _last(history: list[dict[str, Any]], name: str) -> float | None:
    return next((float(entry[name]) for entry in reversed(history) if name in entry), None)

"""Trainings of three updates, with a checkpoint of each."""

from __future__ import annotations

from typing import Any

import torch


SHORT: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "trainable": "lora",
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "num_negatives": 3,
    "score_form": "mean_log_prob",
    "temperature": 0.1,
    "max_length": 120,
    "max_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
}


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.module.ranker.named_parameters()}

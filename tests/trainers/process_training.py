"""Trains as one of several processes.

A job names a ranking folder, rows and a configuration; the first process writes each run's weights and log.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from forked import join, start
from safetensors.torch import save_file
from transformers import AutoConfig

from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.modeling_twolar import TwolarModel
from modeling_tsarank.trainers.cpt_config import CPTConfig
from modeling_tsarank.trainers.cpt_trainer import CPTTrainer
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
from modeling_tsarank.trainers.even_batches import settle_gloo_at_exit
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer


KINDS = {
    "sft": (RankingSFTConfig, RankingSFTTrainer),
    "distill": (RankingDistillConfig, RankingDistillTrainer),
}


def make_trainer(job: dict) -> Any:
    if job["kind"] == "cpt":
        return CPTTrainer(job["folder"], CPTConfig(**job["config"]), job["rows"], eval_dataset=job.get("eval_rows"))
    config, trainer_class = KINDS[job["kind"]]
    t5 = AutoConfig.from_pretrained(job["folder"]).is_encoder_decoder
    ranker = (TwolarModel if t5 else TSARankModel).from_pretrained(job["folder"])
    return trainer_class(ranker, config(**job["config"]), job["rows"], eval_dataset=job.get("eval_rows"))


def train(job: dict) -> None:
    trainer = make_trainer(job)
    trainer.train()
    evaluation = trainer.evaluate() if "eval_rows" in job else None
    if trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        output = Path(job["output"])
        save_file(weights, output / "trained.safetensors")
        record = {"processes": trainer.args.world_size, "log": trainer.state.log_history, "evaluation": evaluation}
        record["settles_at_exit"] = settle_gloo_at_exit.cache_info().currsize == 1
        (output / "log.json").write_text(json.dumps(record))


def train_together(jobs: list[dict], count: int) -> None:
    """Each job by that many processes."""

    def all_jobs(_: int) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one was forked from
        GradientState._reset_state()
        for job in jobs:
            train(job)

    join(start(count, all_jobs), 300)

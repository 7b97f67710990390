"""Trains as one of several processes: `python process_training.py JOB.json`, started by torch.distributed.run.

The job names ranking folders, rows and configurations; the first process writes each run's weights and log.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoConfig

from modeling_tsarank.eval.processes import settle_gloo_at_exit
from modeling_tsarank.modeling_tsarank import TSARankModel
from modeling_tsarank.modeling_twolar import TwolarModel
from modeling_tsarank.trainers.distill_config import RankingDistillConfig
from modeling_tsarank.trainers.distill_trainer import RankingDistillTrainer
from modeling_tsarank.trainers.sft_config import RankingSFTConfig
from modeling_tsarank.trainers.sft_trainer import RankingSFTTrainer


KINDS = {
    "sft": (RankingSFTConfig, RankingSFTTrainer),
    "distill": (RankingDistillConfig, RankingDistillTrainer),
}


def train(job: dict) -> None:
    config, trainer_class = KINDS[job["kind"]]
    t5 = AutoConfig.from_pretrained(job["folder"]).is_encoder_decoder
    ranker = (TwolarModel if t5 else TSARankModel).from_pretrained(job["folder"])
    trainer = trainer_class(ranker, config(**job["config"]), job["rows"])
    trainer.train()
    if trainer.is_world_process_zero():
        weights = {name: value.detach() for name, value in trainer.module.named_parameters() if value.requires_grad}
        output = Path(job["output"])
        save_file(weights, output / "trained.safetensors")
        record = {"processes": trainer.args.world_size, "log": trainer.state.log_history}
        record["settles_at_exit"] = settle_gloo_at_exit.cache_info().currsize == 1
        (output / "log.json").write_text(json.dumps(record))


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        train(job)

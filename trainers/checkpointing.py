"""Checkpoints of ranking trainers: written whole or not at all, resumed bit for bit, exported as ranking folders.

A checkpoint holds, beside what every Trainer writes (optimizer, scheduler, random states, trainer state):

- `trained_weights.safetensors`: the trained parameters as they are in memory, from which training is resumed;
- `adapter/`: the PEFT adapter, with LoRA; or
- the files of a ranking folder, without LoRA and unless `checkpoint_ranker` is off.
"""

from __future__ import annotations

import importlib
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from modeling_tsarank.eval.processes import settle_gloo_at_exit
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.even_batches import EvenBatchesTrainer
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.ranking_module import RankingModule
from modeling_tsarank.trainers.saving import replace_folder, whole_files
from modeling_tsarank.trainers.trainable import save_ranker, trained_parameters
from modeling_tsarank.trainers.training_record import DataSource, write_training_record


logger = logging.getLogger(__name__)

TRAINED_WEIGHTS = "trained_weights.safetensors"
ADAPTER_FOLDER = "adapter"
UNFINISHED = ".unfinished-checkpoint"
BACKBONE_PREFIX = "ranker.backbone."
# The publishing room stands above this one, so it is found by name when a training is to be published.
PUBLISHING_MODULE = "modeling_tsarank.hub_cards.trainer_publishing"


def whole_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoint folders that were written to the end, by step."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        # The trainer's state is the last file that is written.
        if number and (folder / TRAINER_STATE_NAME).is_file():
            found.append((int(number[1]), folder))
    return [folder for _, folder in sorted(found)]


class CheckpointingTrainer(EvenBatchesTrainer):
    """The part of a ranking trainer that writes and reads files."""

    args: RankingConfig
    # What `training_run.json` says of the start: the base model, where the rows came from, the step resumed from.
    started_from: str = ""
    data_source: DataSource | None = None
    resumed_from_step: int | None = None
    _staging: Path | None = None

    @property
    def module(self) -> RankingModule:
        """The module in training without distributed wrappers."""
        return self.accelerator.unwrap_model(self.model)

    # ---- starting --------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains, from the start or from a checkpoint; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint folder, or `True` for the last whole one in `output_dir`.

        Raises:
            InputError: `output_dir` holds checkpoints of another run and nothing was said about resuming, or there is
                no such checkpoint.
            NonFiniteScoreError: the loss or a gradient is NaN or infinite; the batch is saved for inspection.
        """
        settle_gloo_at_exit()
        checkpoints = whole_checkpoints(str(self.args.output_dir))
        if resume_from_checkpoint is True or resume_from_checkpoint == "True":
            if not checkpoints:
                raise InputError(f"no checkpoint to resume from in {self.args.output_dir}")
            resume_from_checkpoint = str(checkpoints[-1])
        elif resume_from_checkpoint:
            if not (Path(resume_from_checkpoint) / TRAINER_STATE_NAME).is_file():
                raise InputError(f"{resume_from_checkpoint} is no whole checkpoint ({TRAINER_STATE_NAME} is missing)")
        elif checkpoints and self.state.global_step == 0:
            raise InputError(
                f"{self.args.output_dir} already holds {checkpoints[-1].name} of another run, which would be "
                "overwritten; resume from it (resume_from_checkpoint) or name another output_dir"
            )
        if resume_from_checkpoint:
            found = re.search(r"checkpoint-(\d+)$", str(resume_from_checkpoint).rstrip("/"))
            self.resumed_from_step = int(found[1]) if found else None
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    # ---- writing ---------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Lets `Trainer` write into a folder beside, then moves the whole checkpoint to its place in one step."""
        run_dir = Path(super()._get_output_dir(trial))
        staging = run_dir / UNFINISHED
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        source = staging / f"checkpoint-{self.state.global_step}"
        target = run_dir / source.name
        if self.state.best_model_checkpoint == str(source):
            self.state.best_model_checkpoint = str(target)
        if self.args.should_save:
            self.state.save_to_json(str(source / TRAINER_STATE_NAME))
            replace_folder(source, target)
            shutil.rmtree(staging, ignore_errors=True)
            limit = self.args.save_total_limit
            rotate_checkpoints(str(run_dir), limit, self.state.best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: a ranker is published whole, once, when the training has ended."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the model: into a checkpoint what the module's head says, else a ranking folder and the adapter."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        state = None if state_dict is None else _backbone_state(state_dict)
        lora = self.module.part.kind == "lora"
        if lora:
            self._save_adapter(folder / ADAPTER_FOLDER, state)
        if self._staging is not None:
            self._save_trained(folder, state)
            ranker_too = not lora and self.args.checkpoint_ranker
        else:
            ranker_too = not lora or self.args.merge_adapter
        if ranker_too:
            save_ranker(self.module.ranker, self.module.part, folder, state)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)
        if self._staging is None:
            write_training_record(self, folder)

    def _save_adapter(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        if state is not None:
            state = {f"base_model.model.{name}": value for name, value in state.items()}
        with whole_files(folder) as staging:
            self.module.part.adapter.save_pretrained(str(staging), state_dict=state)
            # PEFT's model card says nothing about a ranker; cards are written when a model is published.
            (staging / "README.md").unlink(missing_ok=True)

    def _save_trained(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        weights = {
            name: (parameter if state is None else state[name]).detach().contiguous().cpu()
            for name, parameter in trained_parameters(self.module.ranker.backbone)
        }
        with whole_files(folder) as staging:
            save_file(weights, staging / TRAINED_WEIGHTS, metadata={"format": "pt"})

    # ---- publishing ------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As `transformers.Trainer`'s, but private unless `hub_private_repo` says otherwise."""
        if private is None and self.args.hub_private_repo is None:
            private = True
        super().init_hf_repo(token=token, private=private)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card that publishing writes, out of what this training recorded, into `output_dir`."""
        if self.is_world_process_zero():
            importlib.import_module(PUBLISHING_MODULE).write_card(self)

    def push_to_hub(self, commit_message: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Saves and publishes the model as `tsarank publish model` does: one commit, no training state.

        Returns the commit's address, `None` on other processes than the first.
        """
        token, private = kwargs.pop("token", None), kwargs.pop("private", None)
        self.save_model(_internal_call=True)
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return importlib.import_module(PUBLISHING_MODULE).push(self, commit_message, token)

    # ---- reading ---------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_trained(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        best, score = self.state.best_model_checkpoint, self.state.best_metric
        logger.info("taking the best checkpoint %s (%s = %s)", best, self.args.metric_for_best_model, score)
        self._load_trained(Path(str(best)))

    def _load_trained(self, checkpoint: Path) -> None:
        path = checkpoint / TRAINED_WEIGHTS
        if not path.is_file():
            raise InputError(f"{checkpoint} holds no {TRAINED_WEIGHTS}; it was not written by a ranking trainer")
        weights = load_file(path)
        parameters = dict(trained_parameters(self.module.ranker.backbone))
        if set(weights) != set(parameters):
            raise InputError(
                f"{checkpoint} was written with other trained parameters ({_some(set(weights) ^ set(parameters))}); "
                "resume with the model and the trainable part (trainable, top_blocks, lora_*) it was written with"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.shape != weights[name].shape:
                    shapes = f"{tuple(weights[name].shape)}, not {tuple(parameter.shape)}"
                    raise InputError(f"{checkpoint}: {name} has the shape {shapes}; resume with the same settings")
                parameter.copy_(weights[name])


def _backbone_state(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of the gathered weights of the whole module, under its own names."""
    prefix = BACKBONE_PREFIX
    return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}


def _some(names: Iterable[str], count: int = 2) -> str:
    names = sorted(names)
    rest = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest

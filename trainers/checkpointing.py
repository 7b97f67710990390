"""Checkpoints of ranking trainers: written atomically, resumed bit for bit, exported as ranking folders.

In addition to the files of every Trainer (optimizer, scheduler, random states, trainer state), a checkpoint contains:

- `trained_weights.safetensors`: the trained parameters in their in-memory dtype, for resuming;
- `adapter/`: the PEFT adapter, with LoRA; or
- the files of a ranking folder, without LoRA and unless `checkpoint_ranker` is off;
- `run_settings.json`: settings compared on resuming, and `checkpoint_manifest.json`: sizes and hashes of all files.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import rotate_checkpoints

from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.writing import replace_folder, write_json
from modeling_tsarank.ranking_errors import InputError, NonFiniteScoreError, TSARankError
from modeling_tsarank.trainers.checkpoint_files import (
    asked_checkpoint,
    check_no_checkpoints,
    checkpoint_problem,
    newest_whole_checkpoint,
    only_training_in,
    read_state,
    whole_files,
    write_manifest,
    writing_errors,
)
from modeling_tsarank.trainers.even_batches import EvenBatchesTrainer, settle_gloo_at_exit
from modeling_tsarank.trainers.publishing import Publisher, installed_publisher
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.ranking_module import RankingModule
from modeling_tsarank.trainers.resuming import RUN_SETTINGS, check_resumed, run_settings, weights_digest
from modeling_tsarank.trainers.trainable import save_ranker, trained_parameters
from modeling_tsarank.trainers.training_record import RECORD_NAME, training_record


logger = logging.getLogger(__name__)

TRAINED_WEIGHTS = "trained_weights.safetensors"
ADAPTER_FOLDER = "adapter"
UNFINISHED = ".unfinished-checkpoint"
BACKBONE_PREFIX = "ranker.backbone."


class CheckpointingTrainer(EvenBatchesTrainer):
    """The file handling of a ranking trainer."""

    args: RankingConfig
    # Writes the card and publishes; None for the installed publisher.
    publisher: Publisher | None = None
    # Facts of the start for `training_run.json`: the base model, the data's origin, the step resumed from.
    started_from: str = ""
    data_source: dict[str, Any] | None = None
    resumed_from_step: int | None = None
    changed_on_resuming: dict[str, Any] | None = None
    # The rows as given; a checkpoint is resumed only if it was trained on the same rows.
    training_rows: Any = None
    # A checksum of the trained weights before the first update; LoRA's are initialized from the seed.
    start_weights: str | None = None
    _resumed_from: Path | None = None
    _staging: Path | None = None

    @property
    def module(self) -> RankingModule:
        """The module in training without distributed wrappers."""
        # Cached: searching for wrappers traverses every submodule, several times per step.
        return self.model if isinstance(self.model, RankingModule) else self.accelerator.unwrap_model(self.model)

    # ---- starting --------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains, from the start or from a checkpoint; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: a checkpoint folder, or `True` for the newest complete one in `output_dir`; the
                keywords of the scripts (`last`, `auto`, `false`) work too.

        Raises:
            InputError: another training is running in `output_dir`, or it has checkpoints of another run and
                `resume_from_checkpoint` is not set, or the checkpoint is incomplete or of other settings.
            NonFiniteScoreError: the loss or a gradient is NaN or infinite; the batch is saved for inspection.
            ResourceError: a checkpoint cannot be written.
        """
        settle_gloo_at_exit()
        main = self.is_world_process_zero()
        with only_training_in(str(self.args.output_dir)) if main else contextlib.nullcontext():
            if self.start_weights is None and self.args.trainable != "lora":
                self.start_weights = weights_digest(self, trained=True)
            checkpoint = self._decided_once(lambda: self._checkpoint_to_resume(resume_from_checkpoint))
            self._resumed_from = None if checkpoint is None else Path(checkpoint)
            if checkpoint is not None:
                found = re.search(r"checkpoint-(\d+)$", checkpoint)
                self.resumed_from_step = int(found[1]) if found else None
            return super().train(checkpoint, *args, **kwargs)

    def _checkpoint_to_resume(self, asked: str | bool | None) -> str | None:
        """The folder to resume from, compared with the current settings; `None` for a new training."""
        output_dir = str(self.args.output_dir)
        asked = asked_checkpoint(asked, output_dir)
        if not asked:
            if self.state.global_step == 0:
                check_no_checkpoints(output_dir)
            return None
        if asked is True:
            checkpoint = newest_whole_checkpoint(output_dir)
        else:
            checkpoint = Path(asked)
            if problem := checkpoint_problem(checkpoint):
                raise InputError(f"{asked} is not a complete checkpoint ({problem}); resume from another, or `auto`")
        recorded = checkpoint / RUN_SETTINGS
        before = read_json_object(recorded) if recorded.is_file() else None
        total_steps = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        self.changed_on_resuming = check_resumed(self, checkpoint, before, int(total_steps or 0))
        return str(checkpoint).rstrip("/")

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Like `transformers.Trainer`'s; finds the best checkpoint in a moved folder, and restores the patience."""
        start = super()._init_training_state(*args, **kwargs)
        if self._resumed_from is not None:
            before = read_state(self._resumed_from)
            best = before.get("best_model_checkpoint")
            if best is not None:
                self._go_on_from_best([self._resumed_from.with_name(Path(best).name), Path(best)])
            stored = before.get("stateful_callbacks", {}).get(EarlyStoppingCallback.__name__)
            for callback in self.callback_handler.callbacks:
                if stored and isinstance(callback, EarlyStoppingCallback):
                    one = stored[0] if isinstance(stored, list) else stored
                    callback.early_stopping_patience_counter = one["attributes"]["early_stopping_patience_counter"]
        return start

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Like `transformers.Trainer`'s, which would do one more update when resumed at the very end."""
        stops = [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        stopped = any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in stops)
        if stopped or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _go_on_from_best(self, places: list[Path]) -> None:
        """Uses the first complete checkpoint as the best so far; if there is none, a later one becomes the best."""
        problems = [checkpoint_problem(place, to_resume=False) for place in places]
        if None in problems:
            self.state.best_model_checkpoint = str(places[problems.index(None)])
            return
        logger.warning("the best checkpoint so far, %s, is lost (%s); a later one is used", places[0], problems[0])
        self.state.best_model_checkpoint = self.state.best_metric = self.state.best_global_step = None

    def _decided_once(self, decide: Callable[[], Any]) -> Any:
        """The main process's result of `decide`, or its error, in every process."""
        outcome: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                outcome[0] = decide()
            except TSARankError as error:
                outcome[1] = error
        if self.args.world_size > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            # One process reports it for all.
            outcome[1].said_by_the_first = True
            raise outcome[1]
        return outcome[0]

    # ---- stopping --------------------------------------------------------------------------------

    def failed_batch(self) -> dict[str, Any]:
        """What is saved about the current batch when a loss or a gradient is NaN or infinite."""
        raise NotImplementedError

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        # With a gradient scaler (fp16) infinite gradients are normal: the step is skipped and the scale lowered.
        scaled = self.accelerator.scaler is not None or self.is_deepspeed_enabled
        if not scaled and norm is not None and not math.isfinite(float(norm)):
            self.stop_training(f"the norm of the gradient became {float(norm)}")
        return norm

    def stop_training(self, what: str, **facts: Any) -> NoReturn:
        """Saves the batch for inspection and raises `NonFiniteScoreError`, before any weight changes."""
        step = self.state.global_step + 1
        path = Path(str(self.args.output_dir)) / f"failed_batch-step{step}-process{self.args.process_index}.json"
        write_json(path, {"what": what, "step": step, "epoch": self.state.epoch, **facts, **self.failed_batch()})
        raise NonFiniteScoreError(
            f"{what} at step {step}; the batch was saved to {path}. It changed no weights: resume from the last "
            "checkpoint with a lower learning rate or a higher temperature, or leave out the rows listed there"
        )

    # ---- writing ---------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Lets `Trainer` write into a temporary folder next to it, then moves the complete checkpoint into place."""
        run_dir = Path(super()._get_output_dir(trial))
        staging = run_dir / UNFINISHED
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        name = f"checkpoint-{self.state.global_step}"
        try:
            with writing_errors(name, run_dir):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                source = staging / name
                target = run_dir / source.name
                if self.state.best_model_checkpoint == str(source):
                    self.state.best_model_checkpoint = str(target)
                if self.args.should_save:
                    self.state.save_to_json(str(source / TRAINER_STATE_NAME))
                    write_json(source / RUN_SETTINGS, self._run_settings)
                    write_manifest(source)
                    replace_folder(source, target)
        finally:
            self._staging = None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        if self.args.should_save:
            limit = self.args.save_total_limit
            try:
                rotate_checkpoints(str(run_dir), limit, self.state.best_model_checkpoint, use_mtime=True)
            except OSError as error:  # no reason to stop: the new checkpoint is complete
                logger.warning("an old checkpoint in %s cannot be deleted (%s)", run_dir, error.strerror or error)
        self.accelerator.wait_for_everyone()

    @cached_property
    def _run_settings(self) -> dict[str, Any]:
        return run_settings(self)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: a ranker is published as a whole, once, at the end of the training."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Saves the model: in a checkpoint as the module docstring says, else as a ranking folder and the adapter."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        prefix = BACKBONE_PREFIX  # in the names of the whole module's gathered weights
        state = state_dict and {n.removeprefix(prefix): one for n, one in state_dict.items() if n.startswith(prefix)}
        lora = self.module.part.kind == "lora"
        if lora:
            prefixed = None if state is None else {f"base_model.model.{name}": value for name, value in state.items()}
            save_adapter(self.module.part.adapter, folder / ADAPTER_FOLDER, prefixed)
        if self._staging is not None:
            self._save_trained(folder, state)
            ranker_too = not lora and self.args.checkpoint_ranker
        else:
            ranker_too = not lora or self.args.merge_adapter
        if ranker_too:
            save_ranker(self.module.ranker, self.module.part, folder, state)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)
        if self._staging is None:
            write_json(folder / RECORD_NAME, training_record(self))

    def _save_trained(self, folder: Path, state: dict[str, Tensor] | None) -> None:
        weights = {
            name: (parameter if state is None else state[name]).detach().contiguous().cpu()
            for name, parameter in trained_parameters(self.module.ranker.backbone)
        }
        with whole_files(folder) as staging:
            save_file(weights, staging / TRAINED_WEIGHTS, metadata={"format": "pt"})

    # ---- publishing ------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Like `transformers.Trainer`'s, but private unless `hub_private_repo` says otherwise."""
        if private is None and self.args.hub_private_repo is None:
            private = True
        super().init_hf_repo(token=token, private=private)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card used for publishing, from this training's record, into `output_dir`."""
        if self.is_world_process_zero():
            (self.publisher or installed_publisher()).write_card(self)

    def push_to_hub(self, commit_message: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Saves the model and publishes it like `tsarank publish model`: one commit, no training state.

        Returns the commit's URL, `None` on other processes than the main one.
        """
        token, private = kwargs.pop("token", None), kwargs.pop("private", None)
        self.save_model(_internal_call=True)
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return None
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        return (self.publisher or installed_publisher()).push(self, commit_message, token)

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
        logger.info("loading the best checkpoint %s (%s = %s)", best, self.args.metric_for_best_model, score)
        self._load_trained(Path(str(best)))

    def _load_trained(self, checkpoint: Path) -> None:
        path = checkpoint / TRAINED_WEIGHTS
        if not path.is_file():
            raise InputError(f"{checkpoint} has no {TRAINED_WEIGHTS}; it was not written by a ranking trainer")
        weights = load_file(path)
        parameters = dict(trained_parameters(self.module.ranker.backbone))
        shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (weights, parameters)]
        if others := sorted(name for name, _ in set(shapes[0].items()) ^ set(shapes[1].items())):
            raise InputError(
                f"{checkpoint} was written with other trained parameters ({len(others)}, such as {others[0]}); "
                "resume with the same model and trained part (trainable, top_blocks, lora_*)"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])


def save_adapter(adapter: Any, folder: Path, state: dict[str, Tensor] | None) -> None:
    """Writes a PEFT adapter, from the gathered weights if given."""
    with whole_files(folder) as staging:
        adapter.save_pretrained(str(staging), state_dict=state)
        # PEFT's model card is not about a ranker; cards are written when a model is published.
        (staging / "README.md").unlink(missing_ok=True)

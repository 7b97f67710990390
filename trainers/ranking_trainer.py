"""One trainer for all objectives: exact gradients in chunks, one mean over all queries, logs, NaN stop.

Built on `transformers.Trainer` in the style of TRL's trainers (a Config/Trainer pair, `compute_loss`, averaged metrics
in `log`) rather than on TRL's own base classes: those are private, send telemetry, write a card from templates in the
`trl` package, and default to bf16 and checkpointing, which is slow on a CPU without bf16; none of TRL's trainers
supports a listwise loss or an encoder-decoder.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from modeling_tsarank.cli.command_line import given
from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.trainers.base_models import load_base_ranker
from modeling_tsarank.trainers.checkpointing import CheckpointingTrainer
from modeling_tsarank.trainers.collators import Batch, RankingCollator, SampledGroups, pad_pairs
from modeling_tsarank.trainers.gradient_cache import Chunk, Values, add_idle_chunks, cached_backward, run_chunks
from modeling_tsarank.trainers.losses import get_objective
from modeling_tsarank.trainers.mixture import Metrics, linear_values, make_grids, mixed_loss, pair_scores
from modeling_tsarank.trainers.objectives import TOKEN_VALUES
from modeling_tsarank.trainers.one_pass import OnePassCollator, OnePassModule
from modeling_tsarank.trainers.ranking_config import RankingConfig
from modeling_tsarank.trainers.ranking_module import RankingModule
from modeling_tsarank.trainers.reference import make_reference
from modeling_tsarank.trainers.row_checks import checked_rows
from modeling_tsarank.trainers.trainable import TrainablePart, disable_dropout, make_trainable


logger = logging.getLogger(__name__)


class _StartEpoch(TrainerCallback):
    """Sets the epoch for sampling the training groups' documents, also in the middle of an epoch after a resume."""

    def __init__(self, groups: SampledGroups) -> None:
        self.groups = groups

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.groups.start_epoch(math.floor((state.epoch or 0) + 1e-6))


class RankingTrainer(CheckpointingTrainer):
    """Trainer for a weighted sum of objectives over groups of documents; see `objectives`.

    The loss is the mean over the queries of the global batch: of all processes and all gradient accumulation steps.

    Logged: `NAME_loss` of each objective, `in_batch_ndcg` (at 10, over the group; with the labels as grades, else
    grades from the ranks), and `ranking_accuracy` (fraction of groups whose positive is first) if one positive is
    sampled, else `pairwise_accuracy` (fraction of pairs in the order of the targets).

    Args:
        model: a ranking model, or the name or folder of one (or of a plain language model).
        args: the configuration: a [`RankingConfig`] or one of its presets. It includes what TRL's trainers take as
            `peft_config`: `trainable="lora"`, `lora_r`, `lora_target_modules` and so on.
        train_dataset: anything that `load_training_rows` accepts, or `CheckedRows`.
        eval_dataset: the same, or a dict of them by name.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        InputError: unusable data (names field, type and row) or configuration.
        ModelError: the model does not support this training.
    """

    # `training_step` below scales the loss itself.
    loss_is_scaled_for_ga = True

    args: RankingConfig

    def __init__(
        self,
        model: RankerModel | str,
        args: RankingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        self.args = args
        rows = self.training_rows = None if train_dataset is None else self._rows(train_dataset)
        # The adapter's matrices are initialized here, so that the same seed gives the same start.
        set_seed(args.seed)
        family = args.default_family
        ranker = load_base_ranker(model, default_family=family) if isinstance(model, str | Path) else model
        self.check_model(ranker)
        self.started_from = str(model if isinstance(model, str | Path) else ranker.name_or_path)
        encoder = self._training_encoder(ranker)
        if args.disable_dropout:
            disable_dropout(ranker.backbone)
        part = make_trainable(ranker, args.trainable, **given(make_trainable, cast(Any, args)))
        groups = None if rows is None else self.make_groups(rows)
        if args.device.type == "cpu":
            # Pinned memory is for copies to an accelerator; without one, torch warns about it at every data loader.
            args.dataloader_pin_memory = False
        self._sums: dict[str, dict[str, float]] = {"train": defaultdict(float), "eval": defaultdict(float)}
        self._weights = {"train": 0.0, "eval": 0.0}
        self._last_batch: tuple[Batch, Values] | None = None
        super().__init__(
            model=self.make_module(ranker, part),
            args=args,
            data_collator=OnePassCollator(encoder, ranker) if args.one_pass() else RankingCollator(encoder),
            train_dataset=groups,
            eval_dataset=self._prepare_eval(eval_dataset),
            callbacks=[*(callbacks or []), *([] if groups is None else [_StartEpoch(groups)])],
            optimizers=optimizers,
        )
        if args.n_gpu > 1:
            raise InputError(
                "several GPUs are visible to one process, which would use DataParallel; start the training with "
                "`accelerate launch`, or make one GPU visible with CUDA_VISIBLE_DEVICES"
            )
        if self._sharded:
            self.module.splits_by_length = False
            if args.one_pass():
                raise InputError("one-pass training needs the whole model in every process; use DDP")
        # `Trainer` computes an evaluation loss only for models that it believes to return one.
        self.can_return_loss = True
        self.label_names: list[str] = []

    # ---- model and objectives --------------------------------------------------------------------

    def check_model(self, ranker: Any) -> None:
        """Raises `ModelError` for a model that does not support this training."""
        if not isinstance(ranker, RankerModel):
            raise ModelError(
                f"a ranking trainer needs a ranking model, got {type(ranker).__name__}; give the name or folder of "
                "its checkpoint, or wrap it with TSARankModel.from_backbone"
            )
        if self.args.needs_likelihood and not type(ranker).scores_query_tokens:
            names = [name for name in self.args.weights() if any(map(get_objective(name).takes, TOKEN_VALUES))]
            wanted = f"the objective {names[0]}" if names else f"score_form {self.args.score_form}"
            raise ModelError(
                f"{wanted} needs a ranker that scores query tokens (TSARankModel), got {type(ranker).__name__}; "
                "train it by distillation, or with score_form model and ranking losses"
            )

    def make_module(self, ranker: RankerModel, part: TrainablePart) -> RankingModule:
        """The module to train: the model, and how its scores are computed."""
        if options := self.args.one_pass():
            return OnePassModule(ranker, part, options)
        if not self.args.uses("divergences"):
            return RankingModule(ranker, part)
        name, family = self.args.ref_model, self.args.default_family
        start = None if name is None else load_base_ranker(name, default_family=family)
        return RankingModule(ranker, part, make_reference(ranker, part, start))

    @property
    def ranker(self) -> RankerModel:
        """The ranking model in training, without any wrapper."""
        return self.module.ranker

    # ---- data ------------------------------------------------------------------------------------

    def make_groups(self, rows: Any) -> SampledGroups:
        """The rows with sampled documents."""
        args = self.args
        most = args.num_documents or None
        return SampledGroups(rows, args.seed, args.document_sampling, most, args.num_negatives)

    def _rows(self, source: Any, minimum_rows: int = 2) -> Any:
        return checked_rows(source, self.args.row_rules(), minimum_rows=minimum_rows).rows

    def _prepare_eval(self, dataset: Any) -> Any:
        if dataset is None or isinstance(dataset, SampledGroups):
            return dataset
        if isinstance(dataset, dict):
            return {name: self._prepare_eval(rows) for name, rows in dataset.items()}
        return self.make_groups(self._rows(dataset, minimum_rows=1))

    def filling_row(self, row: Any) -> Any:
        return {**row, "filling": True}

    def _training_encoder(self, ranker: RankerModel) -> Any:
        limits = {"max_length": self.args.max_length, "max_query_length": self.args.max_query_length}
        limits = {name: value for name, value in limits.items() if value is not None}
        return type(ranker.encoder)(ranker.tokenizer, ranker.options.override(**limits))

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Tensor | None:
        """Queries in the global batch: all gradient accumulation steps of all processes."""
        if not batch_samples:
            return None
        count = torch.tensor(sum(batch["queries"] for batch in batch_samples), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    # ---- loss and gradients ----------------------------------------------------------------------

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Adds the batch's gradients, in chunks if it has more than `chunk_tokens`; returns its share of the loss."""
        model.train()
        if callable(train_optimizer := getattr(self.optimizer, "train", None)):
            train_optimizer()
        batch = self._prepare_inputs(inputs)
        chunks, size = self._plan(batch)
        scale = self._scale(batch, num_items_in_batch)
        run = partial(self._run, model, batch)
        objective = partial(self._objective, batch, scale)
        with self.compute_loss_context_manager():
            if len(chunks) == 1:
                values = run_chunks(chunks, size, lambda chunk: run(chunk, True))
                loss = objective(values)
                self.accelerator.backward(loss)
                values = {name: value.detach() for name, value in values.items()}
            else:
                linear = linear_values(self.args, self.module.value_names)
                synchronizing = partial(self._synchronizing, model)
                backward = self.accelerator.backward
                values = cached_backward(
                    *(chunks, size, run, objective, backward, synchronizing, batch["token_ids"].device, linear),
                    first_pass=len(linear) < len(self.module.value_names),
                )
        with torch.no_grad():
            loss = self._objective(batch, scale, values, mode="train")
        self._last_batch = (batch, values)
        return loss

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """The loss of a batch with its graph, all chunks in memory at once: for evaluation, and for comparison."""
        chunks, size = self._plan(inputs)
        values = run_chunks(chunks, size, lambda chunk: self._run(model, inputs, chunk, True))
        evaluating = not torch.is_grad_enabled()
        scale = self._scale(inputs, None if evaluating else num_items_in_batch)
        loss = self._objective(inputs, scale, values, mode="eval" if evaluating else None)
        return (loss, {"scores": pair_scores(self.ranker, values, inputs)}) if return_outputs else loss

    @property
    def _sharded(self) -> bool:
        """Whether every forward pass is a collective operation, so that all processes must run the same number."""
        sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        return sharded and self.args.world_size > 1

    def _plan(self, batch: Batch) -> tuple[list[Chunk], int]:
        """The chunks of a batch, and its number of values."""
        chunks, count = self.module.plan(batch, self.args.chunk_tokens or None)
        if self._sharded:
            most = self.accelerator.gather(torch.tensor([len(chunks)], device=self.args.device)).max()
            chunks = add_idle_chunks(chunks, int(most))
        return chunks, count

    def _scale(self, batch: Batch, num_items_in_batch: Tensor | int | None) -> float:
        """The weight of this batch's mean over queries in the mean over all queries of the update.

        Gradients of the processes are averaged afterwards, hence the factor of the number of processes.
        """
        if num_items_in_batch is None:
            return 1.0
        return batch["queries"] * self.args.world_size / float(num_items_in_batch)

    def _run(self, model: torch.nn.Module, batch: Batch, chunk: Chunk, with_reference: bool) -> Values:
        padded = pad_pairs(batch, chunk.pairs, self.ranker.pad_id)
        return model(**padded, with_reference=with_reference and self.module.reference is not None)

    def losses(self, values: Values, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss, a mean over the batch's queries, and the metrics to log."""
        return mixed_loss(self.args, make_grids(self.args, self.ranker, values, batch))

    def _objective(self, batch: Batch, scale: float, values: Values, mode: str | None = None) -> Tensor:
        loss, metrics = self.losses(values, batch)
        if not bool(torch.isfinite(loss)):
            self._last_batch = (batch, values)
            losses = {name: float(value) for name, value in metrics.items()}
            self.stop_training(f"the loss became {loss.item()}", losses=losses)
        if mode is not None:
            self._note(mode, {**metrics, "loss": loss.detach()} if mode == "eval" else metrics, batch["queries"])
        return loss * scale

    @contextlib.contextmanager
    def _synchronizing(self, model: torch.nn.Module, last: bool) -> Iterator[None]:
        """Context of a chunk: processes synchronize gradients only at the last chunk of the last accumulation step."""
        state = self.accelerator.gradient_state
        if last or not state.sync_gradients:
            yield
            return
        # DeepSpeed reads this flag and would step its optimizer after every chunk.
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    def failed_batch(self) -> dict[str, Any]:
        if self._last_batch is None:
            return {}
        batch, values = self._last_batch
        scores = pair_scores(self.ranker, values, batch).detach().float().split(batch["group_sizes"].tolist())
        groups = [{**row, "scores": part.tolist()} for row, part in zip(batch["rows"], scores, strict=True)]
        return {"groups": groups}

    # ---- logging ---------------------------------------------------------------------------------

    def _note(self, mode: str, metrics: Metrics, weight: float) -> None:
        for name, value in metrics.items():
            self._sums[mode][name] += float(value) * weight
        self._weights[mode] += weight

    def _averages(self, mode: str) -> dict[str, float]:
        """The averages over queries and processes since the last call."""
        sums, names = self._sums[mode], sorted(self._sums[mode])
        if not names:
            return {}
        totals = torch.tensor([self._weights[mode], *(sums[name] for name in names)], device=self.args.device)
        weight, *values = self.accelerator.reduce(totals, "sum").tolist()
        sums.clear()
        self._weights[mode] = 0.0
        return {name: value / weight for name, value in zip(names, values, strict=True)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the averages of the loss terms and of the ranking metrics to a training log."""
        if "loss" in logs:
            logs = {**logs, **self._averages("train")}
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Like `transformers.Trainer.evaluate`; also accepts raw rows."""
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prepare_eval(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Like `transformers.Trainer.evaluation_loop`, with the loss terms and ranking metrics among the metrics."""
        loop: Any = super().evaluation_loop
        output: EvalLoopOutput = loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        averages = {f"{metric_key_prefix}_{name}": value for name, value in self._averages("eval").items()}
        return output._replace(metrics={**(output.metrics or {}), **averages})

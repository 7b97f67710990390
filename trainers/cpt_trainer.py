"""Continual pre-training: next-token loss of queries given their documents, on weak pairs (TSARankLLM, Eq. 2)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME
from trl import SFTTrainer

from modeling_tsarank.files.writing import write_json
from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.modeling_tsarank import QueryLikelihoodEncoder, QueryLikelihoodOptions, TSARankModel
from modeling_tsarank.ranking_errors import InputError, ModelError, TSARankError
from modeling_tsarank.ranking_options import CONFIG_KEY
from modeling_tsarank.ranking_scoring import accepts
from modeling_tsarank.ranking_text import clean_query, document_text
from modeling_tsarank.trainers.base_models import load_base_model
from modeling_tsarank.trainers.checkpointing import ADAPTER_FOLDER, CheckpointingTrainer, save_adapter
from modeling_tsarank.trainers.cpt_config import ROW_RULES, CPTConfig
from modeling_tsarank.trainers.ranking_module import token_log_probs
from modeling_tsarank.trainers.reranking_evaluation import RerankingEvaluation
from modeling_tsarank.trainers.row_checks import checked_rows
from modeling_tsarank.trainers.rows import positive_places
from modeling_tsarank.trainers.trainable import (
    ALL_LINEAR,
    TrainablePart,
    lora_config,
    save_merged,
    train_top_blocks,
)
from modeling_tsarank.trainers.training_record import RECORD_NAME, training_record


if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

PEFT_PREFIX = "base_model.model."


class CPTTrainer(RerankingEvaluation, CheckpointingTrainer, SFTTrainer):
    """Trainer for continual pre-training of a plain causal language model.

    Each pair becomes one sequence, "Document: {document} Query: {query}" and EOS; the loss is on the query and EOS.
    The tokens are the same as a [`TSARankModel`]'s when it scores. Everything else is TRL's [`SFTTrainer`] on the
    native model; files are written atomically, as by the ranking trainers.

    `save_model` writes an ordinary causal language model, LoRA merged, for `AutoModelForCausalLM` and
    `TSARankModel.from_backbone`.

    Args:
        model: name, folder or GGUF file of a decoder-only model, `default`, or a loaded model.
        args: a [`CPTConfig`].
        train_dataset: rows {"query", "document"}, or anything that `load_training_rows` accepts; of labelled rows,
            every positive becomes a pair.
        eval_dataset: the same, or a dict of them by name.
        tokenizer: required with a loaded model.
        reranking_sets: collections to rerank at every evaluation, see [`RerankingEvaluation`].
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        InputError: unusable data (row and field are named) or configuration.
        ModelError: a model that does not support this training.
        ResourceError: a package is missing.

    Example:

        ```python
        from modeling_tsarank.trainers.cpt_config import CPTConfig
        from modeling_tsarank.trainers.cpt_trainer import CPTTrainer

        args = CPTConfig("my-cpt-model", trainable="lora", learning_rate=2e-4)
        trainer = CPTTrainer("smollm2-135m-instruct", args, train_dataset="pairs.jsonl")
        trainer.train()
        trainer.save_model()
        ```
    """

    args: CPTConfig  # type: ignore[assignment]

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        args: CPTConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        rows = self.training_rows = checked_rows(train_dataset, ROW_RULES).rows
        eval_rows = _each(eval_dataset, lambda data: checked_rows(data, ROW_RULES, minimum_rows=1).rows)
        self.started_from = str(model) if isinstance(model, str | Path) else str(getattr(model, "name_or_path", ""))
        if isinstance(model, str | Path):
            model, tokenizer = load_base_model(model, dtype=torch.float32)
        if not isinstance(model, PreTrainedModel):
            raise ModelError(f"CPTTrainer needs a plain causal language model, got {type(model).__name__}")
        if tokenizer is None:
            raise ModelError("CPTTrainer got a loaded model without its tokenizer; pass tokenizer as well")
        _make_plain(model)
        context = getattr(model.config, "max_position_embeddings", None)
        pair_tokenizer = PairTokenizer(tokenizer, args.ranking_options(), args.train_eos, context)
        self._token_sums, self._figures = {"loss": 0.0, "tokens": 0.0}, dict[str, float]()
        self._dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
        # Created before LoRA is added: a new wrapper initializes all weights that did not come from a checkpoint.
        self._ranker = TSARankModel.from_backbone(
            model,
            tokenizer=tokenizer,
            document_template=args.document_template,
            prompt_style=args.prompt_style,
            max_length=args.max_length,
            max_query_length=args.max_query_length,
        )
        peft_config = None
        if args.trainable == "lora":
            targets = args.lora_target_modules or ALL_LINEAR
            peft_config = lora_config(model, args.lora_r, args.lora_alpha, args.lora_dropout, targets)
        elif args.trainable == "top_blocks":
            train_top_blocks(model, args.top_blocks)
        # The main process writes the cache of tokenized rows, the others read it.
        with args.main_process_first(desc="tokenizing"):
            tokenized = pair_tokenizer.tokenize(rows, "train", args.dataset_num_proc)
            eval_tokenized = _each(eval_rows, lambda data: pair_tokenizer.tokenize(data, "eval"))
        try:
            super().__init__(
                model=model,
                args=args,
                train_dataset=tokenized,
                eval_dataset=eval_tokenized,
                processing_class=tokenizer,
                peft_config=peft_config,
                **kwargs,
            )
        except ValueError as error:
            # TRL's own checks of incompatible options; PEFT's errors print a whole module after the first line.
            raise error if isinstance(error, TSARankError) else InputError(str(error).splitlines()[0]) from error

    @property
    def backbone(self) -> PreTrainedModel:
        """The native model, without any wrapper but with its LoRA layers, if any."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if self.args.trainable == "lora" else model

    @property
    def ranker(self) -> RankerModel:
        """The model in training as a ranker with the training prompt; it shares the weights."""
        return self._ranker

    def _send_telemetry(self) -> None:
        """Disables TRL's telemetry."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card at the end only: TRL's trainer writes one for every checkpoint."""
        if self._staging is None:
            super().create_model_card(*args, **kwargs)

    # ---- loss ------------------------------------------------------------------------------------

    @property
    def _scores_learned_tokens_only(self) -> bool:
        """Without Triton, TRL's output head runs on all positions, prompt included, which doubles the work of CPT."""
        return (
            self.accelerator.device.type == "cpu"
            and self.args.loss_type == "nll"
            and self.label_smoother is None
            and self.compute_loss_func is None
            and not self.aux_loss_enabled
            and accepts(type(self.backbone).forward, "logits_to_keep")
        )

    def _learned_token_loss(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        """TRL's loss, with logits only at the positions that predict a trained token."""
        labels = inputs["labels"]
        keep = torch.zeros_like(labels, dtype=torch.bool)
        keep[:, :-1] = labels[:, 1:] != -100
        targets = labels[:, 1:][keep[:, :-1]]
        read = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**read, use_cache=False, logits_to_keep=keep).logits
        loss = -token_log_probs(logits, targets).sum()
        correct = torch.stack([(logits.argmax(-1) == targets).sum(), torch.tensor(len(targets))])
        hits, count = self.accelerator.reduce(correct, "sum").tolist()
        mode = "train" if self.backbone.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append(hits / max(count, 1))
        if num_items_in_batch is None:
            return loss / max(len(targets), 1)
        # `num_items_in_batch` counts the tokens of all processes, and DDP averages their gradients.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return loss * processes / num_items_in_batch

    def filling_row(self, row: Any) -> Any:
        # Two tokens without loss; a packed row records the lengths of its parts.
        lengths = {"seq_lengths": [2]} if "seq_lengths" in row else {}
        return {**row, "input_ids": row["input_ids"][:2], "labels": [-100, -100], **lengths}

    # ---- evaluation ------------------------------------------------------------------------------

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Like TRL's; records the number of trained tokens that the loss and the other metrics average over."""
        step = super().prediction_step(model, inputs, *args, **kwargs)
        count = (inputs["labels"][..., 1:] != -100).sum().to(step[0].device)
        total = self.accelerator.reduce(count, "sum").item()
        self._token_sums["loss"] += float(step[0]) * int(count)
        self._token_sums["tokens"] += int(count)
        for name, values in self._metrics["eval"].items():
            if values and name != "num_tokens":
                self._figures[name] = self._figures.get(name, 0.0) + values.pop() * total
        return step

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Like TRL's, but averaged over all trained tokens, independent of batches and processes."""
        self._token_sums, self._figures = {"loss": 0.0, "tokens": 0.0}, {}
        loop: Any = super().evaluation_loop
        output = loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = torch.tensor(list(self._token_sums.values()), device=self.args.device)
        loss, tokens = self.accelerator.reduce(sums, "sum").tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / max(tokens, 1)
        for name, value in self._figures.items():
            self._metrics["eval"][name] = [value / max(tokens, 1)]
        return output

    # ---- stopping --------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the trained tokens of all processes; NaN or infinity stops the training and saves the batch."""
        self._last_batch = inputs
        if self._scores_learned_tokens_only and not return_outputs:
            result = loss = self._learned_token_loss(model, inputs, num_items_in_batch)
        else:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = result[0] if return_outputs else result
        if not bool(torch.isfinite(loss)):
            self.stop_training(f"the loss became {loss.item()}")
        return result

    def failed_batch(self) -> dict[str, Any]:
        ids = self._last_batch["input_ids"]
        return {"texts": self._tokenizer.batch_decode(ids, skip_special_tokens=False), "input_ids": ids.tolist()}

    # ---- writing and reading ---------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes TRL's files into a checkpoint; otherwise an ordinary causal language model, and the adapter."""
        folder = Path(str(output_dir or self.args.output_dir))
        if self._staging is not None:
            super(CheckpointingTrainer, self)._save(output_dir, state_dict)
            # PEFT's card; cards are written when a model is published.
            (folder / "README.md").unlink(missing_ok=True)
            return
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lora = self.args.trainable == "lora"
        if lora:
            save_adapter(self.accelerator.unwrap_model(self.model), folder / ADAPTER_FOLDER, state_dict)
        if not lora or self.args.merge_adapter:
            self._save_merged(folder, state_dict)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)
        write_json(folder / RECORD_NAME, training_record(self))

    def _save_merged(self, folder: Path, state_dict: dict[str, Tensor] | None) -> None:
        adapter = self.accelerator.unwrap_model(self.model) if self.args.trainable == "lora" else None
        part = TrainablePart(self.args.trainable, self._dtypes, adapter=adapter)
        if state_dict is not None:
            state_dict = {name.removeprefix(PEFT_PREFIX): value for name, value in state_dict.items()}
            if adapter is not None and not any(name.endswith(".base_layer.weight") for name in state_dict):
                logger.warning(
                    "%s contains only the adapter: ZeRO-3 does not gather the frozen weights; merge it on one process",
                    folder,
                )
                return

        def write(folder: Path, state_dict: dict[str, Tensor]) -> None:
            self.backbone.save_pretrained(folder, state_dict=state_dict)
            self._tokenizer.save_pretrained(folder)

        save_merged(self.backbone, part, folder, state_dict, write)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        # In a checkpoint, the native model and its adapter are saved as by transformers.
        super(CheckpointingTrainer, self)._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        super(CheckpointingTrainer, self)._load_best_model()


def _each(data: Any, function: Any) -> Any:
    """Applies `function` to the data, or to each entry of a dict; `None` stays `None`."""
    if data is None:
        return None
    return {name: function(part) for name, part in data.items()} if isinstance(data, dict) else function(data)


def _make_plain(model: PreTrainedModel) -> None:
    """Removes the marks of a ranking folder: the result of CPT is a plain language model again."""
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"continual pre-training needs a decoder-only model, but {model.config.model_type} is an encoder-decoder"
        )
    for name in (CONFIG_KEY, "auto_map", "custom_pipelines"):
        if hasattr(model.config, name):
            delattr(model.config, name)


class PairTokenizer:
    """Token ids of (query, document) pairs with a loss mask.

    TRL would concatenate prompt and completion as texts before tokenization, and truncate a long sequence at its end,
    the query. It uses rows that already have `input_ids` unchanged.

    Args:
        tokenizer: a fast tokenizer.
        options: prompt and limits; one token below the maximum sequence length if EOS is added.
        train_eos: append EOS to the query.
        context: the model's maximum sequence length, if it has one.

    Raises:
        ModelError: no EOS token, no fast tokenizer, or limits beyond the model's.
    """

    def __init__(
        self, tokenizer: Any, options: QueryLikelihoodOptions, train_eos: bool = True, context: int | None = None
    ) -> None:
        self.encoder = QueryLikelihoodEncoder(tokenizer, options, None if context is None else context - train_eos)
        self.ending: tuple[int, ...] = ()
        if train_eos:
            if tokenizer.eos_token_id is None:
                raise ModelError("this tokenizer has no EOS token; set one, or set train_eos to false")
            self.ending = (tokenizer.eos_token_id,)

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        """Columns of rows as `input_ids` and `completion_mask` (1 at query and EOS), one pair per positive."""
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        texts = [
            (clean_query(row["query"]), document_text(row["documents"][place]))
            for row in rows
            for place in (positive_places(row)[0] if row.get("labels") is not None else range(len(row["documents"])))
        ]
        pairs = self.encoder.pairs(texts)
        return {
            "input_ids": [[*pair.prompt, *pair.query, *self.ending] for pair in pairs],
            "completion_mask": [[0] * len(pair.prompt) + [1] * len((*pair.query, *self.ending)) for pair in pairs],
        }

    def tokenize(self, rows: Dataset, name: str = "train", workers: int | None = None) -> Dataset:
        """The tokenized rows without other columns; cached by the `datasets` library."""
        return rows.map(
            self,
            batched=True,
            remove_columns=rows.column_names,
            num_proc=workers,
            desc=f"tokenizing the {name} pairs",
        )

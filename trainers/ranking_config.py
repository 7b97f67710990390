"""Configuration of a ranking training: the trained part of the model, the documents and the objectives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast

import torch
from transformers import TrainingArguments

from modeling_tsarank.modeling_tsarank import QueryLikelihoodOptions
from modeling_tsarank.modeling_twolar import LogitOptions
from modeling_tsarank.rankers.loading import list_options
from modeling_tsarank.rankers.one_pass import OnePassOptions
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.collators import ONE_POSITIVE, Sampling
from modeling_tsarank.trainers.config_checks import PartConfig, settle_configuration
from modeling_tsarank.trainers.losses import OBJECTIVES, get_objective
from modeling_tsarank.trainers.losses_likelihood import ScoreForm
from modeling_tsarank.trainers.objectives import TOKEN_VALUES, parse_objectives
from modeling_tsarank.trainers.options import documented
from modeling_tsarank.trainers.row_checks import RowRules
from modeling_tsarank.trainers.rows import TARGETS


# The model's own ranking score, as opposed to the forms of query likelihood.
MODEL_SCORE: Literal["model"] = "model"
# The share of attention that a `OnePassRanker` uses as its score.
ONE_PASS: Literal["one_pass"] = "one_pass"
Score = Literal[ScoreForm, "model", "one_pass"]


@documented
@dataclass
class RankingConfig(PartConfig, TrainingArguments):
    r"""
    Configuration class for the [`RankingTrainer`], with the presets [`RankingSFTConfig`] and [`RankingDistillConfig`].

    This class includes only the parameters that are specific to training rankers. [`PartConfig`] selects what is
    trained; for a full list of training arguments, please refer to the [`~transformers.TrainingArguments`]
    documentation. Using [`~transformers.HfArgumentParser`] it can be turned into command line arguments.

    Parameters:
        > Parameters that control the model

        lora_top_blocks (`int`, *optional*):
            Add LoRA only to the last N blocks (of each stack of an encoder-decoder). The lower blocks then run once,
            forward only, even if the Differential Penalty needs the reference's logits.
        frozen_dtype (`str`, *optional*):
            Dtype of the frozen weights (`bfloat16` halves their memory); trained weights keep their own, and a saved
            model has the original dtype throughout.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to turn off the backbone's dropout. `lora_dropout` is not affected.

        > Parameters that control the data preprocessing

        max_length (`int`, *optional*):
            Maximum training sequence length in tokens, query included; only the document is truncated. By default the
            model's own limit. A saved model keeps its own limit.
        max_query_length (`int`, *optional*):
            Maximum query length in training, in tokens; by default the model's own limit.
        document_sampling (`str`, *optional*, defaults to `"first"`):
            Which documents of a row form a group: `"first"` the first `num_documents` in the given (first-stage)
            order, `"random"` as many sampled anew in every epoch, `"one_positive"` one positive and `num_negatives`
            negatives sampled anew in every epoch.
        num_documents (`int`, *optional*, defaults to `30`):
            Documents per query with `"first"` and `"random"`; longer lists are truncated. `0` takes all.
        num_negatives (`int`, *optional*, defaults to `48`):
            Negatives per query with `"one_positive"`.
        allow_fewer_negatives (`bool`, *optional*, defaults to `False`):
            Whether a row may have fewer than `num_negatives`; its group is then smaller.

        > Parameters that control the loss

        loss (`str`, *optional*, defaults to `"ranknet"`):
            Name of the ranking loss in `modeling_tsarank.trainers.objectives.OBJECTIVES`.
        loss_options (`dict` or `str`, *optional*):
            Options of that loss, such as `{"reduction": "sum"}`.
        objectives (`list[str]`, *optional*):
            Minimize a weighted sum of objectives by name instead of `loss` alone, such as
            `listwise_softmax:0.6 next_token:0.2 penalty:0.2`.
        objective_options (`dict` or `str`, *optional*):
            Options of objectives by name, such as `{"listnet": {"teacher_temperature": 0.05}}`.
        score_form (`str`, *optional*, defaults to `"model"`):
            The score in ranking losses: `"model"` the model's ranking score, or a form of query
            likelihood: `"geometric_mean"` exp of the mean log-probability, `"mean_log_prob"`, `"sum_log_prob"`,
            `"product"`; or `"one_pass"`, the log of the score of the ranker `one-pass`, the document's share of the
            attention to the whole list. Such a model ranks with `--ranker one-pass` only.
        one_pass_options (`dict` or `str`, *optional*):
            Options of the ranker `one-pass` as JSON, such as `{"layer": 12}`; rank with the trained model with the
            same options.
        temperature (`float`, *optional*, defaults to `1.0`):
            Scores are divided by it before the ranking losses.
        teacher_temperature (`float`, *optional*, defaults to `1.0`):
            The teacher's scores are divided by it before the losses that use them: use about 0.05 for the cosines of a
            bi-encoder. The z-scores of several teachers have a standard deviation of 1, a cross-encoder's logits a
            larger one.
        ref_model (`str`, *optional*):
            Folder or Hub id of the Differential Penalty's reference model, loaded as a second full model. By default
            it is the model that training started from; then LoRA needs no copy, and `top_blocks` only copies of the
            trained blocks.

        > Parameters that control the training

        per_device_train_batch_size (`int`, *optional*, defaults to `32`):
            Queries, each with all its documents, per device and backward pass.
        chunk_tokens (`int`, *optional*, defaults to `4096`):
            Padded tokens per chunk, whose activations are in memory for the backward pass. A larger batch is processed
            in chunks with exact gradients of the whole batch (gradient caching), so that groups of any size fit. `0`
            never splits a batch.

        > Parameters that control the saving

        checkpoint_ranker (`bool`, *optional*, defaults to `True`):
            Whether every checkpoint also contains a ranking folder that can be loaded directly (not with LoRA, whose
            checkpoints contain the adapter). If off, checkpoints are smaller and only good for resuming.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `num_train_epochs`: Defaults to `1` instead of `3`.
    > - `per_device_train_batch_size`: Defaults to `32` instead of `8`.
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `remove_unused_columns`: Defaults to `False` instead of `True`.
    """

    # TrainingArguments annotates it like a field of the instance, though it is not one.
    _VALID_DICT_FIELDS: ClassVar[list[str]] = [  # type: ignore[misc]
        *TrainingArguments._VALID_DICT_FIELDS,
        "loss_options",
        "objective_options",
        "one_pass_options",
    ]

    # Parameters whose default values are overridden from TrainingArguments
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 32
    logging_steps: float = 10
    remove_unused_columns: bool = False

    # Parameters that control the model
    lora_top_blocks: int | None = None
    frozen_dtype: Literal["bfloat16", "float16", "float32"] | None = None
    disable_dropout: bool = True

    # Parameters that control the data preprocessing
    max_length: int | None = None
    max_query_length: int | None = None
    document_sampling: Sampling = "first"
    num_documents: int = 30
    num_negatives: int = 48
    allow_fewer_negatives: bool = False

    # Parameters that control the loss
    loss: str = field(
        default="ranknet",
        metadata={"help": "The ranking loss: " + "; ".join(f"{n} ({o.description})" for n, o in OBJECTIVES.items())},
    )
    loss_options: dict[str, Any] | str | None = None
    objectives: list[str] | None = None
    objective_options: dict[str, Any] | str | None = None
    score_form: Score = MODEL_SCORE
    one_pass_options: dict[str, Any] | str | None = None
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    ref_model: str | None = None

    # Parameters that control the training
    chunk_tokens: int = 4096

    # Parameters that control the saving
    checkpoint_ranker: bool = True

    def __post_init__(self) -> None:
        settle_configuration(self)
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            # Every trained parameter takes part in every forward pass, and searching for unused ones costs a
            # traversal; but one-pass ranking ends in the middle of the model.
            self.ddp_find_unused_parameters = self.score_form == ONE_PASS
        if self.data_seed is None:
            # Otherwise the order of the rows depends on torch's global seed when `train` is called, and reseeding in
            # between would change the batches of a resumed training.
            self.data_seed = self.seed
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise InputError(
                f"unknown train_sampling_strategy {self.train_sampling_strategy!r}; expected one of random, sequential"
            )
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns is on, but ranking trainers need the columns; turn it off")
        if self.neftune_noise_alpha is not None:
            raise InputError("neftune_noise_alpha is for language modelling; remove it for a ranking training")
        if self.num_documents == 1:
            raise InputError("num_documents is 1; a ranking loss needs at least 2 documents per query (0 takes all)")
        self._check_options()
        self.one_pass()
        if self.ref_model is not None and not self.uses("divergences"):
            raise InputError("ref_model was given, but the objectives do not include penalty; remove ref_model")

    def _check_options(self) -> None:
        """Checks names, weights and options of the objectives."""
        if isinstance(self.objectives, str):
            self.objectives = [self.objectives]
        get_objective(self.loss)
        for name in ("loss_options", "objective_options", "one_pass_options"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise InputError(f"{name} must be a JSON object, got {value!r}")
        options: Any = self.objective_options or {}
        for name, values in options.items():
            if name not in self.weights():
                raise InputError(f"objective_options: {name!r} is not in the objectives {', '.join(self.weights())}")
            if not isinstance(values, dict):
                raise InputError(f"objective_options: {name} must have a JSON object of options, got {values!r}")
        # Called once on dummy values, so that a wrong option raises before anything is loaded.
        grid = torch.tensor([[-1.0, -2.0]])
        made_up = dict.fromkeys(("scores", "log_likelihoods", "divergences", *TARGETS), grid)
        made_up |= {"labels": grid + 2, "ranks": torch.tensor([[1, 2]]), "query_lengths": torch.ones(1, 2)}
        for name in self.weights():
            try:
                get_objective(name)({**made_up, "mask": grid < 0}, **self.options_of(name))
            except TypeError as error:
                given = self.options_of(name)
                raise InputError(f"the loss {name} does not take the options {given}: {error}") from error

    # ---- the objective ---------------------------------------------------------------------------

    def weights(self) -> dict[str, float]:
        """The weight of each objective, by name."""
        return self.preset_weights() if self.objectives is None else parse_objectives(self.objectives)

    def preset_weights(self) -> dict[str, float]:
        """The weights if no `objectives` are given."""
        return {self.loss: 1.0}

    def options_of(self, name: str) -> dict[str, Any]:
        """The options of one objective."""
        options: Any = self.objective_options or {}
        own = self.loss_options if name == self.loss and isinstance(self.loss_options, dict) else {}
        return {**own, **options.get(name, {})}

    def uses(self, parameter: str) -> bool:
        """Whether an objective uses a value or target of that name, see `objectives`."""
        return any(get_objective(name).takes(parameter) for name in self.weights())

    def row_rules(self) -> RowRules:
        """The requirements of the training on its rows."""
        one_positive, names = self.document_sampling == ONE_POSITIVE, tuple(self.weights())
        return RowRules(
            names,
            positives=one_positive or any(get_objective(name).positives for name in names),
            negatives=self.num_negatives if one_positive else None,
            allow_fewer=self.allow_fewer_negatives,
        )

    @property
    def needs_likelihood(self) -> bool:
        """Whether the objectives need values that only a query-likelihood ranker has."""
        return self.score_form not in (MODEL_SCORE, ONE_PASS) or any(self.uses(value) for value in TOKEN_VALUES)

    def one_pass(self) -> OnePassOptions | None:
        """The ranker's options if one-pass ranking is trained.

        Raises:
            InputError: invalid options, or an objective on single query tokens.
        """
        if self.score_form != ONE_PASS:
            if self.one_pass_options is not None:
                raise InputError("one_pass_options need score_form one_pass; remove them")
            return None
        options: OnePassOptions = list_options("one-pass", cast(Any, self.one_pass_options))
        if options.calibrate:
            raise InputError("calibrate is for models that were not trained for one-pass ranking; remove it")
        if self.needs_likelihood:
            raise InputError("next_token and penalty need query token probabilities, which one_pass does not compute")
        return options

    @property
    def default_family(self) -> str:
        """The family that a plain language model becomes."""
        return QueryLikelihoodOptions.family if self.needs_likelihood else LogitOptions.family

    def idle_settings(self) -> set[str]:
        """Names of options that have no effect with the other settings, and are not recorded."""
        one_positive = self.document_sampling == ONE_POSITIVE
        idle = {"num_documents"} if one_positive else {"num_negatives", "allow_fewer_negatives"}
        if not any(get_objective(name).takes("teacher_scores") for name in self.weights()):
            idle.add("teacher_temperature")
        return idle if self.loss in self.weights() else idle | {"loss", "loss_options"}

    def evaluation_figures(self) -> list[str]:
        """Metrics of an evaluation in addition to the loss."""
        accuracy = "ranking_accuracy" if self.document_sampling == ONE_POSITIVE else "pairwise_accuracy"
        return [*(f"{name}_loss" for name in self.weights()), accuracy, "in_batch_ndcg"]

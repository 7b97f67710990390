"""Configuration of a ranking training: which part of which model, on which documents, towards which objectives."""

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


# The model's own ranking score, beside the forms of the query likelihood.
MODEL_SCORE: Literal["model"] = "model"
# The share of attention that a `OnePassRanker` reads off.
ONE_PASS: Literal["one_pass"] = "one_pass"
Score = Literal[ScoreForm, "model", "one_pass"]


@documented
@dataclass
class RankingConfig(PartConfig, TrainingArguments):
    r"""
    Configuration class for the [`RankingTrainer`], with the presets [`RankingSFTConfig`] and [`RankingDistillConfig`].

    This class includes only the parameters that are specific to training rankers. [`PartConfig`] says what is trained;
    for a full list of training arguments, please refer to the [`~transformers.TrainingArguments`] documentation. Using
    [`~transformers.HfArgumentParser`] it can be turned into command line arguments.

    Parameters:
        > Parameters that control the model

        lora_top_blocks (`int`, *optional*):
            Put LoRA into the last so many blocks only (of each stack of an encoder-decoder). The lower ones are then
            run once, forwards, also where the Differential Penalty needs the reference's logits.
        frozen_dtype (`str`, *optional*):
            Keep frozen weights in this dtype (`bfloat16` halves their memory); trained weights keep their own, and a
            saved model has the original dtype throughout.
        disable_dropout (`bool`, *optional*, defaults to `True`):
            Whether to switch the backbone's dropout off. `lora_dropout` is not affected.

        > Parameters that control the data preprocessing

        max_length (`int`, *optional*):
            Longest training sequence in tokens, query included; only the document is cut. The model's own limit if not
            given. A saved model keeps its own limit.
        max_query_length (`int`, *optional*):
            Longest query in training, in tokens; the model's own limit if not given.
        document_sampling (`str`, *optional*, defaults to `"first"`):
            Which documents of a row make a group: `"first"` the first `num_documents` in the given (first-stage)
            order, `"random"` as many drawn anew in every epoch, `"one_positive"` one positive and `num_negatives`
            negatives drawn anew in every epoch.
        num_documents (`int`, *optional*, defaults to `30`):
            Documents of each query with `"first"` and `"random"`; a longer list is cut. `0` takes all.
        num_negatives (`int`, *optional*, defaults to `48`):
            Negatives of each query with `"one_positive"`.
        allow_fewer_negatives (`bool`, *optional*, defaults to `False`):
            Whether a row may have fewer than `num_negatives`; its group is then smaller.

        > Parameters that control the loss

        loss (`str`, *optional*, defaults to `"ranknet"`):
            Name of the ranking loss in `modeling_tsarank.trainers.objectives.OBJECTIVES`.
        loss_options (`dict` or `str`, *optional*):
            Options of that loss, such as `{"reduction": "sum"}`.
        objectives (`list[str]`, *optional*):
            What is minimized instead of `loss` alone: a weighted sum of objectives by name, such as
            `listwise_softmax:0.6 next_token:0.2 penalty:0.2`.
        objective_options (`dict` or `str`, *optional*):
            Options of objectives by name, such as `{"listnet": {"teacher_temperature": 0.05}}`.
        score_form (`str`, *optional*, defaults to `"model"`):
            The score that ranking losses compare: `"model"` the one that the model ranks by, or a form of the query
            likelihood: `"geometric_mean"` exp of the mean log-probability, `"mean_log_prob"`, `"sum_log_prob"`,
            `"product"`; or `"one_pass"`, the log of what the ranker `one-pass` scores by, the document's share of the
            attention to the whole list. Such a model ranks with `--ranker one-pass` only.
        one_pass_options (`dict` or `str`, *optional*):
            Options of the ranker `one-pass` as JSON, such as `{"layer": 12}`; the trained model is to be ranked with
            the same.
        temperature (`float`, *optional*, defaults to `1.0`):
            Scores are divided by it before the ranking losses.
        teacher_temperature (`float`, *optional*, defaults to `1.0`):
            The teacher's scores are divided by it before the losses that take them: about 0.05 suits the cosines of a
            bi-encoder. The z-scores of several teachers have a standard deviation of 1, a cross-encoder's logits a
            larger one.
        ref_model (`str`, *optional*):
            Folder or Hub id of the Differential Penalty's reference, loaded as a whole second model. By default it is
            the model that training started from; for it LoRA needs no copy, and `top_blocks` only copies of the
            trained blocks.

        > Parameters that control the training

        per_device_train_batch_size (`int`, *optional*, defaults to `32`):
            Queries, each with all its documents, per device and backward pass.
        chunk_tokens (`int`, *optional*, defaults to `4096`):
            Padded tokens that are run at once, with activations kept for the backward pass. A batch with more is
            worked on in chunks, with gradients that are exactly those of the whole (gradient caching), so that groups
            of any size fit. `0` never cuts a batch.

        > Parameters that control the saving

        checkpoint_ranker (`bool`, *optional*, defaults to `True`):
            Whether every checkpoint also holds a ranking folder that loads at once (not with LoRA, whose checkpoints
            hold the adapter). Switched off, a checkpoint is smaller and serves to resume only.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `num_train_epochs`: Defaults to `1` instead of `3`.
    > - `per_device_train_batch_size`: Defaults to `32` instead of `8`.
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `remove_unused_columns`: Defaults to `False` instead of `True`.
    """

    # TrainingArguments annotates it like a field of the instance, though it is none.
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
            # Every trained parameter takes part in every forward pass, and looking for others costs a traversal;
            # but one pass ends in the middle of the model.
            self.ddp_find_unused_parameters = self.score_form == ONE_PASS
        if self.data_seed is None:
            # Without it the order of the rows follows torch's global seed at the time `train` is called, and whoever
            # reseeds in between would resume with other batches.
            self.data_seed = self.seed
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise InputError(
                f"unknown train_sampling_strategy {self.train_sampling_strategy!r}; expected one of random, sequential"
            )
        if self.remove_unused_columns:
            raise InputError("remove_unused_columns is on; ranking trainers read the columns they need, leave it out")
        if self.neftune_noise_alpha is not None:
            raise InputError("neftune_noise_alpha is for language modelling; leave it out for a ranking training")
        if self.num_documents == 1:
            raise InputError("num_documents is 1; a ranking loss needs at least 2 documents of a query (0 takes all)")
        self._check_options()
        self.one_pass()
        if self.ref_model is not None and not self.uses("divergences"):
            raise InputError("ref_model was given, but no penalty is among the objectives; leave ref_model out")

    def _check_options(self) -> None:
        """Names, weights and options of the objectives."""
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
                raise InputError(f"objective_options: {name!r} is none of the objectives {', '.join(self.weights())}")
            if not isinstance(values, dict):
                raise InputError(f"objective_options: {name} must have a JSON object of options, got {values!r}")
        # Tried once on made-up values, so that a wrong option is an error before anything is loaded.
        grid = torch.tensor([[-1.0, -2.0]])
        made_up = dict.fromkeys(("scores", "log_likelihoods", "divergences", *TARGETS), grid)
        made_up |= {"labels": grid + 2, "ranks": torch.tensor([[1, 2]]), "query_lengths": torch.ones(1, 2)}
        for name in self.weights():
            try:
                get_objective(name)({**made_up, "mask": grid < 0}, **self.options_of(name))
            except TypeError as error:
                given = self.options_of(name)
                raise InputError(f"the loss {name} does not take the options {given}: {error}") from error

    # ---- what is minimized -----------------------------------------------------------------------

    def weights(self) -> dict[str, float]:
        """The weight of each objective, by name."""
        return self.preset_weights() if self.objectives is None else parse_objectives(self.objectives)

    def preset_weights(self) -> dict[str, float]:
        """The weights where no `objectives` are given."""
        return {self.loss: 1.0}

    def options_of(self, name: str) -> dict[str, Any]:
        """The options of one objective."""
        options: Any = self.objective_options or {}
        own = self.loss_options if name == self.loss and isinstance(self.loss_options, dict) else {}
        return {**own, **options.get(name, {})}

    def uses(self, parameter: str) -> bool:
        """Whether an objective takes a value or target of that name, see `objectives`."""
        return any(get_objective(name).takes(parameter) for name in self.weights())

    def row_rules(self) -> RowRules:
        """What the training asks of its rows."""
        one_positive, names = self.document_sampling == ONE_POSITIVE, tuple(self.weights())
        return RowRules(
            names,
            positives=one_positive or any(get_objective(name).positives for name in names),
            negatives=self.num_negatives if one_positive else None,
            allow_fewer=self.allow_fewer_negatives,
        )

    @property
    def needs_likelihood(self) -> bool:
        """Whether only a query-likelihood ranker has the values that are asked for."""
        return self.score_form not in (MODEL_SCORE, ONE_PASS) or any(self.uses(value) for value in TOKEN_VALUES)

    def one_pass(self) -> OnePassOptions | None:
        """The ranker's options where one pass is trained.

        Raises:
            InputError: unusable options, or an objective of single query tokens.
        """
        if self.score_form != ONE_PASS:
            if self.one_pass_options is not None:
                raise InputError("one_pass_options are for score_form one_pass; leave them out")
            return None
        options: OnePassOptions = list_options("one-pass", cast(Any, self.one_pass_options))
        if options.calibrate:
            raise InputError("calibrate is for a model that was not trained to rank in one pass; leave it out")
        if self.needs_likelihood:
            raise InputError("next_token and penalty compare query tokens, which one pass does not score")
        return options

    @property
    def default_family(self) -> str:
        """What a plain language model becomes."""
        return QueryLikelihoodOptions.family if self.needs_likelihood else LogitOptions.family

    def idle_settings(self) -> set[str]:
        """Names of options that have no effect beside the others, which no record needs."""
        one_positive = self.document_sampling == ONE_POSITIVE
        idle = {"num_documents"} if one_positive else {"num_negatives", "allow_fewer_negatives"}
        if not any(get_objective(name).takes("teacher_scores") for name in self.weights()):
            idle.add("teacher_temperature")
        return idle if self.loss in self.weights() else idle | {"loss", "loss_options"}

    def evaluation_figures(self) -> list[str]:
        """What an evaluation measures beside the loss."""
        accuracy = "ranking_accuracy" if self.document_sampling == ONE_POSITIVE else "pairwise_accuracy"
        return [*(f"{name}_loss" for name in self.weights()), accuracy, "in_batch_ndcg"]

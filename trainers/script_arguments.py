"""The options shared by the three training scripts, in addition to each trainer's own configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from modeling_tsarank.files.reading import parse_json
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.options import check_choices, documented


@documented
@dataclass
class BaseModelArguments:
    """The model to train.

    Parameters:
        model_name_or_path: Hub id, folder or GGUF file; by default the language model in this package.
        model_revision: Branch, tag or commit of a Hub model.
        dtype: Dtype of the weights. Mixed precision (bf16) needs float32 weights; 'auto' uses the checkpoint's.
        attn_implementation: Attention implementation, such as sdpa, eager or flash_attention_2.
    """

    model_name_or_path: str = "smollm2-135m-instruct"
    model_revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: str | None = None

    def loading_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_base_model` and `load_base_ranker`. Raises `InputError` for an unknown dtype."""
        import torch

        check_choices(self)
        options: dict[str, Any] = {"revision": self.model_revision}
        options["dtype"] = None if self.dtype == "auto" else getattr(torch, self.dtype)
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        return options


@documented
@dataclass
class RankerArguments(BaseModelArguments):
    """The ranking model to train, or the plain model to make it from.

    Parameters:
        trust_remote_code: Whether to run the backbone's own code from the Hub.
        family: Family of a plain model: by default query_likelihood in fine-tuning, true_false_logits in distillation;
            cross_encoder adds a new sequence-classification head to any model. A ranking checkpoint has its own
            family; another one starts from its weights.
        ranking_options: Ranking options to override as JSON, such as '{"prompt_style": "separate"}'.
    """

    trust_remote_code: bool = False
    family: str | None = None
    ranking_options: dict[str, Any] | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ranking_options, str):
            self.ranking_options = parse_json(self.ranking_options, "ranking_options")
        if self.ranking_options is not None and not isinstance(self.ranking_options, dict):
            raise InputError(f"ranking_options must be a JSON object, got {self.ranking_options!r}")

    def loading_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_base_ranker`."""
        names = ("trust_remote_code", "family", "ranking_options")
        return super().loading_options() | {name: getattr(self, name) for name in names}


@documented
@dataclass
class DataArguments:
    """The training data. The supported layouts are listed in `training_data`.

    Parameters:
        train_data: A file (.jsonl, .json, .csv, .parquet, also .gz), a folder of them, or the Hub id of a dataset.
        train_split: Split of a folder or Hub dataset.
        eval_data: Held-out rows, whose loss is computed at every evaluation.
        eval_split: Split of eval_data.
        data_config: Configuration of a Hub dataset.
        permutations: Distillation only: RankGPT's second file, the teacher's answers to train_data's rows.
        max_train_rows: Use only the first N rows.
        drop_unusable_rows: Leave out rows that fail the checks, with a warning; by default they are an error.
    """

    train_data: str | None = None
    train_split: str = "train"
    eval_data: str | None = None
    eval_split: str = "validation"
    data_config: str | None = None
    permutations: str | None = None
    max_train_rows: int | None = None
    drop_unusable_rows: bool = False


@documented
@dataclass
class RerankingArguments:
    """Reranking during training, see [`RerankingEvaluation`], at every evaluation of `eval_strategy`.

    Parameters:
        rerank_collection: Collections to rerank at every evaluation: BEIR folders, Hub ids, ir_datasets:NAME.
        rerank_split: Split of their judgments; use a development set.
        rerank_first_stage: First stage of the candidates: bm25, dense, splade, rrf, or a run file.
        rerank_run_format: Meaning of the third column of a three-column run file.
        rerank_depth: Candidates per query.
        rerank_queries: Use only the first N judged queries; 0 for all.
        rerank_measures: Measures to compute, such as ndcg@10 or mrr@10.
        rerank_batch_tokens: Padded tokens per batch of candidates.
        early_stopping_patience: Stop after this many consecutive evaluations without a better metric_for_best_model.
        early_stopping_threshold: Minimum improvement that counts as better.
    """

    rerank_collection: list[str] | None = None
    rerank_split: str = "test"
    rerank_first_stage: str = "bm25"
    rerank_run_format: Literal["ranks", "scores"] | None = None
    rerank_depth: int = 30
    rerank_queries: int = 100
    rerank_measures: list[str] = field(default_factory=lambda: ["ndcg@10"])
    rerank_batch_tokens: int | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0

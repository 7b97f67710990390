"""The options that the three training scripts share, beside each trainer's own configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modeling_tsarank.files.reading import parse_json
from modeling_tsarank.ranking_errors import InputError


DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass
class BaseModelArguments:
    """Which model is trained."""

    model_name_or_path: str = field(
        default="smollm2-135m-instruct",
        metadata={"help": "Hub id, folder or GGUF file; by default the language model in this package."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub model."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights. Mixed precision (bf16) keeps float32 weights; 'auto' takes the checkpoint's.",
            "choices": list(DTYPES),
        },
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention kernel, such as sdpa, eager or flash_attention_2."}
    )

    def loading_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_base_model` and `load_base_ranker`. Raises `InputError` for an unknown dtype."""
        import torch

        if self.dtype not in DTYPES:
            raise InputError(f"unknown dtype {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        options: dict[str, Any] = {"revision": self.model_revision}
        options["dtype"] = None if self.dtype == "auto" else getattr(torch, self.dtype)
        if self.attn_implementation is not None:
            options["attn_implementation"] = self.attn_implementation
        return options


@dataclass
class RankerArguments(BaseModelArguments):
    """Which ranking model is trained, or of what plain model it is made."""

    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether to run the backbone's own code from the Hub."}
    )
    family: str | None = field(
        default=None,
        metadata={
            "help": "What a plain model becomes: fine-tuning makes query_likelihood, distillation true_false_logits. "
            "A ranking checkpoint says it itself; naming another one starts that from its weights.",
        },
    )
    ranking_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'Ranking options to change as JSON, such as \'{"prompt_style": "separate"}\'.'},
    )

    def __post_init__(self) -> None:
        if isinstance(self.ranking_options, str):
            self.ranking_options = parse_json(self.ranking_options, "ranking_options")
        if self.ranking_options is not None and not isinstance(self.ranking_options, dict):
            raise InputError(f"ranking_options must be a JSON object, got {self.ranking_options!r}")

    def loading_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_base_ranker`."""
        return {
            **super().loading_options(),
            "trust_remote_code": self.trust_remote_code,
            "family": self.family,
            "ranking_options": self.ranking_options,
        }


@dataclass
class DataArguments:
    """What it is trained on. The layouts that can be read are listed in `training_data`."""

    train_data: str | None = field(
        default=None,
        metadata={"help": "A file (.jsonl, .json, .parquet, also .gz), a folder of them, or the Hub id of a dataset."},
    )
    train_split: str = field(default="train", metadata={"help": "Split of a folder or Hub dataset."})
    eval_data: str | None = field(
        default=None, metadata={"help": "Held-out rows, whose loss is computed at every evaluation."}
    )
    eval_split: str = field(default="validation", metadata={"help": "Split of eval_data."})
    data_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    permutations: str | None = field(
        default=None,
        metadata={"help": "Distillation only: RankGPT's second file, the teacher's answers to train_data's rows."},
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Only the first so many rows."})
    drop_unusable_rows: bool = field(
        default=False,
        metadata={"help": "Leave out rows that fail the checks, with a warning; otherwise they are an error."},
    )


@dataclass
class RerankingArguments:
    """Reranking while training, see [`RerankingEvaluation`]. `eval_strategy` says when."""

    rerank_collection: list[str] | None = field(
        default=None,
        metadata={"help": "Collections to rerank at every evaluation: BEIR folders, Hub ids, ir_datasets:NAME."},
    )
    rerank_split: str = field(default="test", metadata={"help": "Split of their judgments; choose a development set."})
    rerank_first_stage: str = field(
        default="bm25", metadata={"help": "Where candidates come from: bm25, dense, splade, rrf, or a run file."}
    )
    rerank_run_format: str | None = field(
        default=None,
        metadata={"help": "What the third column of a three-column run file is.", "choices": ["ranks", "scores"]},
    )
    rerank_depth: int = field(default=30, metadata={"help": "Candidates of a query."})
    rerank_queries: int = field(default=100, metadata={"help": "Only the first so many judged queries; 0 takes all."})
    rerank_measures: list[str] = field(
        default_factory=lambda: ["ndcg@10"], metadata={"help": "What is measured, such as ndcg@10 or mrr@10."}
    )
    rerank_batch_tokens: int | None = field(
        default=None, metadata={"help": "Padded tokens of one batch of candidates."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations in a row without a better metric_for_best_model."},
    )
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "How much better counts as better."})

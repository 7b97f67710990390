"""`pipeline("text-ranking", model=…, trust_remote_code=True)` for every checkpoint saved by a ranking model."""

from __future__ import annotations

from typing import Any

from transformers import Pipeline

from .ranking_errors import InputError


class TextRankingPipeline(Pipeline):
    """Ranks documents for a query.

    Call it with `{"query": …, "documents": […]}`, or a list of such for many queries. Returns for each query
    `[{"corpus_id", "score", "text"}, …]`, best first. Options: `top_k`, `return_documents` (default true),
    `batch_tokens`.
    """

    model: Any
    # The base class declares these as None for its subclasses to set.
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = True  # type: ignore[assignment]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.tokenizer is not None:
            self.model.tokenizer = self.tokenizer

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ("top_k", "return_documents", "batch_tokens")
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise InputError(f"unknown argument {', '.join(unknown)}; known: {', '.join(known)}")
        return {}, kwargs, {}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        if not isinstance(input_, dict) or not {"query", "documents"} <= set(input_):
            raise InputError('text-ranking takes {"query": …, "documents": […]} or a list of such')
        return {"query": input_["query"], "documents": list(input_["documents"])}

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> Any:
        kwargs.setdefault("return_documents", True)
        return {"ranking": self.model.rank(input_tensors["query"], input_tensors["documents"], **kwargs)}

    def postprocess(self, model_outputs: dict[str, Any], **_: Any) -> list[dict[str, Any]]:
        return model_outputs["ranking"]

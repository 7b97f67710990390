"""`pipeline("text-ranking", model=…, trust_remote_code=True)` for every checkpoint saved by a ranking model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from transformers import Pipeline

from .ranking_errors import InputError
from .ranking_options import whole_number
from .ranking_text import document_list


class TextRankingPipeline(Pipeline):
    """Ranks documents for a query.

    Call it with `{"query": …, "documents": […]}`, or a list, generator or dataset of these. Returns for each query
    `[{"corpus_id", "score", "text"}, …]`, best first. Options: `top_k`, `return_documents` (default true),
    `batch_tokens` and, with the package installed, `passages`, `passage_length` and `passage_stride`. `batch_size` and
    `num_workers` have no effect: the model batches a query's documents by `batch_tokens`. Only documents are
    truncated, to the model's own `max_length`, with or without `truncation`.
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

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, tuple) or (isinstance(inputs, list) and not inputs):
            return [self(one, *args, **kwargs) for one in inputs]  # the base class checks the first of a list
        if not isinstance(inputs, str | Mapping | list) and isinstance(inputs, Iterable | Sized):
            inputs = (one for one in _each(inputs))  # a dataset of any library
        return super().__call__(inputs, *args, **kwargs)

    def get_iterator(self, inputs: Any, num_workers: int, batch_size: int, *parameters: Any) -> Iterator[Any]:
        """One task at a time: a batch would have to pad values that are not tensors."""
        whole_number(batch_size, "batch_size")
        whole_number(num_workers, "num_workers", 0)
        return (self.run_single(one, *parameters) for one in _each(inputs))

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ("top_k", "return_documents", "batch_tokens", "passages", "passage_length", "passage_stride")
        if kwargs.pop("max_length", None) is not None:
            raise InputError("max_length belongs to the model: set it by pipeline.model.set_options(max_length=…)")
        truncation = kwargs.pop("truncation", None)
        if truncation not in (None, True, "longest_first", "only_first", "only_second"):
            raise InputError(
                f"truncation {truncation!r} is not supported: the model always truncates documents to its max_length"
            )
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise InputError(f"unknown argument {', '.join(unknown)}; known: {', '.join(known)}")
        return {}, kwargs, {}

    def preprocess(self, input_: Any, **_: Any) -> dict[str, Any]:
        if not isinstance(input_, Mapping) or not {"query", "documents"} <= set(input_):
            raise InputError('text-ranking expects {"query": …, "documents": […]} or a list of these')
        return {"query": input_["query"], "documents": document_list(input_["documents"])}

    def _forward(self, input_tensors: dict[str, Any], **kwargs: Any) -> Any:
        kwargs.setdefault("return_documents", True)
        return {"ranking": self.model.rank(input_tensors["query"], input_tensors["documents"], **kwargs)}

    def postprocess(self, model_outputs: dict[str, Any], **_: Any) -> list[dict[str, Any]]:
        return model_outputs["ranking"]


def _each(inputs: Any) -> Iterator[Any]:
    """The rows of a list, generator or dataset; one with a length and without iteration is indexed by number."""
    if isinstance(inputs, Sized) and not hasattr(inputs, "__iter__"):
        return (inputs[i] for i in range(len(inputs)))  # type: ignore[index]
    return iter(inputs)

"""Rerankers as components of LangChain, LlamaIndex, Haystack and PyTerrier. Each module needs its library."""

from __future__ import annotations

from typing import Any


def as_ranker(model: Any) -> Any:
    """A loaded ranker as it is; a name as `load_ranker` takes it (`None`: the default model)."""
    from ..models.loading import load_ranker

    return load_ranker(model) if model is None or isinstance(model, str) else model

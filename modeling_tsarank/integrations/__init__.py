"""Rerankers as components of LangChain, LlamaIndex, Haystack and PyTerrier. Each module needs its library."""

from __future__ import annotations

import os
from typing import Any

from ..ranking_errors import InputError
from ..scores.ranking import rank


def as_ranker(model: Any, **options: Any) -> Any:
    """A loaded ranker unchanged; a name is loaded by `load_ranker` with `options` (`None`: the default)."""
    from ..rankers.loading import load_ranker

    if model is None or isinstance(model, str | os.PathLike):
        return load_ranker(model, **options)
    if not hasattr(model, "rank"):
        raise InputError(f"model must be a name or a loaded ranker, got {type(model).__name__}")
    return model


def rank_with(ranker: Any, query: str, texts: list[str], top_k: int | None, options: Any) -> list[dict[str, Any]]:
    """The rows of `rank` with a component's `rank_options`. Raises `InputError` for those that it has itself."""
    own = sorted({"ranker", "query", "documents", "top_k"} & set(options or {}))
    if own:
        raise InputError(f"rank_options holds {own[0]}, which the component gives itself; leave it out of them")
    return rank(ranker, query, texts, top_k, **(options or {}))


def found_in(row: dict[str, Any]) -> dict[str, Any]:
    """The other values of a row of `rank`: the best passage, a probability."""
    return {name: row[name] for name in ("passage", "probability") if name in row}

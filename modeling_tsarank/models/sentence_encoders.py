"""Models of sentence-transformers: bi-encoders and cross-encoders, loaded completely or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..files.extras import require
from ..files.reading import read_json_object
from ..ranking_errors import ModelError, first_line


def sentence_transformers_kind(name: str, revision: str | None = None) -> str:
    """`CrossEncoder` or `SentenceTransformer`, by the model's own files.

    Raises:
        ModelError: it is another kind of model, or has no configuration.
    """
    told = _settings(name, "config_sentence_transformers.json", revision).get("model_type")
    config = _settings(name, "config.json", revision)
    if told is None and repository_file(name, "modules.json", revision) is None:
        architectures = config.get("architectures") or [""]
        told = "CrossEncoder" if str(architectures[0]).endswith("ForSequenceClassification") else None
    if told not in (None, "CrossEncoder", "SentenceTransformer"):
        raise ModelError(f"{name!r} is a {told:.60}, which scores no pairs; expected a CrossEncoder or a bi-encoder")
    return told or "SentenceTransformer"


def _settings(name: str, file: str, revision: str | None) -> dict[str, Any]:
    path = repository_file(name, file, revision)
    return {} if path is None else read_json_object(path)


def repository_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a folder or Hub repository, or `None` if it does not exist. Raises `ModelError` if the repository is
    unavailable."""
    from transformers.utils import cached_file

    try:
        found = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{name!r} cannot be loaded as a sentence-transformers model: {first_line(error)}") from error
    return None if found is None else Path(found)


def load_encoder(name: str, device: str | None = None, **kwargs: Any) -> Any:
    """A `SentenceTransformer`, ready to encode; further keyword arguments are passed to it.

    Raises:
        ModelError: it cannot be loaded, or weights are missing.
        ResourceError: sentence-transformers is not installed.
    """
    # Sentence-transformers has its own pooling: many encoders are published without BERT's pooler.
    what = "A bi-encoder", "a sentence-transformers model"
    return _load("SentenceTransformer", name, what, ("pooler.",), device=device, **kwargs).eval()


def load_sparse_encoder(name: str, device: str | None = None, max_tokens: int = 256) -> Any:
    """A `SparseEncoder` that is a SPLADE model: a masked language model in safetensors.

    Raises:
        ModelError: it cannot be loaded, or weights are missing.
        ResourceError: sentence-transformers is not installed.
    """
    what = "The SPLADE first stage", "a masked language model"
    encoder = _load("SparseEncoder", name, what, device=device, model_kwargs={"use_safetensors": True})
    encoder.max_seq_length = min(max_tokens, encoder.max_seq_length or max_tokens)
    return encoder.eval()


def load_cross_encoder(name: str, device: str | None = None, max_length: int | None = None, **kwargs: Any) -> Any:
    """A `CrossEncoder` of sentence-transformers; further keyword arguments are passed to it.

    Raises:
        ModelError: it cannot be loaded, or weights are missing: a plain encoder has no scoring head.
        ResourceError: sentence-transformers is not installed.
    """
    what = "A cross-encoder", "a CrossEncoder"
    return _load("CrossEncoder", name, what, device=device, max_length=max_length, **kwargs)


def _read_as_text(encoder: Any) -> None:
    """Encodes control tokens spelled in a text as plain characters, unless the model's own prompts have some."""
    tokenizer = encoder.tokenizer
    prompts = " ".join(map(str, (getattr(encoder, "prompts", None) or {}).values()))
    own = any(token in prompts for token in tokenizer.all_special_tokens)
    if not own and not getattr(tokenizer, "chat_template", None):
        tokenizer.split_special_tokens = True


def _load(kind: str, name: str, what: tuple[str, str], dispensable: tuple[str, ...] = (), **kwargs: Any) -> Any:
    """A model of a class of sentence-transformers; all errors become one-line messages.

    Args:
        kind: The class.
        name: Of the model.
        what: The feature for which the library is needed, and the kind the model cannot be loaded as, for messages.
        dispensable: Prefixes of weights that may be missing.
        kwargs: Arguments of the class.
    """
    from .checkpoints import newly_made_weights, some_of

    package = require("sentence_transformers", extra="dense", purpose=what[0])
    try:  # the libraries validate few fields of files
        encoder = getattr(package, kind)(name, **kwargs)
        _read_as_text(encoder)
        if kind == "CrossEncoder":  # wrong tokenizer settings only fail with a text
            encoder.tokenizer(["a"], ["b"])
        else:
            (getattr(encoder, "preprocess", None) or encoder.tokenize)(["a"])
    except Exception as error:
        raise ModelError(f"{name!r} cannot be loaded as {what[1]}: {first_line(error)}") from error
    if kind == "SparseEncoder" and not any(type(module).__name__ == "SpladePooling" for module in encoder):
        raise ModelError(f"{name!r} is not a SPLADE model: it has no masked-language-model head")
    weights = [weight for weight in newly_made_weights(encoder) if not weight.startswith(dispensable)]
    if weights:
        raise ModelError(f"{name!r} is incomplete, its results would be random: missing {some_of(weights)}")
    return encoder


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32. Raises `ModelError` for a row that is not finite."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise ModelError("the dense model returned an embedding that is not finite; try another dtype or device")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

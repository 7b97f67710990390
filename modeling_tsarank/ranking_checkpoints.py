"""Loading plain models, and the table of published rerankers whose prompts and scores are known."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer

from .ranking_errors import ModelError


_MONOT5 = {
    "family": "true_false_logits",
    "template": "Query: {query} Document: {document} Relevant:",
    "strategy": "softmax",
    "max_length": 512,
}

# Published checkpoints by name: the prompt and the score each was trained with. The first pattern that matches counts.
KNOWN_CHECKPOINTS: dict[str, dict[str, Any]] = {
    # The published training and evaluation code glues the query's ids to the prompt's, with no space between.
    "zyznull/RankingGPT-*": {"family": "query_likelihood", "prompt_style": "separate"},
    # The published TWOLAR code ends its template with a space.
    "Dundalia/TWOLAR-*": {
        "family": "true_false_logits",
        "template": "Query: {query} Document: {document} Relevant: ",
        "strategy": "difference",
    },
    "castorini/monot5-*": _MONOT5,
    "Soyoung97/RankT5-*": {
        "family": "true_false_logits",
        "template": "Query: {query} Document: {document}",
        "strategy": "single_token",
        "score_text": "<extra_id_10>",
        "max_length": 512,
    },
}


def known_checkpoint(name: str) -> dict[str, Any] | None:
    """The ranking options of a published checkpoint named like the table's patterns, letter case aside, or `None`."""
    lowered = name.lower()
    for pattern, options in KNOWN_CHECKPOINTS.items():
        if fnmatch.fnmatchcase(lowered, pattern.lower()):
            return dict(options)
    return None


def first_line(error: BaseException) -> str:
    """The first non-empty line of an error's text, for messages of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def refuse_shell_of_a_folder(name_or_path: Any) -> None:
    """Raises `ModelError` if the name is a path that exists but holds no model."""
    path = Path(os.fspath(name_or_path)) if isinstance(name_or_path, str | os.PathLike) else None
    if path is None or not path.exists():
        return
    if path.is_file():
        raise ModelError(f"{path} is a file; a model is a folder with config.json, or a .gguf file")
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise ModelError(f"{path} is no model folder: it holds no config.json")


def _split_gguf(name_or_path: Any, gguf_file: str | None) -> tuple[str, str | None]:
    path = Path(os.fspath(name_or_path))
    if gguf_file is None and path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"no GGUF file at {path}")
        return str(path.parent), path.name
    if gguf_file is not None and path.is_dir() and not (path / gguf_file).is_file():
        raise ModelError(f"no GGUF file {gguf_file} in the folder {path}")
    return os.fspath(name_or_path), gguf_file


def load_backbone(
    name_or_path: str | os.PathLike,
    backbone_class: Callable[[Any], Any],
    *,
    gguf_file: str | None = None,
    tokenizer: Any = None,
    dtype: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A plain model and its tokenizer from a Hub id, a folder or a GGUF file.

    `backbone_class` maps the configuration to the auto class that reads it. Pickled weights are read by torch's
    weights-only loader alone (transformers' rule since 4.56 for every `.bin`).

    Raises `ModelError`, in one line, for a name that is no model, a missing file or an unreadable one.
    """
    name, gguf_file = _split_gguf(name_or_path, gguf_file)
    if gguf_file is None:
        refuse_shell_of_a_folder(name)
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if gguf_file is not None:
        shared["gguf_file"] = gguf_file
    if revision is not None:
        shared["revision"] = revision
    if dtype is not None:
        kwargs["dtype"] = dtype
    try:
        config = AutoConfig.from_pretrained(name, **shared)
        # A folder saved by a ranking model is read as what it also is, a plain model.
        backbone = backbone_class(config).from_pretrained(name, **shared, **kwargs)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(name, **shared)
    except (OSError, ValueError, KeyError, ImportError, EOFError, SafetensorError, UnpicklingError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"cannot load the model {name}: {first_line(error)}") from error
    if gguf_file is not None:
        _forget_quantization(backbone)
    return backbone, tokenizer


def _forget_quantization(backbone: Any) -> None:
    # GGUF weights were dequantized on loading, but the model still says it is quantized and then refuses to be saved.
    backbone.hf_quantizer = None
    backbone.is_quantized = False
    if getattr(backbone.config, "quantization_config", None) is not None:
        del backbone.config.quantization_config

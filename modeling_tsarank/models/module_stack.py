"""Cross-encoders that sentence-transformers publishes as ModernBERT without a head and the head's parts as modules.

Such a repository (cross-encoder/ettin-reranker-*) has the parts of `ModernBertForSequenceClassification` under other
names, and is loaded as one: Transformer, Pooling, Dense (GELU), LayerNorm, Dense (one score).
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from ..ranking_errors import ModelError, load_errors
from .checkpoints import load_backbone, some_of
from .logit_score import default_prompt, repository_json
from .sentence_encoders import repository_file


_KINDS = ["Transformer", "Pooling", "Dense", "LayerNorm", "Dense"]
_DENSE, _NORM, _SCORE = 2, 3, 4
_EPSILON = 1e-5  # of sentence-transformers' LayerNorm, which has no option for it


def read_stack(path: str, revision: str | None = None) -> dict[str, Any] | None:
    """The paths of such a repository's modules and what ModernBERT's configuration has of a head; `None` for others.

    Args:
        path: A folder or Hub id.
        revision: Branch, tag or commit of a Hub repository.

    Raises:
        ModelError: A file of it is damaged.
    """
    modules = repository_json(path, "modules.json", revision)
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        return None
    if [str(one.get("type")).rpartition(".")[2] for one in modules] != _KINDS or modules[0].get("path"):
        return None
    paths = [str(one.get("path")) for one in modules]
    files = [repository_json(path, f"{one}/config.json".lstrip("/"), revision) for one in ("", *paths[1:])]
    config, pooling, dense, _, score = (file if isinstance(file, dict) else {} for file in files)
    if config.get("model_type") != "modernbert" or config.get("norm_eps", _EPSILON) != _EPSILON:
        return None
    pooled = pooling.get("pooling_mode") or next((n for n in ("cls", "mean") if _legacy(pooling, n)), None)
    size = config.get("hidden_size")
    plain = all(
        one.get("in_features") == size
        and one.get("out_features") == width
        and str(one.get("activation_function")).endswith(activation)
        and not one.get("use_residual")
        and one.get("module_input_name", "sentence_embedding") == "sentence_embedding"
        and one.get("module_output_name", "sentence_embedding") in (None, name)
        for one, width, activation, name in (
            (dense, size, ".GELU", "sentence_embedding"),
            (score, 1, ".Identity", "scores"),
        )
    )
    if pooled not in ("cls", "mean") or not plain or default_prompt(path, revision):
        return None
    head = {"classifier_pooling": pooled, "classifier_activation": "gelu", "classifier_bias": bool(dense.get("bias"))}
    return {"paths": paths, "head": head}


def _legacy(pooling: dict[str, Any], name: str) -> bool:
    chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    return chosen == [{"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}[name]]


def load_stack(
    path: str, stack: dict[str, Any], revision: str | None = None, **origin: Any
) -> tuple[Any, Any, dict[str, int]]:
    """The repository as a sequence-classification model, its tokenizer, and its limits as ranking options.

    Args:
        path, revision: As of `read_stack`.
        stack: What that gave.
        origin: Further arguments of `load_backbone`.

    Raises:
        ModelError: Weights are missing or unreadable, or of other shapes.
    """
    origin |= {"new_head": True, "revision": revision, **stack["head"]}
    backbone, tokenizer = load_backbone(path, lambda _: AutoModelForSequenceClassification, **origin)
    weights = {place: _weights(path, stack["paths"][place], revision) for place in (_DENSE, _NORM, _SCORE)}
    norm, score = weights[_NORM], weights[_SCORE]
    # ModernBERT's norms mostly have no bias. What this one adds, the layer above turns into a constant.
    bias = score["linear.weight"].double() @ norm["norm.bias"].double() + score.get("linear.bias", torch.zeros(1))
    state = {f"head.dense.{name.rpartition('.')[2]}": value for name, value in weights[_DENSE].items()}
    state |= {"head.norm.weight": norm["norm.weight"], "classifier.weight": score["linear.weight"]}
    state["classifier.bias"] = bias
    if backbone.config.norm_bias:
        state["head.norm.bias"] = torch.zeros_like(norm["norm.bias"])
    own = backbone.state_dict()
    if lacking := {name for name in own if name.startswith(("head.", "classifier."))} - state.keys():
        raise ModelError(f"{path}: {some_of(lacking)} of its head are missing")
    for name, value in state.items():
        if name not in own or own[name].shape != value.shape:
            raise ModelError(f"{path}: {name} of the modules does not fit the model's head")
        own[name].copy_(value)
    for name, weight in backbone.named_parameters():
        if name in state:
            weight._is_hf_initialized = True
    longest = (repository_json(path, "sentence_bert_config.json", revision) or {}).get("max_seq_length")
    limits = {"max_length": min(longest, backbone.config.max_position_embeddings)} if isinstance(longest, int) else {}
    return backbone, tokenizer, limits


def _weights(path: str, module: str, revision: str | None) -> dict[str, torch.Tensor]:
    found = repository_file(path, f"{module}/model.safetensors", revision)
    if found is None:
        raise ModelError(f"{path}: the module {module} has no model.safetensors")
    with load_errors(path):
        return load_file(found)

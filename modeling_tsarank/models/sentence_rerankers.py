"""Rerankers that sentence-transformers publishes as modules: of a language model, or of ModernBERT without a head.

A repository with a language model, a chat template and a `LogitScore` module has all that `TwolarModel` needs: the
template is the tokenizer's chat template, filled with placeholders, and the answers are the module's token ids.

Other repositories (cross-encoder/ettin-reranker-*) have the parts of `ModernBertForSequenceClassification` under
other names, and are loaded as one: Transformer, Pooling, Dense (GELU), LayerNorm, Dense (one score).
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..files.reading import read_json
from ..ranking_errors import InputError, ModelError, load_errors
from .checkpoints import load_backbone, some_of
from .sentence_encoders import repository_file


_LONGEST_QUERY = 2048
_KINDS = ["Transformer", "Pooling", "Dense", "LayerNorm", "Dense"]
_DENSE, _NORM, _SCORE = 2, 3, 4
_EPSILON = 1e-5  # of sentence-transformers' LayerNorm, which has no option for it


def default_prompt(path: str, revision: str | None) -> str | None:
    """The prompt that sentence-transformers adds before every text of a repository's model."""
    settings = repository_json(path, "config_sentence_transformers.json", revision) or {}
    prompts = settings.get("prompts")
    return prompts.get(settings.get("default_prompt_name")) if isinstance(prompts, dict) else None


def repository_json(path: str, file: str, revision: str | None) -> Any:
    """The content of a JSON file of a repository, `None` if there is none. Raises `ModelError` for a damaged one."""
    try:
        found = repository_file(path, file, revision)
    except ModelError:  # unavailable: loading reports why
        return None
    try:
        return None if found is None else read_json(found)
    except InputError as error:
        raise ModelError(str(error)) from error


def repository_modules(path: str, revision: str | None = None) -> list[tuple[str, str]]:
    """Kind and path of each module of a sentence-transformers repository; empty for other repositories."""
    rows = repository_json(path, "modules.json", revision)
    found = [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []
    return [(str(one.get("type")).rpartition(".")[2], str(one.get("path") or "")) for one in found]


def logit_score_options(path: str, revision: str | None = None) -> dict[str, Any] | None:
    """The `LogitOptions` of a sentence-transformers repository with a `LogitScore` module, or `None` for others.

    Args:
        path: A folder or Hub id.
        revision: Branch, tag or commit of a Hub repository.

    Raises:
        ModelError: Its chat template does not contain query and document exactly once each, or a file is damaged.
    """
    places = dict(repository_modules(path, revision))
    if set(places) != {"Transformer", "LogitScore"} or places["Transformer"]:
        return None
    answers = repository_json(path, f"{places['LogitScore']}/config.json".lstrip("/"), revision) or {}
    settings = repository_json(path, "sentence_bert_config.json", revision) or {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        context = AutoConfig.from_pretrained(path, revision=revision).get_text_config().max_position_embeddings
        template, instruction = _template(tokenizer, settings, default_prompt(path, revision))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path} is a reranker of sentence-transformers whose chat template cannot be used: "
            f"{type(error).__name__}: {error}".splitlines()[0]
        ) from error
    missing = [name for name in ("{query}", "{document}") if template.count(name) != 1]
    if missing:
        raise ModelError(f"the chat template of {path} must contain {' and '.join(missing)} once, got {template!r}")
    limits = (settings.get("max_seq_length"), tokenizer.model_max_length, context)
    longest = min(limit for limit in limits if isinstance(limit, int))
    options: dict[str, Any] = {
        "template": template,
        "instruction": instruction,
        "max_length": longest,
        "max_query_length": min(_LONGEST_QUERY, longest // 2),
        "add_bos": None if tokenizer.bos_token is None else False,  # the chat template has its own
    }
    true, false = answers.get("true_token_id"), answers.get("false_token_id")
    if not isinstance(true, int):
        raise ModelError(f"the LogitScore module of {path} names no true_token_id")
    if false is None:
        return {**options, "strategy": "single_token", "score_text": true}
    return {**options, "strategy": "difference", "true_text": true, "false_text": false}


def other_modules(path: str, revision: str | None = None) -> str:
    """A description of sentence-transformers' additions to a repository's model; empty for a model alone.

    Raises:
        ModelError: A file is damaged.
    """
    kinds = [kind for kind, _ in repository_modules(path, revision)]
    others = ["the modules " + ", ".join(kinds)] if kinds not in ([], ["Transformer"]) else []
    return " and ".join([*others, *(["a prompt"] if default_prompt(path, revision) else [])])


def _template(tokenizer: Any, settings: dict[str, Any], prompt: str | None) -> tuple[str, str]:
    """The chat template as a template of `LogitOptions`, and its default instruction."""
    arguments = dict((settings.get("processing_kwargs") or {}).get("chat_template") or {})
    for name in ("restore_suffix", "padding", "truncation", "max_length", "return_tensors"):
        arguments.pop(name, None)  # tokenization settings
    structured = ((settings.get("modality_config") or {}).get("message") or {}).get("format") == "structured"

    def filled(**roles: str) -> str:
        contents = {role: [{"type": "text", "text": text}] if structured else text for role, text in roles.items()}
        messages = [{"role": role, "content": content} for role, content in contents.items()]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))

    pair = {"query": "{query}", "document": "{document}"}
    plain, instructed = filled(**pair), filled(system="{instruction}", **pair)
    if instructed.count("{instruction}") != 1:
        return plain if prompt is None else filled(system=prompt, **pair), ""
    if prompt is not None:
        return instructed, prompt
    before, after = instructed.split("{instruction}")
    if plain.startswith(before) and plain.endswith(after) and len(plain) >= len(before) + len(after):
        return instructed, plain[len(before) : len(plain) - len(after)]
    return plain, ""


def read_stack(path: str, revision: str | None = None) -> dict[str, Any] | None:
    """The paths of such a repository's modules, and the head's settings for ModernBERT's configuration; else `None`.

    Args:
        path: A folder or Hub id.
        revision: Branch, tag or commit of a Hub repository.

    Raises:
        ModelError: A file is damaged.
    """
    modules = repository_modules(path, revision)
    paths = [place for _, place in modules]
    if [kind for kind, _ in modules] != _KINDS or paths[0]:
        return None
    files = [repository_json(path, f"{one}/config.json".lstrip("/"), revision) for one in ("", *paths[1:])]
    config, pooling, dense, _, score = (file if isinstance(file, dict) else {} for file in files)
    if config.get("model_type") != "modernbert" or config.get("norm_eps", _EPSILON) != _EPSILON:
        return None
    chosen = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    older = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    pooled = pooling.get("pooling_mode") or (older.get(chosen[0]) if len(chosen) == 1 else None)
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


def load_stack(
    path: str, stack: dict[str, Any], revision: str | None = None, **origin: Any
) -> tuple[Any, Any, dict[str, int]]:
    """The sequence-classification model of a repository, its tokenizer, and its limits as ranking options.

    Args:
        path, revision: See `read_stack`.
        stack: The result of `read_stack`.
        origin: Further arguments of `load_backbone`.

    Raises:
        ModelError: Weights are missing or unreadable, or of other shapes.
    """
    origin |= {"new_head": True, "revision": revision, **stack["head"]}
    backbone, tokenizer = load_backbone(path, lambda _: AutoModelForSequenceClassification, **origin)
    weights = {place: _weights(path, stack["paths"][place], revision) for place in (_DENSE, _NORM, _SCORE)}
    norm, score = weights[_NORM], weights[_SCORE]
    # ModernBERT's norms mostly have no bias. The bias of this one is folded into a constant of the layer above.
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
            raise ModelError(f"{path}: the shape of {name} in the modules does not fit the model's head")
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

"""Rerankers that sentence-transformers publishes as a language model, a chat template and a `LogitScore` module.

Such a repository says all that `TwolarModel` needs: the template is the tokenizer's chat template, filled with
placeholders, and the answers are the module's token ids.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoTokenizer

from ..files.reading import read_json
from ..ranking_errors import InputError, ModelError
from .sentence_encoders import repository_file


_LONGEST_QUERY = 2048


def logit_score_options(path: str, revision: str | None = None) -> dict[str, Any] | None:
    """The `LogitOptions` of a sentence-transformers repository with a `LogitScore` module, or `None` for any other.

    Args:
        path: A folder or Hub id.
        revision: Branch, tag or commit of a Hub repository.

    Raises:
        ModelError: Its chat template does not show query and document once each, or a file of it is damaged.
    """
    modules = repository_json(path, "modules.json", revision)
    if not isinstance(modules, list):
        return None
    kinds = {str(module.get("type")).rpartition(".")[2]: module for module in modules if isinstance(module, dict)}
    if set(kinds) != {"Transformer", "LogitScore"} or kinds["Transformer"].get("path"):
        return None
    answers = repository_json(path, f"{kinds['LogitScore'].get('path')}/config.json", revision) or {}
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
        raise ModelError(f"the chat template of {path} must show {' and '.join(missing)} once; it gives {template!r}")
    limits = (settings.get("max_seq_length"), tokenizer.model_max_length, context)
    longest = min(limit for limit in limits if isinstance(limit, int))
    options: dict[str, Any] = {
        "template": template,
        "instruction": instruction,
        "max_length": longest,
        "max_query_length": min(_LONGEST_QUERY, longest // 2),
        "add_bos": None if tokenizer.bos_token is None else False,  # the chat template writes its own
    }
    true, false = answers.get("true_token_id"), answers.get("false_token_id")
    if not isinstance(true, int):
        raise ModelError(f"the LogitScore module of {path} names no true_token_id")
    if false is None:
        return {**options, "strategy": "single_token", "score_text": true}
    return {**options, "strategy": "difference", "true_text": true, "false_text": false}


def other_modules(path: str, revision: str | None = None) -> str:
    """What sentence-transformers puts around a repository's model, in words; empty for a model alone.

    Raises:
        ModelError: A file of it is damaged.
    """
    modules = repository_json(path, "modules.json", revision)
    kinds = [str(one.get("type")).rpartition(".")[2] for one in modules or () if isinstance(one, dict)]
    others = ["the modules " + ", ".join(kinds)] if kinds not in ([], ["Transformer"]) else []
    return " and ".join([*others, *(["a prompt"] if default_prompt(path, revision) else [])])


def _template(tokenizer: Any, settings: dict[str, Any], prompt: str | None) -> tuple[str, str]:
    """The chat template as a template of `LogitOptions`, and the instruction that stands in it by default."""
    arguments = dict((settings.get("processing_kwargs") or {}).get("chat_template") or {})
    for name in ("restore_suffix", "padding", "truncation", "max_length", "return_tensors"):
        arguments.pop(name, None)  # they say how to tokenize
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


def default_prompt(path: str, revision: str | None) -> str | None:
    """The prompt that sentence-transformers puts before every text of a repository's model."""
    settings = repository_json(path, "config_sentence_transformers.json", revision) or {}
    prompts = settings.get("prompts")
    return prompts.get(settings.get("default_prompt_name")) if isinstance(prompts, dict) else None


def repository_json(path: str, file: str, revision: str | None) -> Any:
    """What a JSON file of a repository holds, `None` where there is none. Raises `ModelError` for a damaged one."""
    try:
        found = repository_file(path, file, revision)
    except ModelError:  # not to be had: loading says why
        return None
    try:
        return None if found is None else read_json(found)
    except InputError as error:
        raise ModelError(str(error)) from error

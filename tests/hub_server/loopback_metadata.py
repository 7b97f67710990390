"""Checking a card's metadata, as far as it can be done without the Hub.

The real Hub has a schema of its own, which is not published as code. What stands here is what huggingface_hub itself
can parse (YAML, `model-index`), with the rules on single fields that the Hub's documentation of repository cards
names. A card that passes may therefore still be refused by the Hub; one that fails is certainly wrong.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results


REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
SDKS = ("gradio", "docker", "static", "streamlit")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
# The identifiers that the Hub's documentation lists and that a reranker is likely to have.
LICENSES = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "ms-pl", "unlicense", "wtfpl", "afl-3.0"),
    *("cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-3.0"),
    *(
        "cc-by-nc-4.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-nc-nd-4.0",
        "odc-by",
        "odbl",
        "pddl",
    ),
    *("gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "gfdl", "epl-2.0", "bigscience-bloom-rail-1.0", "openrail"),
    *("bigscience-openrail-m", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "unknown", "other"),
}


def validate_card(text: str) -> tuple[dict[str, Any] | None, list[str]]:
    """The metadata of a card and what is wrong with it."""
    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    if match is None:
        return None, ["no metadata block"]
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return None, [f"bad YAML: {error}"]
    if not isinstance(data, dict):
        return None, ["the metadata are not a mapping"]
    errors = [error for rule in (_strings, _lists, _license, _space, _model_index) for error in rule(data)]
    return data, errors


def _empty(value: Any) -> bool:
    return value is None or value == "" or value == [] or value == {}


def _strings(data: dict[str, Any]) -> list[str]:
    errors = [f'"{name}" is empty' for name, value in data.items() if _empty(value)]
    names = ("license", "pipeline_tag", "library_name", "title", "sdk", "license_name", "pretty_name")
    return errors + [f'"{name}" must be a string' for name in names if not isinstance(data.get(name, ""), str)]


def _lists(data: dict[str, Any]) -> list[str]:
    errors = []
    for name, pattern in (
        ("datasets", REPO_ID),
        ("base_model", REPO_ID),
        ("language", LANGUAGE),
        ("metrics", REPO_ID),
    ):
        values = data.get(name, [])
        for value in [values] if isinstance(values, str) else values:
            if not isinstance(value, str) or not pattern.fullmatch(value):
                errors.append(f'"{name}": {value!r} is not valid')
    tags = data.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        errors.append('"tags" must be a list of strings')
    if data.get("base_model_relation", "finetune") not in ("adapter", "finetune", "merge", "quantized"):
        errors.append('"base_model_relation" is unknown')
    return errors


def _license(data: dict[str, Any]) -> list[str]:
    given = data.get("license", "other")
    licenses = given if isinstance(given, list) else [given]
    errors = [
        f'"license": {value!r} is not one of the Hub\'s identifiers' for value in licenses if value not in LICENSES
    ]
    return errors


def _space(data: dict[str, Any]) -> list[str]:
    errors = []
    if "sdk" in data and data["sdk"] not in SDKS:
        errors.append(f'"sdk" must be one of {SDKS}')
    for name in ("colorFrom", "colorTo"):
        if name in data and data[name] not in COLOURS:
            errors.append(f'"{name}" must be one of {COLOURS}')
    if len(data.get("short_description", "")) > 60:
        errors.append('"short_description" is longer than 60 characters')
    return errors


def _model_index(data: dict[str, Any]) -> list[str]:
    if "model-index" not in data:
        return []
    try:
        name, results = model_index_to_eval_results(data["model-index"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return [f'"model-index" cannot be read: {error!r}']
    errors = [] if name and results else ['"model-index" is empty']
    for result in results:
        fields = (result.task_type, result.dataset_type, result.dataset_name, result.metric_type, result.metric_value)
        if any(_empty(value) for value in fields):
            errors.append(f'"model-index" has an empty field: {result}')
        if not isinstance(result.metric_value, int | float):
            errors.append(f'"model-index": {result.metric_value!r} is not a number')
    return errors

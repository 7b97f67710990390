"""Recipes: YAML files of options for `--config`, the user's or shipped with the package."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from modeling_tsarank.files.reading import parse_yaml, read_text
from modeling_tsarank.ranking_errors import InputError


RECIPES = Path(__file__).resolve().parent / "recipes"
ACCELERATE_RECIPES = RECIPES / "accelerate"
_YAML_BOOLEAN = "tag:yaml.org,2002:bool"


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """Names of the recipes included in the package."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_recipe(name: str, folder: Path = RECIPES, what: str = "recipe") -> Path:
    """The file at that path, or the shipped recipe of that name. Raises `InputError` if there is neither."""
    for path in (Path(name), folder / f"{name.removesuffix('.yaml')}.yaml"):
        if path.is_file():
            return path
    raise InputError(f"no file {name!r} and no {what} of that name; there are {', '.join(recipe_names(folder))}")


def read_recipe(path: Path) -> dict[str, Any]:
    """The options in a YAML file. Raises `InputError` if it is not a mapping of options."""
    import yaml

    class Loader(yaml.SafeLoader):
        """As in YAML 1.2, `no` is a string, which `save_strategy` accepts, and not false."""

    Loader.yaml_implicit_resolvers = {
        letter: [resolver for resolver in resolvers if resolver[0] != _YAML_BOOLEAN]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(_YAML_BOOLEAN, re.compile("(?:true|false|True|False|TRUE|FALSE)$"), list("tTfF"))
    values = parse_yaml(read_text(path), str(path), Loader)
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path}: expected one option per line, such as `learning_rate: 3e-5`")
    return values


def config_options(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without `--config`, and the options of its files."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    try:
        given, kept = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError("--config needs a file or the name of a recipe") from error
    options: dict[str, Any] = {}
    for name in given.config:
        options |= read_recipe(find_recipe(name))
    return kept, options

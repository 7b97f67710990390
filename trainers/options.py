"""Options as fields of dataclasses, whose help texts are what the class's docstring says of each field."""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from modeling_tsarank.cli.command_line import real, whole
from modeling_tsarank.ranking_errors import InputError


ClassT = TypeVar("ClassT", bound=type)
InstanceT = TypeVar("InstanceT")

# `name: text` or, as in transformers, ``name (`type`, *optional*):`` over the text; both go on further to the right.
_ENTRY = re.compile(r"^    (\w+)(?: \(.*\))?:(.*(?:\n {8,}.*)*)", re.MULTILINE)


def field_texts(cls: type) -> dict[str, str]:
    """What the docstrings of a class and of its bases in this package say of each field, as text for a terminal."""
    found: dict[str, str] = {}
    for one in [one for one in reversed(cls.__mro__) if one.__module__.startswith("modeling_tsarank.")]:
        for name, text in _ENTRY.findall(inspect.cleandoc(one.__dict__.get("__doc__") or "")):
            found[name] = " ".join(text.replace("`", "").split())
    return found


def documented(cls: ClassT) -> ClassT:
    """Class decorator of a dataclass: its fields get their texts as `metadata["help"]`, for `HfArgumentParser`."""
    texts = field_texts(cls)
    for field in fields(cls):
        inherited = [one.__dataclass_fields__ for one in cls.__mro__[1:] if hasattr(one, "__dataclass_fields__")]
        helps = [of[field.name].metadata["help"] for of in inherited if "help" in _metadata(of.get(field.name))]
        text = texts[field.name].replace("%", "%%") if field.name in texts else next(iter(helps), "")
        field.metadata = {"help": text, **field.metadata}  # type: ignore[assignment]
    return cls


def _metadata(field: Any) -> Any:
    return {} if field is None else field.metadata


def check_choices(instance: Any) -> None:
    """Raises `InputError` for a field whose type is a `Literal` and whose value is none of it."""
    for name, hint in get_type_hints(type(instance)).items():
        literals = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
        value = getattr(instance, name, None)
        allowed = [choice for one in literals for choice in get_args(one)]
        if literals and value not in allowed and (value is not None or type(None) not in get_args(hint)):
            raise InputError(f"unknown {name} {value!r}; expected one of {', '.join(map(str, allowed))}")


def add_options(parser: argparse._ActionsContainer, cls: Any, *names: str) -> None:
    """Adds an option for each field of a dataclass, or of those named, with its type, default and docstring."""
    texts, hints = field_texts(cls), get_type_hints(cls)
    for field in fields(cls):
        if names and field.name not in names:
            continue
        flag, hint = f"--{field.name.replace('_', '-')}", hints[field.name]
        text = texts[field.name].rstrip(".") + ("" if field.default is None else f" (default: {field.default})")
        kinds: dict[Any, Any] = {int: whole(least=0), float: real(least=0)}
        if get_origin(hint) is Literal:
            parser.add_argument(flag, choices=get_args(hint), default=field.default, help=text)
        else:
            kind = next(kinds[one] for one in (hint, *get_args(hint)) if one in kinds)
            parser.add_argument(flag, type=kind, default=field.default, metavar="N", help=text)


def given_options(cls: type[InstanceT], args: argparse.Namespace) -> InstanceT:
    """The instance of a dataclass that options of `add_options` describe. Raises `InputError` as the class does."""
    return cls(**{one.name: getattr(args, one.name) for one in fields(cls) if hasattr(args, one.name)})  # type: ignore[arg-type]

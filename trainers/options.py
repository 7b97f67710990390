"""Options as dataclass fields, with help texts from the class docstring."""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import MISSING, fields
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from modeling_tsarank.cli.command_line import Number, real, whole
from modeling_tsarank.ranking_errors import InputError


ClassT = TypeVar("ClassT", bound=type)
InstanceT = TypeVar("InstanceT")

# `name: text` or, as in transformers, ``name (`type`, *optional*):`` above the text; continuation lines
# are indented further.
_ENTRY = re.compile(r"^    (\w+)(?: \(.*\))?:(.*(?:\n {8,}.*)*)", re.MULTILINE)


def field_texts(cls: type) -> dict[str, str]:
    """The docstring entries of each field, of a class and its bases in this package, as text for a terminal."""
    found: dict[str, str] = {}
    for one in [one for one in reversed(cls.__mro__) if one.__module__.startswith("modeling_tsarank.")]:
        for name, text in _ENTRY.findall(inspect.cleandoc(one.__dict__.get("__doc__") or "")):
            found[name] = " ".join(text.replace("`", "").split())
    return found


def documented(cls: ClassT) -> ClassT:
    """Dataclass decorator: sets each field's docstring entry as `metadata["help"]`, for `HfArgumentParser`."""
    texts = field_texts(cls)
    for field in fields(cls):
        inherited = [getattr(one, "__dataclass_fields__", {}).get(field.name) for one in cls.__mro__[1:]]
        helps = [one.metadata["help"] for one in inherited if one is not None and "help" in one.metadata]
        text = texts[field.name].replace("%", "%%") if field.name in texts else next(iter(helps), "")
        field.metadata = {"help": text, **field.metadata}  # type: ignore[assignment]
    return cls


def check_choices(instance: Any) -> None:
    """Raises `InputError` for a field of `Literal` type whose value is not one of its choices."""
    for name, hint in get_type_hints(type(instance)).items():
        literals = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
        value = getattr(instance, name, None)
        allowed = [choice for one in literals for choice in get_args(one)]
        if literals and value not in allowed and (value is not None or type(None) not in get_args(hint)):
            raise InputError(f"unknown {name} {value!r}; expected one of {', '.join(map(str, allowed))}")


def add_options(parser: argparse._ActionsContainer, cls: Any, *names: str, **changes: Any) -> None:
    """Adds an option for each field of a dataclass, or for the named ones, in order.

    Args:
        parser: The command's parser.
        cls: Its docstring has the help texts. `Annotated` types may contain a `Number`, the bounds, and a placeholder
            for the value in the help. Without a default an option is required; a list whose default is None may be
            given several times.
        names: Names of fields.
        changes: Other arguments of `add_argument`, for all of them.
    """
    texts, hints = field_texts(cls), get_type_hints(cls, include_extras=True)
    defaults = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(cls)
    }
    for name in names or defaults:
        default = defaults[name]
        shown = " ".join(default) if isinstance(default, list) else default
        says_nothing = default is MISSING or shown is False or shown in (None, "")
        text = texts[name].rstrip(".") + ("" if says_nothing else f" (default: {shown})")
        how = {"required": True} if default is MISSING else {"default": default}
        how |= {"help": text, **_argument(hints[name], default), **changes}
        parser.add_argument(f"--{name.replace('_', '-')}", **how)


def _argument(hint: Any, default: Any) -> dict[str, Any]:
    """Arguments of `add_argument` for a value of this type."""
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    kind = next(one for one in get_args(kind) if one is not type(None)) if isinstance(kind, UnionType) else kind
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    how: dict[str, Any] = {}
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
        how = {"nargs": "+", "action": "extend" if default is None else "store"}
    how["type"] = next(
        (one for one in extras if isinstance(one, Number)), {int: whole(0), float: real(0)}.get(kind, kind)
    )
    how["metavar"] = next((one for one in extras if isinstance(one, str)), "N" if kind in (int, float) else None)
    return how


def given_options(cls: type[InstanceT], args: argparse.Namespace) -> InstanceT:
    """The dataclass instance from options of `add_options`. Raises `InputError` as the class does."""
    return cls(**{one.name: getattr(args, one.name) for one in fields(cls) if hasattr(args, one.name)})  # type: ignore[arg-type]

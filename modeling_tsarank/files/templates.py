"""Cards from Jinja templates. A missing fact is an error, never a gap in a card."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

from modeling_tsarank.ranking_errors import InputError


def render(package: str, template: str, **facts: Any) -> str:
    """The text of a template, filled with facts.

    Args:
        package: the package of the template.
        template: name of its file, such as `model_card.md`.
        facts: the values for the template. A used value that is absent, `None` or empty is an error.

    Raises:
        InputError: names the fact that is missing.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        finalize=_filled,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The result is Markdown, where `cell` and `line` escape what others wrote.
        autoescape=False,
    )
    environment.filters |= {"cell": cell, "line": line, "text": text, "number": number, "duration": duration}
    source = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    try:
        filled = environment.from_string(source).render(facts)
    except jinja2.UndefinedError as error:
        raise InputError(f"the card {template} has a missing fact: {error.message}") from error
    return re.sub(r"\n{3,}", "\n\n", filled)


def _filled(value: Any) -> Any:
    if value is None or value == "":
        raise InputError("a fact of the card is empty; this is an error in its template")
    return value


def line(text: Any) -> str:
    """A text on one line, with Markdown and HTML markup escaped."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def text(value: Any) -> str:
    """A text on one line for a table cell, without HTML tags."""
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def cell(value: Any) -> str:
    """A value as inline code for a table cell."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    ticks = "``" if "`" in text else "`"
    pad = " " if text.startswith(("`", " ")) or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def number(value: float) -> str:
    """A count with separators, or a decimal number to four digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A duration in its largest fitting units."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"

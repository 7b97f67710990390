"""The reference of all commands and their options: `python -m modeling_tsarank.cli.reference > docs/commands.md`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from . import build_parser


_HEAD = """\
# All commands and options

Written by `python -m modeling_tsarank.cli.reference`. `tsarank COMMAND --help` shows the common options of a command,
`--help-all` all of them. The options of `tsarank train` are those of its scripts: `tsarank train sft --help`.
"""


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands, each after its parent."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in dict.fromkeys(action.choices.values()):  # an alias is the same parser
                yield from parsers(below)


def reference() -> str:
    """The page, in Markdown."""
    sections = [_HEAD]
    for parser in list(parsers(build_parser()))[1:]:
        rows = [
            f"| `{_usage(action)}` | {_cell(action.help % {**vars(action), 'prog': parser.prog})} |"
            for action in parser._actions
            if action.help not in (None, argparse.SUPPRESS) and action.dest not in ("help", "debug")
        ]
        if rows and not any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
            text = "\n\n".join(filter(None, (parser.description, getattr(parser, "details", ""))))
            table = "\n".join(["| option | |", "|:---|:---|", *rows])
            sections.append(f"## {parser.prog}\n\n```text\n{text.strip()}\n```\n\n{table}\n")
    return "\n".join(sections)


def _usage(action: argparse.Action) -> str:
    """An option with its argument, such as `--top-k N`."""
    name = ", ".join(action.option_strings)
    if action.nargs == 0:
        return name
    default = action.dest.upper() if action.option_strings else action.dest
    metavar = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.metavar or default
    shown = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    return f"{name} {shown}{' …' if action.nargs in ('+', '*') else ''}".strip().replace("|", "\\|")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(reference())

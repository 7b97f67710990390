"""Shared by all commands: the parser, numeric options, one-line errors, exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from ..files.sizes import parse_size
from ..ranking_errors import ResourceError, TSARankError


DEBUG_VARIABLE = "TSARANK_DEBUG"
"""Environment variable that shows the traceback of an error, like --debug."""

# Characters of one word or quotation in an error, and of the whole line: enough for any path, not for a document.
_LONGEST_WORD, _LONGEST_LINE = 160, 600
_LONG_WORD = re.compile(rf"(?<!\w)'(?:[^'\\]|\\.){{{_LONGEST_WORD},}}'(?!\w)|\S{{{_LONGEST_WORD},}}")


# ---- errors ----------------------------------------------------------------------------------------


def one_line(message: str) -> str:
    """A message for a terminal: one line, control characters escaped, echoed values shortened."""
    line = _LONG_WORD.sub(lambda found: _shortened(found[0], _LONGEST_WORD), " ".join(message.split()))
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return _shortened(line, _LONGEST_LINE)


def _shortened(text: str, longest: int) -> str:
    """The beginning and the end: a path's name is at its end."""
    return text if len(text) <= longest else f"{text[: 3 * longest // 4 - 1]}…{text[-(longest // 4) :]}"


def quoted(value: str) -> str:
    """User input in an error message: quoted, at most 80 characters."""
    return repr(_shortened(value, 80))


def wants_trace() -> bool:
    """Whether errors show their traceback."""
    return os.environ.get(DEBUG_VARIABLE, "").lower() not in ("", "0", "false", "no")


def run_command(
    command: Callable[[], int], *, where: str = "", interrupted: str = "interrupted", hint: str = "--debug"
) -> int:
    """Runs a command and prints errors in one line.

    Args:
        command: Returns the exit status.
        where: Added to "error", such as " (process 1)".
        interrupted: The message after Ctrl-C.
        hint: How to show the traceback of an unexpected error.

    Returns:
        The command's own status; 2 for errors that the user can fix; 1 for unexpected errors; 130 after Ctrl-C; 141
        if the reader of the output has closed it, as for any program ended by a broken pipe.
    """
    try:
        with contextlib.suppress(OSError):
            _open_standard_streams()
        status = _status(command, where, interrupted, hint)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        _discard_output()
        _say(f"error{where}: standard output cannot be written ({error.strerror or error})")
        return 2


def _status(command: Callable[[], int], where: str, interrupted: str, hint: str) -> int:
    try:
        return command()
    except SystemExit as stop:  # argparse: --help, --version, or an error already printed
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
    except KeyboardInterrupt:
        _say(interrupted)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if wants_trace():
            traceback.print_exc()
        if isinstance(error, TSARankError):
            _say(f"error{where}: {error}")
            return 2
        if isinstance(error, OSError) and error.strerror:
            # The operating system's message names the problem and the file.
            names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
            _say(f"error{where}: {': '.join([*names, error.strerror])}")
            return 2
        if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
            # Python represents names that are not UTF-8 this way, but other libraries do not accept it.
            _say(f"error{where}: a name or a text is not UTF-8: {error.object[:200]!a}; rename or convert it")
            return 2
        if isinstance(error, MemoryError):
            _say(f"error{where}: out of memory; process less at a time, for example with a smaller --batch-tokens")
            return 2
        _say(f"error{where}: unexpected {type(error).__name__}: {error} (please report it; traceback: {hint})")
        return 1


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"tsarank: {one_line(message)}\n")


def _open_standard_streams() -> None:
    """Opens closed streams (`>&-`) on the null device; otherwise output would go into the next opened file."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                nowhere = os.open(os.devnull, os.O_RDWR)
                if nowhere != number:
                    os.dup2(nowhere, number)
                    os.close(nowhere)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    # Incomplete characters and lone surrogates must not raise.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Keeps the interpreter from flushing unwritable output at exit."""
    output: TextIO = sys.stdout
    if output is sys.__stdout__:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output.fileno())
            os.close(nowhere)


# ---- options ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Number:
    """The type of a numeric option; values out of range are errors on parsing, before any work.

    Args:
        kind: `int` or `float`.
        least: The smallest value allowed.
        most: The largest value allowed.
        above: Instead of `least`: an exclusive lower bound.
        below: Instead of `most`: an exclusive upper bound.
    """

    kind: type[int] | type[float]
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.allows(value):
            raise argparse.ArgumentTypeError(f"expected {self}, got {quoted(text)}")
        return value

    def allows(self, value: float) -> bool:
        """Whether a number is in range; NaN and infinities never are."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """For an error: "a whole number from 1 to 100"."""
        low, high = self.least if self.above is None else self.above, self.most if self.below is None else self.below
        bounds = "" if low is None else f" {'from' if self.above is None else 'above'} {low:,.12g}"
        if high is not None:
            bounds += f" {'to' if self.below is None else 'to below'} {high:,.12g}"
        return f"a {'whole ' if self.kind is int else ''}number{bounds}"


# Counts and tokens: 32-bit numbers, the limit of other libraries.
_MOST = 2**31 - 1


def whole(least: int = 1, most: int = _MOST) -> Number:
    """The type of an option with a count."""
    return Number(int, least, most)


def seed() -> Number:
    """The type of a seed: the range of all random generators."""
    return Number(int, 0, 2**32 - 1)


def real(
    least: float | None = None, most: float | None = None, above: float | None = None, below: float | None = None
) -> Number:
    """The type of an option with a real number; never NaN or infinite."""
    return Number(float, least, most, above, below)


def size(text: str) -> int:
    """The type of an option with a number of bytes, such as 20GB, 500 MiB or 1000000."""
    value = parse_size(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 20GB or 500MB, got {quoted(text)}")
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a size of at least one byte, got {quoted(text)}")
    return value


class _ShowTraces(argparse.Action):
    """Sets the environment variable, which also applies to the processes of a training."""

    def __call__(self, *_: Any) -> None:
        os.environ[DEBUG_VARIABLE] = "1"


class _ShowAll(argparse.Action):
    """Shows the help with all options."""

    def __call__(self, parser: Any, *_: Any) -> None:
        parser.common = ()
        parser.print_help()
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line; every command has --debug and --help-all.

    Attributes:
        common: The options in --help, with the first two paragraphs of the description; empty for all.
        details: Text only in --help-all, after the options.
    """

    common: Sequence[str] = ()
    details: str = ""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.add_help:
            flag: dict[str, Any] = {"nargs": 0, "default": argparse.SUPPRESS}
            self.add_argument("--debug", action=_ShowTraces, help="show the traceback of an error", **flag)
            self.add_argument("--help-all", action=_ShowAll, help=argparse.SUPPRESS, **flag)

    def format_help(self) -> str:
        """Like argparse's, with only the `common` options, or with all, the whole description and the details."""
        known = {"--help", *self.common}
        hidden = [
            action
            for action in self._actions
            if self.common and action.option_strings and not action.required and not known & {*action.option_strings}
        ]
        formatter = self.formatter_class(prog=f"{self.prog} [options]" if hidden else self.prog)
        wanted = [action for action in self._actions if not hidden or action.required]
        formatter.add_usage(self.usage, wanted, self._mutually_exclusive_groups)
        paragraphs = (self.description or "").split("\n\n")
        formatter.add_text("\n\n".join(paragraphs[:2] if hidden else paragraphs))
        for group in self._action_groups:
            shown = [action for action in group._group_actions if action not in hidden]
            if shown:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(shown)
                formatter.end_section()
        formatter.add_text(f"`{self.prog} --help-all` shows all options." if hidden else self.details)
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """One line on standard error, status 2."""
        line = one_line(f"{self.prog}: error: {message.removeprefix('argument ')}")
        self.exit(2, f"{line}; see `{self.prog} --help`\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Like argparse's, which would exit with 0 if `--help` cannot be written; coreutils fail then, too."""
        if file is not sys.stdout:
            super()._print_message(message, file)
            return
        try:
            file.write(message)
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _discard_output()
            raise ResourceError(f"standard output cannot be written ({error.strerror or error})") from error

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Each command handles its unknown arguments: the error then names the command and a similar option."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.refuse_unknown(unknown)
        return namespace, unknown

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        """Exits with an error for unknown arguments."""
        first = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(first, self._option_string_actions, n=1) if first.startswith("-") else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.error(f"unknown {'option' if first.startswith('-') else 'argument'} {quoted(first)}{hint}")


def add_command(
    subparsers: Any,
    name: str,
    help_text: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    common: str = "",
    details: str = "",
    aliases: Sequence[str] = (),
    description: str | None = None,
) -> argparse.ArgumentParser:
    """Adds a subcommand that calls `run`; line breaks in its help are kept.

    Args:
        subparsers: Of the program, or of a command with subcommands.
        name: Of the subcommand.
        help_text: Its line in the list of commands.
        examples: Usage examples, one per line.
        run: Receives the parsed options and returns the exit status.
        common: The options in --help, without dashes, with the first two paragraphs of the description; empty for
            all.
        details: Additional text in --help-all.
        aliases: Further names.
        description: The description, if not the docstring of `run`.
    """
    parser: Any = subparsers.add_parser(
        name,
        help=help_text,
        aliases=aliases,
        description=inspect.cleandoc(description or run.__doc__ or ""),
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.common, parser.details = [f"--{option}" for option in common.split()], details
    parser.set_defaults(run=run)
    return parser


def given(function: Callable[..., Any], args: argparse.Namespace) -> dict[str, Any]:
    """The options of a command that are parameters of a function or class, by the same names."""
    return {name: getattr(args, name) for name in inspect.signature(function).parameters if hasattr(args, name)}

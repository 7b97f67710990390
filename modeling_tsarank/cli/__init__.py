"""The `tsarank` command: finds every package's subcommands and runs one."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from .. import __version__
from ..ranking_errors import InputError
from .command_line import CommandParser, one_line, run_command


# Modules with a `register(subparsers)`; none of them imports anything heavy before its command runs.
COMMAND_MODULES = (
    "modeling_tsarank.cli.rank",
    "modeling_tsarank.cli.index",
    "modeling_tsarank.cli.score",
    "modeling_tsarank.cli.describe",
    "modeling_tsarank.cli.serve",
    "modeling_tsarank.cli.doctor",
    "modeling_tsarank.cli.export",
    "modeling_tsarank.eval.commands",
    "modeling_tsarank.eval.calibrate_command",
    "modeling_tsarank.eval.frontier",
    "modeling_tsarank.trainers.data.commands",
    "modeling_tsarank.trainers.recipe_commands",
    "modeling_tsarank.trainers.commands",
    "modeling_tsarank.hub_cards.commands",
)

_DESCRIPTION = "LLM text rerankers: rank documents, measure rerankers, train and publish them."
_EPILOG = """\
`tsarank COMMAND --help` explains a command, --help-all with all of its options. Errors are one line on standard error:
exit status 2 for what you can mend, 1 for what nobody foresaw (--debug, or TSARANK_DEBUG=1, shows its trace), 130
after Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand."""
    parser = CommandParser(
        prog="tsarank",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tsarank {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more about what is done")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMAND_MODULES:
        importlib.import_module(name).register(subparsers)
    return parser


class _StandardError(logging.StreamHandler):
    """Writes to what `sys.stderr` is at that moment: a program that calls `main` may have exchanged it since."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """A warning may quote what the user gave, just as an error does."""

    def format(self, record: logging.LogRecord) -> str:
        return f"tsarank: {one_line(record.getMessage())}"


def _set_up_logging(verbose: bool) -> None:
    handler = _StandardError()
    handler.setFormatter(_OneLine())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # NOTSET follows the root logger, whose level a program that calls `main` may change afterwards.
    logging.getLogger("modeling_tsarank").setLevel(logging.INFO if verbose else logging.NOTSET)
    # What other libraries warn about is for their developers, unless asked for.
    if not verbose:
        warnings.simplefilter("ignore")


def _run(arguments: Sequence[str]) -> int:
    if not sys.stderr.isatty():
        # Read when these libraries are imported; their bars would fill a log with lines.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    if any("\0" in argument for argument in arguments):
        raise InputError("an argument contains a NUL character, which no text, file name or address may")
    args = build_parser().parse_args(arguments)
    _set_up_logging(args.verbose)
    status: int = args.run(args)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status, see `run_command`."""
    return run_command(lambda: _run(sys.argv[1:] if arguments is None else arguments))

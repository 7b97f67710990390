"""The `tsarank` command: collects the subcommands of all packages and runs one."""

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


# Modules with a `register(subparsers)`; heavy imports only happen when the command runs.
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

_DESCRIPTION = "LLM text rerankers: rank documents, evaluate, train and publish rerankers."
_EPILOG = """\
`tsarank COMMAND --help` explains a command, --help-all lists all its options. Errors are one line on standard error:
exit status 2 for errors that you can fix, 1 for unexpected ones (--debug, or TSARANK_DEBUG=1, shows the traceback),
130 after Ctrl-C.
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
    parser.add_argument("-v", "--verbose", action="store_true", help="more log messages")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMAND_MODULES:
        importlib.import_module(name).register(subparsers)
    return parser


class _StandardError(logging.StreamHandler):
    """Writes to the current `sys.stderr`: a program that calls `main` may have replaced it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """Formats warnings as one line, since they may quote user input, like errors."""

    def format(self, record: logging.LogRecord) -> str:
        return f"tsarank: {one_line(record.getMessage())}"


def _set_up_logging(verbose: bool) -> None:
    handler = _StandardError()
    handler.setFormatter(_OneLine())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # NOTSET follows the root logger's level, which a program that calls `main` may change later.
    logging.getLogger("modeling_tsarank").setLevel(logging.INFO if verbose else logging.NOTSET)
    # Other libraries' warnings are for developers and shown only with -v.
    if not verbose:
        warnings.simplefilter("ignore")


def _run(arguments: Sequence[str]) -> int:
    if not sys.stderr.isatty():
        # Read when these libraries are imported; their progress bars would fill logs.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    if any("\0" in argument for argument in arguments):
        raise InputError("an argument contains a NUL character, which is invalid in texts, file names and URLs")
    args = build_parser().parse_args(arguments)
    _set_up_logging(args.verbose)
    status: int = args.run(args)
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status, see `run_command`."""
    return run_command(lambda: _run(sys.argv[1:] if arguments is None else arguments))

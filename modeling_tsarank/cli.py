"""The `tsarank` command. Every room brings its own subcommands; this module only finds them and reports errors."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from . import __version__
from .ranking_errors import TSARankError


# Modules with a `register(subparsers)`; none of them imports anything heavy before its command runs.
COMMAND_MODULES = (
    "modeling_tsarank.rank_command",
    "modeling_tsarank.index_command",
    "modeling_tsarank.score_command",
    "modeling_tsarank.eval.commands",
    "modeling_tsarank.trainers.data.commands",
    "modeling_tsarank.trainers.recipe_commands",
    "modeling_tsarank.trainers.commands",
    "modeling_tsarank.hub_cards.commands",
)

_DESCRIPTION = "LLM text rerankers: rank documents, measure rerankers, train and publish them."
_EPILOG = "`tsarank COMMAND --help` explains a command. Errors are one line on standard error, with exit status 2."


def build_parser() -> argparse.ArgumentParser:
    """The parser of every subcommand."""
    parser = argparse.ArgumentParser(prog="tsarank", description=_DESCRIPTION, epilog=_EPILOG)
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


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(handlers=[_StandardError()], format="tsarank: %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("modeling_tsarank").setLevel(logging.INFO if verbose else logging.WARNING)
    # What other libraries warn about is for their developers, unless asked for.
    if not verbose:
        warnings.simplefilter("ignore")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 2 for what the user can mend, 130 when interrupted."""
    args = build_parser().parse_args(arguments)
    _set_up_logging(args.verbose)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except TSARankError as error:
        sys.stderr.write(f"tsarank: error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("tsarank: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); leave quietly and keep the interpreter from flushing into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())

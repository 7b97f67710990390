"""`tsarank data`: training sets out of raw text."""

from __future__ import annotations

import argparse

from modeling_tsarank.trainers.data.mine_commands import register_mining
from modeling_tsarank.trainers.data.weak_commands import register_card, register_weak_pairs


_DESCRIPTION = """\
Make training data: weakly supervised pairs for continual pre-training, hard negatives for fine-tuning, queries and
lists in a teacher's order for distillation. Every set keeps where its rows come from, in provenance.json.
"""


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds `data` with its subcommands."""
    parser = subparsers.add_parser(
        "data",
        help="make training data",
        description=_DESCRIPTION,
        epilog="`tsarank data COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    register_weak_pairs(commands)
    register_mining(commands)
    register_card(commands)

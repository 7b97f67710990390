"""`tsarank recipe`: prepares the training data of a release, and builds the release from the trained adapters."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modeling_tsarank.cli.command_line import add_command
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.trainers.options import add_options


_EXAMPLES = """\
  tsarank recipe prepare smollm2_135m/data --data $TSARANK_DATA --output release
  tsarank recipe prepare smollm2_135m/data --data $TSARANK_DATA --output rehearsal --limit 300
"""
_RELEASE_EXAMPLE = """\
  tsarank recipe release --adapters release/cpt-model/adapter release/ranker/adapter --ranker release/ranker \\
      --output hub_cards/releases/tsarank-smollm2-135m \\
      --example "how long does a flea live" examples/fleas.jsonl
"""


@dataclass
class PrepareOptions:
    """Options of the preparation.

    Attributes:
        output: Output folder.
        limit: For a rehearsal: only N raw rows of every file; 0 for all.
    """

    output: Annotated[Path, "DIR"]
    limit: int = 0


@dataclass
class ReleaseOptions:
    """Options of a release.

    Attributes:
        adapters: In the order of the stages; checkpoints of one stage joined by + are averaged.
        on: The release that the first adapter was trained on.
        ranker: Output of the last stage.
        output: Folder with the name of the release.
    """

    adapters: Annotated[list[Path], "DIR"]
    ranker: Annotated[Path, "DIR"]
    output: Annotated[Path, "DIR"]
    on: Annotated[str | None, "NAME"] = None


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds `recipe` to the command line."""
    parser = subparsers.add_parser(
        "recipe",
        help="prepare the data of a release, and merge its adapters",
        description="Prepare the training data of a release, and build the release from the trained adapters.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="recipe_command", metavar="COMMAND", required=True)
    one = add_command(commands, "prepare", "all training files from the raw folders", _EXAMPLES, run_prepare)
    one.add_argument("plan", metavar="PLAN", help="a YAML file, or the name of a shipped one: smollm2_135m/data")
    one.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("TSARANK_DATA"),
        metavar="DIR",
        help="folder with weak_pairs, supervised and beir (default: $TSARANK_DATA)",
    )
    add_options(one, PrepareOptions)
    other = add_command(commands, "release", "merge the adapters of all stages", _RELEASE_EXAMPLE, run_release)
    add_options(other, ReleaseOptions)
    other.add_argument(
        "--example", nargs=2, metavar=("QUERY", "FILE"), help="also record the scores of FILE's documents for QUERY"
    )


def run_prepare(args: argparse.Namespace) -> int:
    """Make all training files of a release from the raw folders.

    Clean weak pairs for CPT, labelled queries with BM25 hard negatives for SFT in one file per mix, a development set
    in BEIR's layout, and corpus and queries for distillation; for a plan with `collections`, these collections and
    lists. Every text is checked against the test collections in the plan, and training texts against the development
    queries and their positives. counts.json, which is also printed, records what was read, found and written, with
    fingerprints. The same plan over the same files gives the same bytes.
    """
    from modeling_tsarank.trainers.recipe_files import find_recipe
    from modeling_tsarank.trainers.recipes.development import prepare_development
    from modeling_tsarank.trainers.recipes.judged import read_plan
    from modeling_tsarank.trainers.recipes.release_data import prepare

    if args.data is None or not Path(args.data).is_dir():
        raise InputError(f"--data must be the folder with weak_pairs, supervised and beir, got {args.data}")
    plan, data = find_recipe(args.plan), Path(args.data).resolve()
    make = prepare_development if "collections" in read_plan(plan, Path()) else prepare
    report = make(plan, data, args.output, args.limit)
    shown = {name: value for name, value in report.items() if name not in ("inputs", "versions")}
    sys.stdout.write(json.dumps(shown, indent=1, ensure_ascii=False) + "\n")
    return 0


def run_release(args: argparse.Namespace) -> int:
    """Merge the LoRA adapters of all stages into one, in bfloat16, with ranking options and training record.

    The folder, under hub_cards/releases/, becomes a model of the package. Each adapter must have been trained on the
    merge of those before it, the first one on the embedded language model, or on a release next to the new one (--on).
    """
    from modeling_tsarank.trainers.release import make_release, record_example

    size = make_release(args.adapters, args.ranker, args.output, args.on)
    sys.stdout.write(f"{args.output}: an adapter of {size / 1e6:.1f} MB\n")
    if args.example:
        for name, score in record_example(args.output, *args.example).items():
            sys.stdout.write(f"{score:10.4f}  {name}\n")
    return 0

"""`tsarank recipe`: what a release's trainings read, and the release that is made of their results."""

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
    """What is prepared.

    Attributes:
        output: Folder to fill.
        limit: For a rehearsal: N raw rows of every file; 0 takes all.
    """

    output: Annotated[Path, "DIR"]
    limit: int = 0


@dataclass
class ReleaseOptions:
    """What a release is made of.

    Attributes:
        adapters: In the stages' order; checkpoints of one stage joined by + give their mean.
        on: The release that the first of them was trained on.
        ranker: What the last stage wrote.
        output: Folder named like the release.
    """

    adapters: Annotated[list[Path], "DIR"]
    ranker: Annotated[Path, "DIR"]
    output: Annotated[Path, "DIR"]
    on: Annotated[str | None, "NAME"] = None


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds `recipe` to the command line."""
    parser = subparsers.add_parser(
        "recipe",
        help="prepare the data of a release, and put its adapters together",
        description="Prepare what the recipe of a release trains on, and make the release of what was trained.",
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
    other = add_command(commands, "release", "one adapter of those of all stages", _RELEASE_EXAMPLE, run_release)
    add_options(other, ReleaseOptions)
    other.add_argument(
        "--example", nargs=2, metavar=("QUERY", "FILE"), help="also record the scores of FILE's documents for QUERY"
    )


def run_prepare(args: argparse.Namespace) -> int:
    """Make all training files of a release from the raw folders.

    Clean weak pairs for CPT, labelled queries with BM25 hard negatives for SFT in one file for each mix, a development
    set in BEIR's layout, and corpus and queries for distillation; of a plan with `collections`, these and lists. Every
    text is held against the test collections that the plan names, and training against the development queries and
    their positives. counts.json, which is printed, says what was read, found and written, with fingerprints. The same
    plan over the same files gives the same bytes.
    """
    from modeling_tsarank.trainers.recipe_files import find_recipe
    from modeling_tsarank.trainers.recipes.development import prepare_development
    from modeling_tsarank.trainers.recipes.judged import read_plan
    from modeling_tsarank.trainers.recipes.release_data import prepare

    if args.data is None or not Path(args.data).is_dir():
        raise InputError(f"--data must name the folder with weak_pairs, supervised and beir, got {args.data}")
    plan, data = find_recipe(args.plan), Path(args.data).resolve()
    make = prepare_development if "collections" in read_plan(plan, Path()) else prepare
    report = make(plan, data, args.output, args.limit)
    shown = {name: value for name, value in report.items() if name not in ("inputs", "versions")}
    sys.stdout.write(json.dumps(shown, indent=1, ensure_ascii=False) + "\n")
    return 0


def run_release(args: argparse.Namespace) -> int:
    """Put the LoRA adapters of all stages together as one, in bfloat16, with ranking options and training record.

    The folder, under hub_cards/releases/, makes a model of the package. Each adapter must have been trained on the
    merge of those before it, the first one on the embedded language model, or on a release that stands beside the new
    one (--on).
    """
    from modeling_tsarank.trainers.release import make_release, record_example

    size = make_release(args.adapters, args.ranker, args.output, args.on)
    sys.stdout.write(f"{args.output}: an adapter of {size / 1e6:.1f} MB\n")
    if args.example:
        for name, score in record_example(args.output, *args.example).items():
            sys.stdout.write(f"{score:10.4f}  {name}\n")
    return 0

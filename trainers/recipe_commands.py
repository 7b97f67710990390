"""`tsarank recipe`: what a release's trainings read, and the release that is made of their results.

Also `python -m modeling_tsarank.trainers.recipe_commands`, with the same arguments.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import CommandParser, add_command, run_command, whole
from modeling_tsarank.ranking_errors import InputError


_PREPARE = """\
Make all training files of a release from the raw folders: clean weak pairs for CPT, labelled queries with BM25 hard
negatives for SFT in one file for each mix, a development set in BEIR's layout, and corpus and queries for
distillation. Every text is held against the test collections that the plan names, and training against the
development queries and their positives. counts.json says what was read, found and written, with fingerprints.

The same plan over the same files gives the same bytes; an interrupted preparation goes on where it was.
"""
_EXAMPLES = """\
  tsarank recipe prepare smollm2_135m/data --data $TSARANK_DATA --output release
  tsarank recipe prepare smollm2_135m/data --data $TSARANK_DATA --output rehearsal --limit 300
"""
_RELEASE = """\
Put the LoRA adapters of all stages together as one, in bfloat16, and write it with its ranking options and the record
of its training: a folder that, under hub_cards/releases/, makes a model of the package. Each adapter must have been
trained on the merge of those before it, the first one on the embedded language model, or on a release that lies
beside the new one (--on).
"""
_RELEASE_EXAMPLE = """\
  tsarank recipe release --adapters release/cpt-model/adapter release/ranker/adapter --ranker release/ranker \\
      --output hub_cards/releases/tsarank-smollm2-135m \\
      --example "how long does a flea live" examples/fleas.jsonl
"""


_CROSS_ENCODER = """\
Fine-tune an encoder as a cross-encoder with the trainer of sentence-transformers, on lists that `tsarank recipe
prepare` made: KL to a teacher's scores, to grades or to labels, and Margin-MSE where a cross-encoder gave the scores.
Started again, it goes on from the newest checkpoint; the model goes to OUTPUT/model, the losses to OUTPUT/log.json.
"""
_CROSS_ENCODER_EXAMPLE = """\
  tsarank recipe cross-encoder smollm2_135m/cross_encoder_minilm --lists development/lists --output minilm
"""


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds `recipe` to the command line."""
    parser = subparsers.add_parser(
        "recipe",
        help="prepare the data of a release, and put its adapters together",
        description="Prepare what the recipe of a release trains on, and make the release of what was trained.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="recipe_command", metavar="COMMAND", required=True)
    one = add_command(commands, "prepare", "all training files from the raw folders", _PREPARE, _EXAMPLES, run_prepare)
    one.add_argument("plan", metavar="PLAN", help="a YAML file, or the name of a shipped one: smollm2_135m/data")
    one.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("TSARANK_DATA"),
        metavar="DIR",
        help="folder with weak_pairs, supervised and beir (default: $TSARANK_DATA)",
    )
    one.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to fill")
    one.add_argument(
        "--limit", type=whole(least=0), default=0, metavar="N", help="for a rehearsal: N raw rows of every file"
    )
    third = add_command(
        commands,
        "cross-encoder",
        "a cross-encoder teacher, trained on lists",
        _CROSS_ENCODER,
        _CROSS_ENCODER_EXAMPLE,
        run_cross_encoder,
    )
    third.add_argument("plan", metavar="PLAN", help="a YAML file, or the name of a shipped one")
    third.add_argument("--lists", type=Path, required=True, metavar="DIR", help="what $LISTS in the plan stands for")
    third.add_argument("--base", metavar="MODEL", help="the encoder, in place of the plan's")
    third.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to fill")
    fourth = add_command(
        commands,
        "covered-queries",
        "the queries of a pool that its corpus most likely answers",
        "Write the queries whose best passage by a bi-encoder is nearest, for `tsarank data lists`.",
        "",
        run_covered_queries,
    )
    fourth.add_argument("pool", type=Path, metavar="POOL", help="folder pools/NAME of a preparation")
    fourth.add_argument("--encoder", required=True, metavar="MODEL", help="a bi-encoder of sentence-transformers")
    fourth.add_argument("--count", type=whole(least=1), required=True, metavar="N", help="queries to take")
    fourth.add_argument("--index-cache", type=Path, metavar="DIR", help="where indexes are kept")
    fourth.add_argument("--output", type=Path, required=True, metavar="FILE", help="file of queries to write")
    other = add_command(
        commands, "release", "one adapter of those of all stages", _RELEASE, _RELEASE_EXAMPLE, run_release
    )
    other.add_argument(
        "--adapters",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="in the stages' order; checkpoints of one stage joined by + give their mean",
    )
    other.add_argument("--on", metavar="NAME", help="the release that the first of them was trained on")
    other.add_argument("--ranker", type=Path, required=True, metavar="DIR", help="what the last stage wrote")
    other.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder named like the release")
    other.add_argument(
        "--example", nargs=2, metavar=("QUERY", "FILE"), help="also record the scores of FILE's documents for QUERY"
    )


def run_prepare(args: argparse.Namespace) -> int:
    """Prepares and prints the counts."""
    from modeling_tsarank.trainers.recipe_files import find_recipe
    from modeling_tsarank.trainers.recipes.development import is_development_plan, prepare_development
    from modeling_tsarank.trainers.recipes.release_data import prepare

    if args.data is None or not Path(args.data).is_dir():
        raise InputError(f"--data must name the folder with weak_pairs, supervised and beir, got {args.data}")
    plan, data = find_recipe(args.plan), Path(args.data).resolve()
    if is_development_plan(plan):
        report = prepare_development(plan, data, args.output, args.limit)
        sys.stdout.write(
            json.dumps({name: report[name] for name in ("collections", "lists", "pools", "leakage")}, indent=1)
        )
        return 0
    sys.stdout.write(summary(prepare(plan, data, args.output, args.limit)))
    return 0


def run_cross_encoder(args: argparse.Namespace) -> int:
    """Trains the teacher."""
    from modeling_tsarank.trainers.recipe_files import find_recipe
    from modeling_tsarank.trainers.recipes.cross_encoder import read_plan, train_cross_encoder

    plan = read_plan(find_recipe(args.plan), args.lists, args.base)
    report = train_cross_encoder(plan, args.output)
    lists = ", ".join(f"{name} {number:,}" for name, number in report["lists"].items())
    sys.stdout.write(f"{args.output / 'model'}: trained on lists of {lists}\n")
    return 0


def run_covered_queries(args: argparse.Namespace) -> int:
    """Writes the queries and says how many."""
    from modeling_tsarank.trainers.recipes.development_pools import covered_queries

    facts = covered_queries(args.pool, args.encoder, args.count, args.output, args.index_cache)
    sys.stdout.write(f"{args.output}: {', '.join(f'{name} {value:.4g}' for name, value in facts.items())}\n")
    return 0


def run_release(args: argparse.Namespace) -> int:
    """Writes the release and says how big it is."""
    from modeling_tsarank.trainers.release import make_release, record_example

    size = make_release(args.adapters, args.ranker, args.output, args.on)
    sys.stdout.write(f"{args.output}: an adapter of {size / 1e6:.1f} MB\n")
    if args.example:
        for name, score in record_example(args.output, *args.example).items():
            sys.stdout.write(f"{score:10.4f}  {name}\n")
    return 0


def summary(report: dict[str, Any]) -> str:
    """The counts as lines of text."""
    lines = [f"weak pairs: {report['weak']['read']:,} read, {sum(report['weak']['kept_by_type'].values()):,} clean"]
    for name, one in report["sources"].items():
        lines.append(
            f"{name}: {one['usable']:,} usable queries, {one['dev']} for development, {one['train']:,} for training"
        )
        lines += [f"    left out, {reason}: {number:,}" for reason, number in one["left_out"].items()]
    for gate, facts in report["leakage"].items():
        found = ", ".join(f"{how} {number:,}" for how, number in facts["found"].items())
        lines.append(f"kept out by {gate}: {found or 'none'}")
    for name, one in report["files"].items():
        lines.append(f"{name}: {one['rows']:,} rows")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command without the rest of `tsarank`; see `run_command`."""

    def run() -> int:
        parser = CommandParser(prog="tsarank")
        register(parser.add_subparsers(dest="command", metavar="COMMAND", required=True))
        args = parser.parse_args(["recipe", *(sys.argv[1:] if arguments is None else arguments)])
        status: int = args.run(args)
        return status

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())

"""Make a training set of weakly supervised pairs (TSARankLLM, section 2.2) out of raw text: a folder with parquet
shards (query, document, type, source, licence), provenance.json and a dataset card. datasets.load_dataset(FOLDER)
loads it, and `tsarank train cpt --train_data FOLDER` trains on it.

A recipe is a YAML file. Sources are .jsonl, .csv, .tsv (packed or not) or .parquet files, folders of them, or datasets
of the Hub, with the names of their fields:

  title: My pairs
  sources:
    - {type: question_answer, path: sentence-transformers/yahoo-answers, config: question-answer-pair}
    - {type: summary_content, path: news.jsonl.gz, fields: {query: summary, document: [title, text]}}
  licences: {"wiki*": cc-by-sa-4.0}
  filters:
    - clean
    - length: {query_words: [3, 64], document_words: [10, 400]}
    - near_duplicates: {threshold: 0.8, types: [title_body]}
    - leakage: {collections: [beir/scifact, "ir_datasets:beir/nfcorpus/test"]}
  sampling: {rows: 100000, temperature: 3, caps: {post_comment: 20000}, validation: 1000, seed: 0}
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import add_command
from modeling_tsarank.trainers.data.command_options import add_shared, print_counts
from modeling_tsarank.trainers.data.list_commands import register_lists
from modeling_tsarank.trainers.data.mine_commands import register_mine
from modeling_tsarank.trainers.data.query_commands import register_queries
from modeling_tsarank.trainers.data.score_commands import register_scores


_DESCRIPTION = """\
Make training data: weakly supervised pairs for continual pre-training, hard negatives for fine-tuning, queries and
lists in a teacher's order for distillation. Every set keeps where its rows come from, in provenance.json.
"""
_EXAMPLES = """\
  tsarank data weak-pairs --config recipe.yaml --output my-pairs --dropped-examples lost.jsonl
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
    register_commands(parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True))


def register_commands(commands: argparse._SubParsersAction) -> None:
    """Adds all of them."""
    weak = add_command(
        commands, "weak-pairs", "weakly supervised pairs out of raw text", str(__doc__), _EXAMPLES, run_weak_pairs
    )
    weak.formatter_class = _WithFilters
    weak.add_argument("--config", type=Path, required=True, metavar="FILE", help="recipe")
    add_shared(weak, "output", metavar="FOLDER", help="folder to make")
    weak.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    weak.add_argument("--dropped-examples", type=Path, metavar="FILE", help="JSON lines: some dropped pairs, and why")
    register_queries(commands)
    register_lists(commands)
    register_scores(commands)
    register_mine(commands)


class _WithFilters(argparse.RawDescriptionHelpFormatter):
    """Looks up the filters only when the help is asked for: their modules take a moment to import."""

    def format_help(self) -> str:
        from modeling_tsarank.trainers.data.filters import option_defaults, step_classes
        from modeling_tsarank.trainers.data.weak_recipe import DEFAULT_FILTERS
        from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES

        lines = [f"types:    {', '.join(PAIR_TYPES)}", "", "filters, in the order you declare them; each also takes"]
        lines.append("`types` and `sources` (patterns), the pairs it is meant for:")
        for name, cls in step_classes().items():
            options = ", ".join(f"{option} {_plain(value)}" for option, value in option_defaults(cls))
            lines += [f"  {name:<16} {(cls.__doc__ or '').partition(chr(10))[0]}", f"  {'':<16}   {options}"]
        defaults = ", ".join(one if isinstance(one, str) else next(iter(one)) for one in DEFAULT_FILTERS)
        return "\n".join([super().format_help(), *lines, f"without `filters` in a recipe: {defaults}", ""])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def run_weak_pairs(args: argparse.Namespace) -> int:
    """Makes the set and prints what every filter did."""
    from modeling_tsarank.trainers.data.weak_pairs import build_weak_pairs
    from modeling_tsarank.trainers.data.weak_recipe import build_recipe, read_recipe

    recipe = build_recipe(read_recipe(args.config))
    facts = build_weak_pairs(recipe, args.output, overwrite=args.overwrite, dropped_examples=args.dropped_examples)
    rows: list[tuple[str, Any]] = [("read", sum(one["pairs"] for one in facts["inputs"]))]
    for step in facts["filters"]:
        rows.append((f"after {step['filter']}", step["out"]))
        rows += [(f"  {reason}", number) for reason, number in step["dropped"].items()]
        rows += [("  mended", step["mended"])] if step["mended"] else []
    rows.append(("taken", sum(facts["types"].values())))
    rows += [(f"  {name} of {facts['kept_by_type'][name]:,}", number) for name, number in facts["types"].items()]
    print_counts("Weak pairs", rows)
    return 0

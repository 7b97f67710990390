"""`tsarank data weak-pairs` and `tsarank data card`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from modeling_tsarank.cli.command_line import quoted, real, seed, whole


_DESCRIPTION = """\
Make a training set of weakly supervised pairs (TSARankLLM, section 2.2) out of raw text: a folder with parquet shards
(query, document, type, source, licence), provenance.json and a dataset card. datasets.load_dataset(FOLDER) loads it,
and `tsarank train cpt --train_data FOLDER` trains on it.

A recipe is a YAML file:

  title: My pairs
  sources:
    - {type: title_abstract, reader: arxiv, path: arxiv-metadata-oai-snapshot.json, name: arxiv}
    - {type: question_answer, reader: stackexchange, path: Posts.xml, options: {min_score: 2}}
    - {type: summary_content, path: news.jsonl.gz, fields: {query: summary, document: [title, text]}}
  licences: {"wiki*": cc-by-sa-4.0}
  filters:
    - clean
    - length: {query_words: [3, 64], document_words: [10, 400]}
    - near_duplicates: {threshold: 0.8, types: [title_body]}
    - leakage: {collections: [beir/scifact, "ir_datasets:beir/nfcorpus/test"]}
  sampling: {rows: 100000, temperature: 3, caps: {post_comment: 20000}, validation: 1000, seed: 0}
"""

_EPILOG = """\
types:    {types}

readers:
{readers}

filters, in the order you declare them; each also takes `types` and `sources` (patterns), the pairs it is meant for:
{filters}
without --filter and without `filters` in a recipe: {defaults}

examples:
  tsarank data weak-pairs --config recipe.yaml --output my-pairs
  tsarank data weak-pairs --source title_abstract=papers.jsonl.gz --source question_answer=qa.csv \\
      --filter clean --filter 'length: {{document_words: [10, 400]}}' --filter near_duplicates \\
      --rows 50000 --temperature 3 --output my-pairs
  tsarank data weak-pairs --config recipe.yaml --leakage beir/scifact --dropped-examples lost.jsonl --output my-pairs
"""


def register_weak_pairs(subparsers: argparse._SubParsersAction) -> None:
    """Adds `weak-pairs` to the subcommands of `data`."""
    parser = subparsers.add_parser(
        "weak-pairs",
        help="a training set of weakly supervised pairs out of raw text",
        description=_DESCRIPTION,
        formatter_class=_WithReaders,
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="recipe")
    parser.add_argument(
        "--source", action="append", default=[], metavar="TYPE=PATH", help="a table, beside those of the recipe"
    )
    parser.add_argument(
        "--filter", action="append", default=[], metavar="F", help="a filter, in place of those of the recipe"
    )
    parser.add_argument(
        "--leakage", nargs="+", default=[], metavar="D", help="test collections, checked after all other filters"
    )
    parser.add_argument("--rows", type=whole(least=0), metavar="N", help="rows of the set (default: all)")
    parser.add_argument(
        "--temperature", type=real(least=0.1), metavar="T", help="balance of types: 1 as they come, large: equal"
    )
    parser.add_argument(
        "--cap", type=_cap, action="append", default=[], metavar="TYPE=N", help="most rows of a type, or `all`"
    )
    parser.add_argument("--validation", type=whole(least=0), metavar="N", help="rows of a validation split")
    parser.add_argument("--seed", type=seed(), metavar="N", help="seed of the draw and the order (default: 0)")
    parser.add_argument("--title", metavar="TEXT", help="title of the dataset")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    parser.add_argument(
        "--dropped-examples", type=Path, metavar="FILE", help="JSON lines: some dropped pairs, and why"
    )
    parser.add_argument(
        "--examples", type=whole(least=0), default=20, metavar="N", help="of each filter and reason (default: 20)"
    )
    parser.set_defaults(run=run_weak_pairs)


class _WithReaders(argparse.RawDescriptionHelpFormatter):
    """Looks up readers and filters only when the help is asked for: their modules take a moment to import."""

    def format_help(self) -> str:
        return f"{super().format_help()}\n{_epilog()}"


def _epilog() -> str:
    from modeling_tsarank.trainers.data.filters import step_classes
    from modeling_tsarank.trainers.data.readers import reader_functions
    from modeling_tsarank.trainers.data.weak_recipe import DEFAULT_FILTERS
    from modeling_tsarank.trainers.data.weak_types import PAIR_TYPES

    readers = "\n".join(f"  {name:<14} {reader.summary}" for name, reader in reader_functions().items())
    filters = "\n".join(f"  {name:<16} {_first_line(cls)}\n{_options(cls)}" for name, cls in step_classes().items())
    defaults = ", ".join(one if isinstance(one, str) else next(iter(one)) for one in DEFAULT_FILTERS)
    return _EPILOG.format(types=", ".join(PAIR_TYPES), readers=readers, filters=filters, defaults=defaults)


def _first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").partition("\n")[0]


def _options(cls: type[Any]) -> str:
    from modeling_tsarank.trainers.data.filters import option_defaults

    shown = [f"{name} {list(value) if isinstance(value, tuple) else value}" for name, value in option_defaults(cls)]
    return f"  {'':<16}   {', '.join(shown) or 'no options'}"


def register_card(subparsers: argparse._SubParsersAction) -> None:
    """Adds `card` to the subcommands of `data`."""
    parser = subparsers.add_parser(
        "card",
        help="the dataset card of a set that tsarank made",
        description="Write README.md, the dataset card, from the provenance and the counts that were recorded.",
        epilog="example:\n  tsarank data card my-pairs --title 'Pairs about harbours'\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with provenance.json")
    parser.add_argument("--title", metavar="TEXT", help="title in place of the recorded one")
    parser.set_defaults(run=run_card)


def run_weak_pairs(args: argparse.Namespace) -> int:
    """Makes the set and prints what every filter did."""
    from modeling_tsarank.trainers.data.weak_pairs import build_weak_pairs

    facts = build_weak_pairs(
        recipe_of(args),
        args.output,
        overwrite=args.overwrite,
        dropped_examples=args.dropped_examples,
        examples=args.examples,
    )
    sys.stdout.write(summary(facts))
    return 0


def recipe_of(args: argparse.Namespace) -> Any:
    """The recipe of a file, changed and completed by the options.

    Raises:
        InputError: neither recipe nor source, or an option that is wrong.
    """
    from modeling_tsarank.ranking_errors import InputError
    from modeling_tsarank.trainers.data.weak_recipe import (
        DEFAULT_FILTERS,
        build_recipe,
        filter_from_option,
        read_recipe,
        source_from_option,
    )

    content = read_recipe(args.config) if args.config else {}
    if not isinstance(content.get("sources") or [], list):
        raise InputError(f"{args.config}: sources must be a list")
    content["sources"] = [*(content.get("sources") or []), *map(source_from_option, args.source)]
    if not content["sources"]:
        raise InputError("nothing to read: give --config FILE or --source TYPE=PATH")
    if args.filter:
        content["filters"] = [filter_from_option(text) for text in args.filter]
    if args.leakage:
        declared = content.get("filters")
        content["filters"] = [
            *(DEFAULT_FILTERS if declared is None else declared),
            {"leakage": {"collections": args.leakage}},
        ]
    sampling = content.get("sampling") or {}
    if not isinstance(sampling, dict) or not isinstance(sampling.get("caps") or {}, dict):
        raise InputError(f"{args.config}: sampling and its caps must hold numbers by name")
    sampling = dict(sampling)
    for name in ("rows", "temperature", "validation", "seed"):
        if getattr(args, name) is not None:
            sampling[name] = getattr(args, name)
    if args.cap:
        sampling["caps"] = {**(sampling.get("caps") or {}), **dict(args.cap)}
    content["sampling"] = sampling
    if args.title:
        content["title"] = args.title
    return build_recipe(content)


def _cap(text: str) -> tuple[str, int]:
    """The type of --cap."""
    name, equals, number = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected TYPE=N, got {quoted(text)}")
    return name, whole(least=0)(number)


def summary(facts: dict[str, Any]) -> str:
    """What was read, what each filter left, and what was taken, as lines of text."""
    lines = [f"{'read':<18} {sum(one['pairs'] for one in facts['inputs']):>10,}"]
    for step in facts["filters"]:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in step["dropped"].items())
        mended = f", mended {step['mended']:,}" if step["mended"] else ""
        lines.append(f"{step['filter']:<18} {step['out']:>10,}   {reasons or 'none dropped'}{mended}")
    lines.append(f"{'taken':<18} {sum(facts['types'].values()):>10,}   seed {facts['sampling']['seed']}")
    lines += [f"  {name:<18} {rows:>8,}   of {facts['kept_by_type'][name]:,}" for name, rows in facts["types"].items()]
    return "\n".join(lines) + "\n"


def run_card(args: argparse.Namespace) -> int:
    """Writes the card and prints its path."""
    from modeling_tsarank.trainers.data.dataset_card import write_card

    sys.stdout.write(f"{write_card(args.folder, args.title)}\n")
    return 0

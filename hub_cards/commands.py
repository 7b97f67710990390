"""`tsarank publish`: uploads models, datasets, the metric and the Space to the Hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import add_command, given


if TYPE_CHECKING:
    from modeling_tsarank.hub_cards.uploading import Publication


_COMMON = """\
Everything is published as one commit with a tag, private unless --public is given. --dry-run shows the files, their
sizes and the card, lists the errors that the real run would raise, and uploads nothing. To resume an interrupted
upload, repeat the command: nothing is visible before the final commit.

The Hub token is the one of `hf auth login`, or HF_TOKEN; HF_ENDPOINT selects another Hub.
"""
_DETAILS = f"""\
{_COMMON}
Optimizer states, caches, logs, hidden files and files named like secrets are left out. A file that seems to contain a
token or a key stops the publication, and so does a file that cannot be scanned: anything but UTF-8 text (plain or
gzip), Parquet, safetensors and SentencePiece; --not-secret allows it.
"""
_INCLUDE = "further files of FOLDER, such as 'plots/*.png'"
_MODEL_EXAMPLES = """\
  tsarank publish model my-ranker me/my-ranker --dry-run
  tsarank publish model my-ranker me/my-ranker --results results --license apache-2.0 --tag v1
  tsarank publish model my-ranker me/my-adapter --adapter-only --base-model Qwen/Qwen3-0.6B
"""
_DATASET_EXAMPLES = """\
  tsarank publish dataset weak-pairs me/weak-pairs --dry-run
  tsarank publish dataset lists me/twolar-lists --license cc-by-4.0 --title "Lists in a teacher's order"
"""
_METRIC_EXAMPLES = """\
  tsarank publish metric me/ndcg --dry-run
  tsarank publish metric me/ndcg --public
"""
_SPACE_EXAMPLES = """\
  tsarank publish space me/reranking --dry-run
  tsarank publish space me/reranking --model me/my-ranker
  tsarank publish space me/reranking --bake my-ranker --public
"""


def register(subparsers: argparse._SubParsersAction) -> None:
    """Adds `publish` to the command line."""
    parser = subparsers.add_parser(
        "publish",
        help="publish a model, a dataset, the metric or the Space on the Hub",
        description=f"Publish on the Hugging Face Hub.\n\n{_COMMON}",
        epilog="`tsarank publish WHAT --help` explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    _register_model(kinds)
    _register_dataset(kinds)
    _add_kind(kinds, "metric", "the nDCG metric of `evaluate`", _METRIC_EXAMPLES, _metric)
    space = _add_kind(kinds, "space", "the demonstration page", _SPACE_EXAMPLES, _space, "model bake")
    space.add_argument("--model", metavar="ID", help="Hub id of the model to show (default: the embedded one)")
    space.add_argument("--bake", type=Path, metavar="FOLDER", help="a ranker's folder, uploaded with the Space")
    space.add_argument("--title", metavar="TEXT", default="Reranking, explained", help="title of the Space's card")
    space.add_argument("--app", type=Path, metavar="FILE", help="path of app.py, if it is not next to the package")


def _add_kind(
    kinds: Any,
    name: str,
    help_text: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    common: str = "",
    folder: str | None = None,
) -> argparse.ArgumentParser:
    """Adds the subcommand of one kind, with the common options; `folder`, if given, describes its FOLDER argument."""
    shown = f"dry-run public tag {common}"
    parser = add_command(kinds, name, help_text, examples, run, shown, _DETAILS)
    if folder is not None:
        parser.add_argument("folder", type=Path, metavar="FOLDER", help=folder)
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name")
    group = parser.add_argument_group("publication")
    group.add_argument(
        "--dry-run", dest="preview", action="store_true", help="show files, sizes and card; upload nothing"
    )
    group.add_argument("--card", type=Path, metavar="FILE", help="also write the card to FILE")
    group.add_argument("--public", dest="private", action="store_false", help="make the repository public")
    group.add_argument("--tag", default="v1", help="tag of this version, used in the card's snippets (default: v1)")
    group.add_argument("--message", metavar="TEXT", help="commit message")
    _add_repeated(
        group,
        "not-secret",
        "PATH",
        "a published file with false positives of the secret scan, or one that cannot be scanned; may be repeated",
    )
    return parser


def _add_repeated(parser: argparse._ActionsContainer, name: str, metavar: str, help_text: str, **more: Any) -> None:
    parser.add_argument(f"--{name}", action="append", default=[], metavar=metavar, help=help_text, **more)


def _add_license(parser: argparse._ActionsContainer, default: str) -> None:
    parser.add_argument("--license", metavar="ID", help=f"the Hub's identifier, such as apache-2.0 ({default})")
    _add_repeated(parser, "language", "CODE", "such as en; may be repeated", dest="languages")


def _register_model(kinds: Any) -> None:
    common, folder = "license base-model results adapter-only", "the saved model, or a release's name"
    parser = _add_kind(
        kinds, "model", "a ranker, a plain model or an adapter", _MODEL_EXAMPLES, _model, common, folder
    )
    facts = parser.add_argument_group("card")
    _add_license(facts, "default: that of the base model")
    facts.add_argument("--license-name", metavar="TEXT", help="with --license other")
    facts.add_argument("--base-model", metavar="ID", help="Hub id of the base model, if it is not recorded")
    facts.add_argument("--base-revision", metavar="COMMIT", help="commit of the base model")
    _add_repeated(facts, "results", "FOLDER", "output of `tsarank evaluate`", type=Path)
    facts.add_argument(
        "--accept-other-checkpoint", action="store_true", help="accept results of another checkpoint than FOLDER"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--adapter-only", action="store_true", help="only the LoRA adapter, with a pinned base model")
    _add_repeated(files, "include", "PATTERN", _INCLUDE)


def _register_dataset(kinds: Any) -> None:
    parser = _add_kind(
        kinds, "dataset", "a folder of rows", _DATASET_EXAMPLES, _dataset, "license title", "the dataset"
    )
    _add_license(parser, "required unless it is recorded")
    parser.add_argument("--title", metavar="TEXT", help="title of the card")
    _add_repeated(parser, "include", "PATTERN", _INCLUDE)


# ---- running ---------------------------------------------------------------------------------------


def _finish(publication: Publication, args: argparse.Namespace) -> int:
    publication.check(args.preview)
    if args.card is not None:
        from modeling_tsarank.files.writing import write_text

        write_text(args.card, publication.card)
    if args.preview:
        sys.stdout.write(publication.describe())
        return 0
    from modeling_tsarank.hub_cards.uploading import upload

    published = upload(publication)
    what = "published" if published.changed else "already up to date"
    sys.stdout.write(f"{what} as {publication.tag}: {published.url}/tree/{publication.tag}\n")
    return 0


def _model(args: argparse.Namespace) -> int:
    """Publish a ranker saved by save_pretrained or by a training: weights, modeling files, tokenizer, and a card made
    from the training record (training_run.json) and the results of `tsarank evaluate`. A release of the package,
    given by name instead of a folder, includes its own results.

    The repository loads with AutoModel and pipeline("text-ranking") with trust_remote_code=True, as a CrossEncoder of
    sentence-transformers, and as the plain language model without trust_remote_code. The result of `tsarank train cpt`
    is published as a plain model. With --adapter-only the repository contains only the LoRA adapter, with its base
    model pinned to a commit.
    """
    from modeling_tsarank.hub_cards.model_publishing import ModelOptions, prepare_model
    from modeling_tsarank.models.resolver import resolve

    source = None if args.folder.exists() else resolve(str(args.folder))
    folder = Path(source.location()) if source is not None and source.packaged else args.folder
    return _finish(prepare_model(folder, args.repo_id, ModelOptions(**given(ModelOptions, args))), args)


def _dataset(args: argparse.Namespace) -> int:
    """Publish a dataset: its Parquet, JSON Lines or CSV files unchanged, and a card. The card of a dataset made by
    `tsarank data` comes from provenance.json; otherwise a README.md in the folder is used unchanged, or a card is made
    from the columns and rows. Load it with datasets.load_dataset(REPO_ID).
    """
    from modeling_tsarank.hub_cards.dataset_publishing import prepare_dataset

    return _finish(prepare_dataset(**given(prepare_dataset, args)), args)


def _metric(args: argparse.Namespace) -> int:
    """Publish the nDCG metric for evaluate.load(REPO_ID). The repository is a Space, as `evaluate` requires, and its
    name must be a valid name of a Python module.
    """
    from modeling_tsarank.hub_cards.space_publishing import prepare_metric

    return _finish(prepare_metric(**given(prepare_metric, args)), args)


def _space(args: argparse.Namespace) -> int:
    """Publish the page that ranks, explains and compares, as a Gradio Space that includes this package's source. Run
    it in a checkout of the repository, which contains app.py.
    """
    from modeling_tsarank.hub_cards.space_publishing import prepare_space

    return _finish(prepare_space(**given(prepare_space, args)), args)

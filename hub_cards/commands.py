"""`tsarank publish`: models, datasets, the metric and the Space, to the Hub."""

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
sizes and the card, names what the real run would refuse, and uploads nothing. A broken upload goes on when the same
command is given again: until the commit, which comes last, nothing of it is visible.

The Hub's token is that of `hf auth login`, or HF_TOKEN; HF_ENDPOINT names another Hub.
"""
_DETAILS = f"""\
{_COMMON}
Optimizer states, caches, logs and hidden files are left out, and so is what is named like a secret. A file that holds
what looks like a token or a key stops the publication, and so does one whose text cannot be read: anything but UTF-8
text (as it is or in gzip), Parquet, safetensors and SentencePiece; --not-secret lets it pass.
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
    space.add_argument("--model", metavar="ID", help="Hub id of the model that it shows (default: the embedded one)")
    space.add_argument("--bake", type=Path, metavar="FOLDER", help="a ranker's folder, put into the Space")
    space.add_argument("--title", metavar="TEXT", default="Reranking, explained", help="of the page's card")
    space.add_argument("--app", type=Path, metavar="FILE", help="app.py, where it is not beside the package")


def _add_kind(
    kinds: Any,
    name: str,
    help_text: str,
    examples: str,
    run: Callable[[argparse.Namespace], int],
    common: str = "",
    folder: str | None = None,
) -> argparse.ArgumentParser:
    """Adds something that is published, out of a folder where `folder` says of what, with the options of all kinds."""
    shown = f"dry-run public tag {common}"
    parser = add_command(kinds, name, help_text, examples, run, shown, _DETAILS)
    if folder is not None:
        parser.add_argument("folder", type=Path, metavar="FOLDER", help=folder)
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name")
    group = parser.add_argument_group("publication")
    group.add_argument(
        "--dry-run", dest="preview", action="store_true", help="show files, sizes and card; upload nothing"
    )
    group.add_argument("--card", type=Path, metavar="FILE", help="also write the card there")
    group.add_argument("--public", dest="private", action="store_false", help="not private")
    group.add_argument(
        "--tag", default="v1", help="name of this version, which the card's snippets name (default: v1)"
    )
    group.add_argument("--message", metavar="TEXT", help="of the commit")
    _add_repeated(
        group,
        "not-secret",
        "PATH",
        "a file of the publication that may hold look-alikes of secrets or cannot be searched; may be repeated",
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
    facts.add_argument("--base-model", metavar="ID", help="Hub id of the base model, where it is not recorded")
    facts.add_argument("--base-revision", metavar="COMMIT", help="commit of the base model")
    _add_repeated(facts, "results", "FOLDER", "output of `tsarank evaluate`", type=Path)
    facts.add_argument(
        "--accept-other-checkpoint", action="store_true", help="take results measured on other files than FOLDER's"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--adapter-only", action="store_true", help="the LoRA adapter alone, its base pinned")
    _add_repeated(files, "include", "PATTERN", _INCLUDE)


def _register_dataset(kinds: Any) -> None:
    parser = _add_kind(
        kinds, "dataset", "a folder of rows", _DATASET_EXAMPLES, _dataset, "license title", "the dataset"
    )
    _add_license(parser, "needed unless it is recorded")
    parser.add_argument("--title", metavar="TEXT", help="of the card")
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
    what = "published" if published.changed else "nothing has changed; it is there"
    sys.stdout.write(f"{what} as {publication.tag}: {published.url}/tree/{publication.tag}\n")
    return 0


def _model(args: argparse.Namespace) -> int:
    """Publish a ranker that save_pretrained or a training wrote: weights, modeling files, tokenizer, and a card out of
    what the training recorded (training_run.json) and of the results of `tsarank evaluate`. A release of the package,
    named instead of a folder, brings its own results.

    The repository loads by AutoModel and pipeline("text-ranking") with trust_remote_code=True, as a CrossEncoder of
    sentence-transformers, and as the plain language model without trust. The result of `tsarank train cpt` is
    published as the plain model it is. With --adapter-only it holds the LoRA adapter alone, with its base pinned to a
    commit.
    """
    from modeling_tsarank.hub_cards.model_publishing import ModelOptions, prepare_model
    from modeling_tsarank.models.resolver import resolve

    source = None if args.folder.exists() else resolve(str(args.folder))
    folder = Path(source.location()) if source is not None and source.packaged else args.folder
    return _finish(prepare_model(folder, args.repo_id, ModelOptions(**given(ModelOptions, args))), args)


def _dataset(args: argparse.Namespace) -> int:
    """Publish a dataset: its Parquet, JSON Lines or CSV files as they are, and a card. What `tsarank data` made has a
    card of its own out of provenance.json; a README.md in the folder is taken as it is; else a card is made of the
    columns and rows. datasets.load_dataset(REPO_ID) then loads it.
    """
    from modeling_tsarank.hub_cards.dataset_publishing import prepare_dataset

    return _finish(prepare_dataset(**given(prepare_dataset, args)), args)


def _metric(args: argparse.Namespace) -> int:
    """Publish the nDCG metric, so that evaluate.load(REPO_ID) loads it. The repository is a Space, as `evaluate` wants
    it, and its name becomes the name of a Python module.
    """
    from modeling_tsarank.hub_cards.space_publishing import prepare_metric

    return _finish(prepare_metric(**given(prepare_metric, args)), args)


def _space(args: argparse.Namespace) -> int:
    """Publish the page that ranks, explains and compares, as a Gradio Space with this package's source in it. Run it
    in a checkout of the repository, where app.py lies.
    """
    from modeling_tsarank.hub_cards.space_publishing import prepare_space

    return _finish(prepare_space(**given(prepare_space, args)), args)

"""Rerankers by name for the commands: loaded late, and identified well enough to resume safely."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling_tsarank.cli.command_line import whole
from modeling_tsarank.models.arguments import add_model_arguments


if TYPE_CHECKING:
    from modeling_tsarank.eval.scoring import ScorerSource


def add_model_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Adds the options of every command that loads a model, and where wanted one for further models beside it."""
    add_model_arguments(parser)
    parser.add_argument(
        "--max-query-length", type=whole(), metavar="N", help="tokens of a query at most (ArguAna: 256)"
    )
    if several:
        parser.add_argument(
            "--more-models", nargs="+", default=[], metavar="M", help="further models to show beside --model"
        )


def display_name(model: str | None) -> str:
    """What tables call a model: the last part of its Hub id or path."""
    from modeling_tsarank.models.resolver import resolve

    return resolve(model).label


def scorer_source(model: str | None, args: argparse.Namespace, device: Any = None) -> ScorerSource:
    """The model as a source that loads it when the first pair is to be scored.

    Args:
        model: Hub id, folder, GGUF file or None for the embedded default.
        args: Parsed options of `add_model_options`.
        device: Where to load it if the user named no device.

    Raises:
        InputError: a number format, device or store that does not exist here.
    """
    from modeling_tsarank.cache.folder_store import open_store, use_store
    from modeling_tsarank.eval.scoring import ScorerSource
    from modeling_tsarank.models.loading import load_ranker, number_format, resolve_device

    device = resolve_device(args.device or device)
    dtype = number_format(args.dtype, device)
    given = {"max_length": args.max_length, "max_query_length": args.max_query_length}
    lengths = {name: value for name, value in given.items() if value is not None}

    store = getattr(args, "store", None)

    def load() -> Any:
        ranker = load_ranker(
            model,
            device=device,
            dtype=dtype,
            revision=args.revision,
            trust_remote_code=args.trust_remote_code,
            **lengths,
        )
        if store is not None:
            use_store(ranker, store)
        return ranker

    from modeling_tsarank.eval.index_cache import adapter_base, hub_commit, model_fingerprint
    from modeling_tsarank.models.resolver import Kind, resolve

    found = resolve(model)
    base = None if model is None else adapter_base(Path(model))
    on_hub = found.kind in (Kind.HUB, Kind.PUBLISHED)
    settings = {
        "checkpoint": _checkpoint(model),
        "commit": hub_commit(str(model), args.revision) if on_hub else None,
        "base": None if base is None else model_fingerprint(base),
        "revision": args.revision,
        "dtype": dtype,
        **given,
    }
    if store is not None:  # rounded states change scores a little
        with open_store(store) as opened:
            settings["document_states"] = opened.dtype
    return ScorerSource(display_name(model), load, settings, args.batch_tokens)


def _checkpoint(model: str | None) -> str:
    """What tells a checkpoint apart from another of the same name: the content of a folder or file, a Hub id."""
    from modeling_tsarank.files.hashes import hash_file, hash_folder
    from modeling_tsarank.models.embedded_models import embedded_checkpoint
    from modeling_tsarank.models.resolver import resolve

    source = resolve(model)
    if source.packaged:
        return embedded_checkpoint(source.name)
    path = Path(source.name)
    if path.is_dir():
        return f"sha256:{hash_folder(path)[:16]}"
    return f"sha256:{hash_file(path)[:16]}" if path.is_file() else source.name

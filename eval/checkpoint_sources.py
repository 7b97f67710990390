"""Rerankers by name for the commands: loaded lazily, with settings that identify them for a safe resume."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modeling_tsarank.cache.folder_store import open_store, use_store
from modeling_tsarank.eval.scoring import ScorerSource
from modeling_tsarank.files.hashes import hash_file, hash_folder
from modeling_tsarank.models.arguments import model_from_arguments, ranking_arguments
from modeling_tsarank.models.embedded_models import embedded_checkpoint
from modeling_tsarank.models.fingerprints import adapter_base, hub_commit, model_fingerprint
from modeling_tsarank.models.loading import number_format, resolve_device, resolve_dtype
from modeling_tsarank.models.resolver import OTHER_LIBRARIES, Kind, Source, resolve
from modeling_tsarank.rankers import RANKERS
from modeling_tsarank.rankers.arguments import (
    cascade_stages,
    check_list_options,
    list_ranker,
    ranker_options,
    refuse_options,
)
from modeling_tsarank.rankers.endpoint import EndpointSettings
from modeling_tsarank.rankers.loading import list_options
from modeling_tsarank.rankers.pointwise import foreign_dtype, load_scorer, prefix_of


def scorer_source(model: str | None, args: argparse.Namespace) -> ScorerSource:
    """A source that loads the model when the first pair is to be scored.

    Args:
        model: Hub id, folder, GGUF file or None for the embedded default.
        args: Parsed options of `add_model_arguments`.

    Raises:
        InputError: A dtype, device or store that is not available.
    """
    device = resolve_device(args.device)
    dtype = number_format(args.dtype, device)
    loaded, store = argparse.Namespace(**{**vars(args), "model": model, "dtype": dtype}), getattr(args, "store", None)

    def load() -> Any:
        ranker = model_from_arguments(loaded)
        if store is not None:
            use_store(ranker, store)
        return ranker

    settings = {**_checkpoint_settings(model, args.revision), "dtype": dtype, **_reading_settings(args)}
    return ScorerSource(resolve(model).label, load, settings, args.batch_tokens)


def evaluated_source(model: str | None, args: argparse.Namespace) -> ScorerSource:
    """Any ranker that `tsarank evaluate` supports: a model of this project or of sentence-transformers, or a listwise
    ranker.

    Args:
        model: Any name that `models.resolver` accepts; with `--ranker`, a language model or the URL of a chat server.
        args: Parsed options of `add_model_arguments` and `add_ranker_arguments`.

    Raises:
        InputError: An option that does not apply to this kind of model, or an invalid value.
    """
    if getattr(args, "cascade", None) is not None:
        return _cascade_source(args)
    found = resolve(model, args.revision)
    if found.kind is Kind.SERVICE or args.ranker != RANKERS[0]:
        return _list_source(found, args)
    ranker_options(args)  # raises if there is no such ranker
    check_list_options(args, remote=False)
    if found.kind in OTHER_LIBRARIES:
        return _sentence_transformers_source(found, args)
    return scorer_source(model, args)


def _sentence_transformers_source(found: Source, args: argparse.Namespace) -> ScorerSource:
    unset = dict.fromkeys(("store", "max_query_length", "instruction", "batch_tokens"))
    refuse_options(args, "a model of sentence-transformers", **unset)
    place = resolve_device(args.device)
    dtype = foreign_dtype(args.dtype, place)
    name, prefix = found.name, prefix_of(found, args.revision)
    lengths = {} if args.max_length is None else {"max_length": args.max_length}
    commit = None if Path(name).exists() else hub_commit(name, args.revision)
    settings = {
        "checkpoint": f"{prefix}{model_fingerprint(name, commit)['model']}",
        "commit": commit,
        "revision": args.revision,
        "dtype": dtype,
        "max_length": args.max_length,
    }

    def load() -> Any:
        return load_scorer(prefix + name, str(place), dtype, args.revision, args.trust_remote_code, **lengths)

    return ScorerSource(found.label, load, settings)


def _list_source(found: Source, args: argparse.Namespace) -> ScorerSource:
    """A listwise ranker, over a language model or behind a URL."""
    pointwise = args.ranker == RANKERS[0]
    given = ranker_options(args)
    settings: dict[str, Any] = {} if pointwise else {"ranker": args.ranker}
    if not pointwise:
        settings["ranker_options"] = asdict(list_options(args.ranker, given))
    name, remote = found.label, found.kind is Kind.SERVICE
    check_list_options(args, remote)
    if remote:
        EndpointSettings(found.name, args.api_model, args.api_key_variable, args.api_timeout)  # fail early
        name = args.api_model or str(urlsplit(found.name).hostname)
        settings |= {"checkpoint": found.name, "api_model": args.api_model, "api_documents": args.api_documents}
    else:
        dtype = resolve_dtype(args.dtype, resolve_device(args.device))
        settings |= {**_checkpoint_settings(args.model, args.revision), "dtype": str(dtype).removeprefix("torch.")}
        settings |= _reading_settings(args)
    label = name if pointwise else f"{name} {args.ranker}"
    return ScorerSource(label, lambda: list_ranker(args), settings, whole_lists=True)


def _cascade_source(args: argparse.Namespace) -> ScorerSource:
    """A cascade: each stage reranks the best documents of the stage before."""
    sources = [evaluated_source(stage.model, stage) for _, stage in cascade_stages(args)]
    settings = {"cascade": args.cascade, "stages": [dict(source.settings) for source in sources]}
    return ScorerSource(f"cascade {args.cascade}", lambda: list_ranker(args), settings, whole_lists=True)


def _reading_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Length limits, the instruction, and the dtype of `--store`: rounded document states change scores."""
    settings = {"max_length": None, "max_query_length": None, **ranking_arguments(args)}
    if getattr(args, "store", None) is not None:
        with open_store(args.store) as opened:
            settings["document_states"] = opened.dtype
    return settings


def _checkpoint_settings(model: str | None, revision: str | None) -> dict[str, Any]:
    """Settings that identify a model's weights."""
    base = None if model is None else adapter_base(Path(model))[0]
    on_hub = resolve(model).kind in (Kind.HUB, Kind.PUBLISHED)
    return {
        "checkpoint": _checkpoint(model),
        "commit": hub_commit(str(model), revision) if on_hub else None,
        "base": None if base is None else model_fingerprint(base),
        "revision": revision,
    }


def _checkpoint(model: str | None) -> str:
    """Identifies a checkpoint: by the content of a folder or file, or by a Hub id."""
    source = resolve(model)
    if source.packaged:
        return embedded_checkpoint(source.name)
    path = Path(source.name)
    if path.is_dir():
        return f"sha256:{hash_folder(path)[:16]}"
    return f"sha256:{hash_file(path)[:16]}" if path.is_file() else source.name

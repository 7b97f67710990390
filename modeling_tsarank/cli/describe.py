"""`tsarank describe`: what a model's name means, and how the model scores."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from ..files.reading import read_text
from ..models.arguments import add_model_arguments, model_from_arguments
from ..models.published import UNVERIFIED
from ..models.resolver import Kind, Source, resolve
from .command_line import add_command


_EXAMPLES = """\
  tsarank describe
  tsarank describe castorini/monot5-base-msmarco
  tsarank describe ./my-ranker --max-length 1024 --json
"""


def register(subparsers: Any) -> None:
    """Adds `describe` to the command line."""
    parser = add_command(subparsers, "describe", "describe a model and how it scores", _EXAMPLES, run)
    add_model_arguments(parser, positional=True)
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")


def describe(ranker: Any, name: str | None) -> dict[str, Any]:
    """Information on a loaded ranking model, as JSON values in display order.

    Args:
        ranker: The model.
        name: The name given by the user.
    """
    from ..models.installed import ENGINE_API
    from ..ranking_errors import ModelError

    source, kind = resolve(name), backbone_kind(ranker)
    batches = "" if kind == "decoder-only" else f", an {kind} in plain padded batches"
    options = ranker.options.to_dict()
    try:
        ranker.check_cacheable()
        kept = "can be cached"
    except ModelError as error:
        kept = str(error)
    config = ranker.backbone.config
    size = sum(parameter.numel() for parameter in ranker.backbone.parameters())
    unused = {"family", *ranker.unused_options(ranker.options)}
    return {
        "name": source.name,
        "kind": str(source.kind) + (f", {UNVERIFIED}" if source.kind is Kind.PUBLISHED else ""),
        "family": options["family"],
        "title": ranker.title,
        "class": f"{type(ranker).__module__}.{type(ranker).__qualname__}",
        "score": ranker.scoring(ranker.options),
        "probability": "needs a calibration" if ranker.calibration is None else ranker.calibration.rule,
        "backbone": f"{config.model_type}, {kind}",
        "parameters": size,
        "attention": config._attn_implementation,
        "number_format": ranker.number_format or str(ranker.dtype).removeprefix("torch."),
        "device": str(ranker.device),
        "options": {name: value for name, value in options.items() if name not in unused},
        "answer_tokens": ranker.answer_tokens(),
        "context": ranker.encoder.context,
        "document_states": kept,
        "scored_by": f"the engine of the installed package (API {ENGINE_API}){batches}",
        "scored_by_saved_code": scored_by_saved_code(source),
    }


def backbone_kind(ranker: Any) -> str:
    """`decoder-only`, `encoder-decoder` or `encoder`."""
    if ranker.config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if ranker._read_out()[0] == "pair_logits" else "decoder-only"


def scored_by_saved_code(source: Source) -> str:
    """What scores the pairs if the checkpoint's own code is used, as by `AutoModel` with remote code."""
    from transformers.utils import cached_file

    from ..models.installed import ENGINE_API, OLDEST_API

    if source.kind not in (Kind.FOLDER, Kind.HUB, Kind.PUBLISHED):
        return "it has no code"
    missing: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    try:
        found = {file: cached_file(source.name, file, **missing) for file in ("ranking_engine.py", "ranking_text.py")}
    except OSError:
        found = {}
    if not any(found.values()):
        return "it has no code"
    path = found["ranking_engine.py"]
    api = re.search(r"^ENGINE_API = (\d+)$", read_text(path), re.MULTILINE) if path else None
    if api is None:
        return "plain padded batches: its code is older than the engine"
    served = f"the installed engine supports {OLDEST_API} to {ENGINE_API}"
    if OLDEST_API <= int(api[1]) <= ENGINE_API:
        return f"the engine of the installed package (API {api[1]} in its code; {served})"
    return f"plain padded batches (API {api[1]} in its code; {served})"


def run(args: argparse.Namespace) -> int:
    """Load a model and describe it: what its name means, its family, prompt, answer tokens and limits, its number
    format, and whether its document states can be cached.
    """
    facts = describe(model_from_arguments(args), args.model)
    if args.json:
        sys.stdout.write(json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
        return 0
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        label = name.replace("_", " ")
        if name == "answer_tokens":
            rows += [(label, ", ".join(f"{text!r} ({number})" for text, number in value.items()) or "none")]
        elif name == "options":
            rows += [(option, shown) for option, shown in value.items()]
        else:
            rows += [(label, f"{value:,}" if isinstance(value, int) else value)]
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        text = repr(value) if isinstance(value, str) and "{" in value else value
        sys.stdout.write(f"{label:<{width}}  {text}\n")
    return 0

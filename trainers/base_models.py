"""The models that training starts from: by name, from a folder, from a GGUF file, or the one in the package."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.models.checkpoints import causal_class, load_backbone
from modeling_tsarank.models.families import family_class
from modeling_tsarank.models.loading import make_ranker
from modeling_tsarank.models.resolver import Kind, resolve, resolve_language_model
from modeling_tsarank.ranking_errors import InputError


def load_base_model(name_or_path: str | Path | None, **options: Any) -> tuple[PreTrainedModel, Any]:
    """A plain decoder-only model and its tokenizer, to be trained; a ranking folder is read as the plain model it is.

    Args:
        name_or_path: Hub id, folder or GGUF file; `None` for the language model of this package.
        options: arguments of `from_pretrained`: `dtype` of the weights (`None` keeps the checkpoint's), `revision`,
            `trust_remote_code`, `attn_implementation`, …

    Raises:
        ModelError: there is no such model, or it is an encoder-decoder.
    """
    return load_backbone(resolve_language_model(name_or_path).location(), causal_class, **options)


def load_base_ranker(
    name_or_path: str | Path | None,
    *,
    default_family: str,
    family: str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    ranking_options: dict[str, Any] | None = None,
    **options: Any,
) -> RankerModel:
    """A ranking model to be trained, on the CPU: trainers move it to their device.

    Args:
        name_or_path: a ranking checkpoint or a plain model: Hub id, folder or GGUF file; `None` for the language model
            of this package.
        family: such as "query_likelihood"; by default what the checkpoint says, else `default_family`. Where the
            checkpoint is a ranker of another family, its weights are what training starts from, with this family's
            own ranking options. Where it has no head and the family needs one, that is new and random.
        ranking_options: choices to change, such as `{"prompt_style": "separate"}`.
        dtype, revision, trust_remote_code, options: as in `load_base_model`.

    Raises:
        InputError: an unknown family or option.
        ModelError: there is no such model, or the family cannot be made of it.
    """
    given = ranking_options or {}
    if others := given.keys() & {*inspect.signature(make_ranker).parameters, "name_or_path", "tokenizer", "device"}:
        raise InputError(f"{min(others)} says how a model is loaded and is no ranking option; leave it out of them")
    more = {"dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code, **given}
    place, new_head = _location(name_or_path, family), family is not None
    return make_ranker(place, family, default_family, backbone_options=options, new_head=new_head, **more)


def _location(name_or_path: str | Path | None, family: str | None) -> str:
    """Where the model lies; the encoder of a bi-encoder is one too, for a family that puts a head on it."""
    if name_or_path is not None and family is not None and family_class(family).own_head:
        source = resolve(name_or_path)
        if source.kind is Kind.SENTENCE_TRANSFORMERS:
            return source.name
    return resolve_language_model(name_or_path).location()

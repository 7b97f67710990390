"""Loading of the models that training starts from: by name, from a folder or GGUF file, or the embedded one."""

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
    """A plain decoder-only model and its tokenizer, for training; a ranking checkpoint is loaded as a plain model.

    Args:
        name_or_path: Hub id, folder or GGUF file; `None` for the language model embedded in this package.
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
    """A ranking model for training, on the CPU: trainers move it to their device.

    Args:
        name_or_path: a ranking checkpoint or a plain model: Hub id, folder or GGUF file; `None` for the language model
            embedded in this package.
        family: such as "query_likelihood"; by default the checkpoint's, else `default_family`. If the checkpoint is a
            ranker of another family, training starts from its weights, with this family's default ranking options. If
            the family needs a head that the checkpoint lacks, a new one is initialized randomly.
        ranking_options: options to override, such as `{"prompt_style": "separate"}`.
        dtype, revision, trust_remote_code, options: as in `load_base_model`.

    Raises:
        InputError: an unknown family or option.
        ModelError: there is no such model, or it does not support the family.
    """
    given = ranking_options or {}
    if others := given.keys() & {*inspect.signature(make_ranker).parameters, "name_or_path", "tokenizer", "device"}:
        raise InputError(f"{min(others)} is a loading option, not a ranking option; remove it from them")
    more = {"dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code, **given}
    place, new_head = _location(name_or_path, family), family is not None
    return make_ranker(place, family, default_family, backbone_options=options, new_head=new_head, **more)


def _location(name_or_path: str | Path | None, family: str | None) -> str:
    """Path of the model; for a family with a head, also the encoder inside a bi-encoder's folder."""
    if name_or_path is not None and family is not None and family_class(family).own_head:
        source = resolve(name_or_path)
        if source.kind is Kind.SENTENCE_TRANSFORMERS:
            return source.name
    return resolve_language_model(name_or_path).location()

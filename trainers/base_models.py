"""The models that training starts from: by name, from a folder, from a GGUF file, or the embedded default."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.models.embedded_models import embedded_language_model, embedded_source
from modeling_tsarank.models.loading import FAMILIES
from modeling_tsarank.ranking_checkpoints import known_checkpoint, load_backbone, load_errors
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.ranking_options import CONFIG_KEY


logger = logging.getLogger(__name__)


def causal_class(config: Any) -> Any:
    """The auto class of decoder-only models. Raises `ModelError` for an encoder-decoder."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"a decoder-only model is needed, but {config.model_type} is an encoder-decoder")
    return AutoModelForCausalLM


def model_source(name_or_path: str | Path | None) -> str:
    """What to load: the given name, or the folder (or file) of an embedded model.

    `None` and `default` are the embedded language model, not the ranker that was released: training starts there.
    """
    name = None if name_or_path is None else os.fspath(name_or_path)
    embedded = embedded_language_model(name)
    return str(name) if embedded is None else os.fspath(embedded_source(embedded))


def load_base_model(
    name_or_path: str | Path | None,
    *,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> tuple[PreTrainedModel, Any]:
    """A plain decoder-only model and its tokenizer, to be trained; a ranking folder is read as the plain model it is.

    Args:
        name_or_path: Hub id, folder, GGUF file, or `default`.
        dtype: of the weights; `None` keeps the checkpoint's.
        options: further arguments of `from_pretrained`, such as `attn_implementation`.

    Raises:
        ModelError: there is no such model, or it is an encoder-decoder.
    """
    return load_backbone(
        model_source(name_or_path),
        causal_class,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        **options,
    )


def load_base_ranker(
    name_or_path: str | Path | None,
    *,
    family: str | None = None,
    default_family: str,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    ranking_options: dict[str, Any] | None = None,
    **options: Any,
) -> RankerModel:
    """A ranking model to be trained, on the CPU: trainers move it to their device.

    Args:
        name_or_path: a ranking checkpoint or a plain model: Hub id, folder, GGUF file, or `default`.
        family: "query_likelihood" or "true_false_logits"; by default what the checkpoint says, else
            `default_family`. Where the checkpoint is a ranker of the other family, its weights are what training
            starts from, with this family's own ranking options.
        ranking_options: choices to change, such as `{"prompt_style": "separate"}`.
        dtype, revision, trust_remote_code, options: as in `load_base_model`.

    Raises:
        InputError: an unknown family or option.
        ModelError: there is no such model, or the family cannot be made of it.
    """
    if family is not None and family not in FAMILIES:
        raise InputError(f"unknown family {family!r}; expected one of {', '.join(FAMILIES)}")
    source = model_source(name_or_path)
    saved = _saved_family(source, revision, trust_remote_code)
    made = FAMILIES[family or saved or default_family]
    origin = {"dtype": dtype, "revision": revision, "trust_remote_code": trust_remote_code}
    changes = ranking_options or {}
    if family is None or saved in (None, family):
        return made.from_backbone(source, **origin, backbone_options=options, **changes)
    logger.info("%s was trained as %s; training goes on from its weights as %s", source, saved, family)
    backbone, tokenizer = load_backbone(source, made.backbone_class, **origin, **options)
    if hasattr(backbone.config, CONFIG_KEY):
        delattr(backbone.config, CONFIG_KEY)
    return made.from_backbone(backbone, tokenizer=tokenizer, **changes)


def _saved_family(source: str, revision: str | None, trust_remote_code: bool) -> str | None:
    if Path(source).suffix.lower() == ".gguf":
        return None
    with load_errors(source):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    saved = getattr(config, CONFIG_KEY, None) or known_checkpoint(source) or {}
    return saved.get("family")

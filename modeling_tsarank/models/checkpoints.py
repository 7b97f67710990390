"""Loading plain models: complete ones only, otherwise an error of one line."""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import cached_file

from ..engine.private_view import private_view
from ..engine.torch_forward import ARCHITECTURES
from ..files.log_records import kept_back
from ..modeling_cross_encoder import pair_logits
from ..ranking_errors import ModelError, load_errors
from ..ranking_options import CONFIG_KEY, RankingOptions
from .families import CLASSIFIER, model_kind, published_options
from .fingerprints import adapter_base


logger = logging.getLogger(__name__)

# Tensors that older versions of transformers, fairseq and vLLM save with the weights, none of them trained.
_CONSTANTS = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|version|[kv]_scale)$")
_NAMES_SHOWN = 3
_DROPOUT = re.compile(r"(dropout|pdrop)(_prob|_rate)?$")
# Names of classifier and embedding heads in GGUF files, which transformers drops silently.
_GGUF_HEADS = ("cls.weight", "cls.output.weight", "cls.norm.weight", "dense_2.weight", "dense_3.weight")
_ENCODER = (
    "this {} model is an encoder with bidirectional attention; a ranker needs a decoder-only model or an "
    "encoder-decoder, a cross-encoder any model with a trained sequence-classification head"
)
_LOADING = ("gguf_file", "dtype", "trust_remote_code", "revision", "new_head")
# Relative to the largest logit: larger than rounding errors in half precision and in others.
_HALF_TOLERANCE, _TOLERANCE = 0.05, 1e-3
# All names are in a GGUF file's header, which includes the vocabulary.
_GGUF_HEADER_BYTES = 64 << 20


def refuse_shell_of_a_folder(name_or_path: Any) -> None:
    """Raises `ModelError` if the name is a path that does not exist or has no model."""
    path = Path(os.fspath(name_or_path)) if isinstance(name_or_path, str | os.PathLike) else None
    if path is None or not path.exists():
        if path is not None and (str(name_or_path)[:1] in ("/", ".", "~") or len(path.parts) > 2):
            raise ModelError(f"there is no folder or file {path}, and a Hub id is NAME or OWNER/NAME")
        return
    if path.is_file():
        raise ModelError(f"{path} is a file; a model is a folder with config.json, or a .gguf file")
    if holds_adapter_alone(path):
        base, _ = adapter_base(path)
        made_for = "an adapter that names no base" if base is None else f"the adapter of {base!r:.200}"
        raise ModelError(
            f"{path} holds only {made_for}: merge it into that model (PeftModel.merge_and_unload), save the result, "
            "and name its folder"
        )
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} is no model folder: it holds no config.json")


def holds_adapter_alone(folder: Path) -> bool:
    """Whether a folder has only an adapter (as `PeftModel.save_pretrained` writes it), and no model."""
    weights = (path for kind in ("safetensors", "bin") for path in folder.glob(f"*model*.{kind}"))
    return (folder / "adapter_config.json").is_file() and all(path.name.startswith("adapter_") for path in weights)


def some_of(names: Collection[str]) -> str:
    """A few of the names and the number of further ones, for one-line messages."""
    shown = sorted(names)[:_NAMES_SHOWN]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def newly_made_weights(model: torch.nn.Module) -> list[str]:
    """Names of the randomly initialized weights of transformers' models inside `model`: those without a checkpoint's.

    For models made by `from_pretrained`, by whatever library. Quantized weights cannot be told apart.
    """
    models = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    inner = {part for outer in models for part in outer.modules() if part is not outer}
    return [
        name
        for part in models
        if part not in inner and not getattr(part, "is_quantized", False)
        for name, parameter in part.named_parameters()
        if not getattr(parameter, "_is_hf_initialized", False)
    ]


def refuse_incomplete(name: Any, model: Any, info: dict[str, Any], new_head: bool = False) -> None:
    """Raises `ModelError` unless a model and its checkpoint have exactly the same weights.

    A weight that is missing from the checkpoint, or has another shape, would be random; one that the model does not
    have, such as a classifier's head, would be dropped. Tied weights, constants, and what transformers itself
    declares dispensable do not count.

    Parameters:
        name: of the checkpoint, for the message.
        info: the loading info of `from_pretrained(output_loading_info=True)`.
        new_head: whether the checkpoint may have another head, or none: all weights below it must match.
    """
    mismatched = {key for key, *_ in info["mismatched_keys"]}
    missing = {*info["missing_keys"]}
    if getattr(model, "_hf_peft_config_loaded", False):
        missing.update(newly_made_weights(model))  # transformers' loading info covers the adapter only
    buffers = [f".{buffer}" for buffer, _ in model.named_buffers()]
    left = {
        key
        for key in info["unexpected_keys"]
        if not _CONSTANTS.search(key) and not any(buffer.endswith(f".{key}") for buffer in buffers)
    }
    if new_head:
        below = f"{model.base_model_prefix}."
        missing = {key for key in missing if key.startswith(below) and not key.startswith(f"{below}pooler.")}
        left = {key for key in left if key.startswith(below)}
    faults = [
        f"{what} {some_of(names)}"
        for what, names in (
            ("missing weights:", missing - mismatched),
            ("weights of another shape:", mismatched),
            ("unexpected weights:", left),
        )
        if names
    ]
    if faults:
        plain = type(getattr(model, "backbone", model)).__name__
        saved = next(iter(getattr(model.config, "architectures", None) or ()), plain)
        origin = "" if saved == plain else f" but a {saved}"
        raise ModelError(f"{name} is not a complete {plain}{origin}: {'; '.join(faults)}")


def load_complete(
    load: Callable[..., Any], name: Any, *args: Any, new_head: bool = False, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Calls `load`, a `from_pretrained`, and returns the model with its loading info.

    Raises `ModelError` if the checkpoint's weights are not the model's (`refuse_incomplete`) or its dropout is not a
    probability, which only training would notice; otherwise the errors of `load`.
    """
    # `refuse_incomplete` replaces its table of weights by one line.
    with kept_back("transformers.modeling_utils", lambda record: "LOAD REPORT" in str(record.msg)):
        model, info = load(name, *args, **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True})
    refuse_incomplete(name, model, info, new_head)
    for key, value in vars(model.config.get_text_config()).items():
        if _DROPOUT.search(key) and isinstance(value, int | float) and not 0 <= value <= 1:
            raise ModelError(f"{name}: config.json has {key} {value:g}; expected a probability from 0 to 1")
    return model, info


def _split_gguf(name_or_path: Any, gguf_file: str | None) -> tuple[str, str | None]:
    path = Path(os.fspath(name_or_path))
    if gguf_file is None and path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"no GGUF file at {path}")
        return str(path.parent), path.name
    if gguf_file is not None and path.is_dir() and not (path / gguf_file).is_file():
        raise ModelError(f"no GGUF file {gguf_file} in the folder {path}")
    return os.fspath(name_or_path), gguf_file


def _gguf_heads(path: Path) -> set[str]:
    """The heads of `_GGUF_HEADS` that a GGUF file holds: a name is preceded by its length in bytes."""
    with path.open("rb") as file:
        header = file.read(_GGUF_HEADER_BYTES)
    return {name for name in _GGUF_HEADS if len(name).to_bytes(8, "little") + name.encode() in header}


def causal_class(config: Any) -> Any:
    """The auto class of a decoder-only model. Raises `ModelError` for an encoder-decoder."""
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"a decoder-only model is needed, but {config.model_type} is an encoder-decoder")
    return AutoModelForCausalLM


def load_backbone(
    name_or_path: str | os.PathLike,
    backbone_class: Callable[[Any], Any],
    *,
    gguf_file: str | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    new_head: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A plain model and its tokenizer from a Hub id, a folder or a GGUF file; optionally with a new one-label head.

    `backbone_class` maps the configuration to the auto class for loading. Pickled weights are only read by torch's
    weights-only loader (transformers' rule since 4.56 for every `.bin`). `kwargs` are further arguments of
    `from_pretrained`, such as `dtype`; `None` values are left out.

    Raises `ModelError`, in one line, for a name without a model, a missing or unreadable file, and a checkpoint whose
    weights are not exactly the model's (`refuse_incomplete`).
    """
    name, gguf_file = _split_gguf(name_or_path, gguf_file)
    if gguf_file is None:
        refuse_shell_of_a_folder(name)
    shared: dict[str, Any] = {"trust_remote_code": trust_remote_code, "gguf_file": gguf_file, "revision": revision}
    shared = {argument: value for argument, value in shared.items() if value is not None}
    kwargs = {argument: value for argument, value in kwargs.items() if value is not None}
    if new_head:
        kwargs |= {"new_head": True, "num_labels": 1}
    with load_errors(name_or_path):
        config = AutoConfig.from_pretrained(name, **shared)
        # A folder saved by a ranking model is also a plain model, and is loaded as one.
        backbone, info = load_complete(backbone_class(config).from_pretrained, name, **shared, **kwargs)
        if gguf_file is not None:
            file = cached_file(name, gguf_file, revision=revision, cache_dir=kwargs.get("cache_dir"))
            refuse_incomplete(name, backbone, {**info, "unexpected_keys": _gguf_heads(Path(str(file)))})
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(name, **shared)
            check_vocabulary(backbone, tokenizer)
    if gguf_file is not None:
        # The model is dequantized on loading but still marked as quantized, and could not be saved.
        backbone.hf_quantizer, backbone.is_quantized = None, False
        vars(backbone.config).pop("quantization_config", None)
    return backbone, tokenizer


def check_vocabulary(backbone: Any, tokenizer: Any) -> None:
    """Raises `ModelError` if the tokenizer has tokens beyond the model's embeddings.

    Added tokens count only if prompts use them: some checkpoints have more of them than embeddings.
    """
    embeddings = getattr(backbone.get_input_embeddings(), "weight", None)
    if embeddings is None:
        return
    vocabulary, count = tokenizer.get_vocab(), len(embeddings)  # len of a tensor is slow
    beyond = [token for token, number in vocabulary.items() if number >= count]
    if beyond:
        added = set(getattr(tokenizer, "added_tokens_decoder", ())) - {tokenizer.bos_token_id, tokenizer.eos_token_id}
        beyond = [token for token in beyond if vocabulary[token] not in added]
    if beyond:
        raise ModelError(
            f"the tokenizer does not belong to the model: {len(beyond):,} of its {len(vocabulary):,} tokens, such as "
            f"{beyond[0]!r}, are beyond the model's {count:,} embeddings; use the model's own tokenizer"
        )


def make_ranker(
    cls: Any,
    name_or_path: str | os.PathLike | PreTrainedModel,
    *,
    tokenizer: Any = None,
    device: Any = None,
    backbone_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A ranker from a plain language model; see `RankerModel.from_backbone` of the family `cls`.

    Args:
        options: Ranking options, and options for loading (`_LOADING`, see `load_backbone`).
    """
    chosen: dict[str, Any] = {}
    loading = {name: options.pop(name) for name in _LOADING if name in options}

    def choose(config: Any) -> Any:  # before any weights are loaded
        chosen.update(_chosen_options(cls, name_or_path, config, options).to_dict())
        return cls.backbone_class(config)

    if isinstance(name_or_path, PreTrainedModel):
        if tokenizer is None:
            raise ModelError("from_backbone got a loaded model without its tokenizer; pass tokenizer=")
        backbone = name_or_path
        choose(backbone.config)
    else:
        loading |= backbone_options or {}
        backbone, tokenizer = load_backbone(name_or_path, choose, tokenizer=tokenizer, **loading)
    check_backbone(cls, backbone)
    config = copy.deepcopy(backbone.config)
    if cls.own_head:
        defaults = cls.default_options(backbone, tokenizer)
        chosen = _chosen_options(cls, name_or_path, config, options, defaults).to_dict()
    setattr(config, CONFIG_KEY, chosen)
    model = cls(config, backbone=backbone)
    model.tokenizer = tokenizer
    model.name_or_path = str(getattr(backbone, "name_or_path", ""))
    if cls.own_head and model._read_out()[0] == "pair_logits" and reads_padding(backbone, model.pad_id):
        raise ModelError(f"{backbone.config.model_type} has other logits with padding: scores depend on the batch")
    if device is not None:
        model.to(device)
    return model.eval()


def check_backbone(cls: Any, backbone: PreTrainedModel) -> None:
    """Raises `ModelError` for a model unsuitable for this family: one without output head, or an encoder."""
    cls.backbone_class(backbone.config)
    if cls.own_head:
        if model_kind({"architectures": [type(backbone).__name__]}) != CLASSIFIER:
            raise ModelError(
                f"{type(backbone).__name__} has no sequence-classification head; {cls.__name__} needs one"
            )
        return
    if backbone.get_output_embeddings() is None:
        raise ModelError(
            f"{type(backbone).__name__} has no head over the vocabulary; load the checkpoint as a language model, "
            "such as AutoModelForCausalLM"
        )
    refuse_encoder(backbone)
    if not backbone.config.is_encoder_decoder and sees_ahead(backbone):
        raise ModelError(_ENCODER.format(backbone.config.get_text_config().model_type))


def reads_padding(backbone: PreTrainedModel, pad_id: int) -> bool:
    """Whether masked padding after a short text changes the logits of a sequence-classification model.

    An even and an odd length are tested: Funnel averages pairs of tokens, of which padding may be the second.
    """

    def read(length: int, view: Any, text: torch.Tensor) -> Iterator[torch.Tensor]:
        mask = (torch.arange(32, device=text.device) < length).long()[None]
        ids = torch.where(mask.bool(), text, pad_id)
        return (pair_logits(view, ids[:, :n], mask[:, :n], ()) for n in (length, 32))

    return any(_gives_others(backbone, partial(read, length)) for length in (5, 8))


def _gives_others(backbone: PreTrainedModel, read: Callable[[Any, torch.Tensor], Iterator[torch.Tensor]]) -> bool:
    """Whether `read`, of the model and 32 ids `(1, 32)`, yields logits two of which differ by more than rounding.

    A model that fails in this test counts as one whose logits do not differ.
    """
    view = private_view(backbone)
    if view is None or backbone.device.type == "meta":
        return False
    ids = torch.arange(5, 37, device=backbone.device)[None] % backbone.config.get_text_config().vocab_size
    try:
        with torch.inference_mode():
            one, other = read(view, ids)
    except Exception as error:  # an unknown model's code may need other arguments
        logger.debug("%s was not tested: %s", type(backbone).__name__, error)
        return False
    tolerance = _HALF_TOLERANCE if backbone.dtype.itemsize < 4 else _TOLERANCE
    return bool((one - other).abs().max() > tolerance * one.abs().max())


def sees_ahead(backbone: PreTrainedModel) -> bool:
    """Whether a later token changes the logits of an earlier one, for architectures not known to be causal.

    Only a short text is tested.
    """
    # A quantized model may round activations of several tokens together.
    if backbone.config.model_type in ARCHITECTURES or getattr(backbone, "is_quantized", False):
        return False

    def read(view: Any, ids: torch.Tensor) -> Iterator[torch.Tensor]:
        return (view(input_ids=ids[:, :length], use_cache=False).logits[0, 4] for length in (8, 5))

    return _gives_others(backbone, read)


def refuse_encoder(backbone: Any) -> None:
    """Raises `ModelError` for an encoder, such as a masked language model, loaded as a decoder."""
    config = backbone.config.get_text_config()
    not_causal = (
        getattr(config, "is_causal", None) is False
        or getattr(config, "use_bidirectional_attention", None) is True
        or (
            config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
            and not getattr(config, "is_decoder", False)
            and not getattr(config, "causal", False)  # XLM's name for it
        )
        or (
            getattr(config, "is_decoder", None) is False  # GPT-NeoX has it too
            and any(getattr(module, "is_causal", None) is False for module in backbone.modules())
        )
    )
    if not_causal and not backbone.config.is_encoder_decoder:
        raise ModelError(_ENCODER.format(config.model_type))


def _chosen_options(
    cls: Any, name_or_path: Any, config: Any, options: Mapping[str, Any], defaults: RankingOptions | None = None
) -> RankingOptions:
    """A model's options with some changed; if one of the two length limits is given, the other is adjusted to fit."""
    start = _starting_options(cls, name_or_path, config, defaults)
    longest, query = (options.get(name) for name in ("max_length", "max_query_length"))
    fitting = {}
    if query is None and isinstance(longest, int) and 1 < longest <= start.max_query_length and not cls.own_head:
        fitting["max_query_length"] = longest // 2
    elif longest is None and isinstance(query, int) and query >= start.max_length:
        fitting["max_length"] = 2 * query
    for name, value in fitting.items():
        logger.warning("%s is set to %d, to fit the other given length", name, value)
    return start.override(**{**options, **fitting})


def _starting_options(cls: Any, name_or_path: Any, config: Any, defaults: RankingOptions | None) -> RankingOptions:
    saved = getattr(config, CONFIG_KEY, None)
    if saved:
        return cls.options_class.from_dict(saved)
    known = published_options(cls, name_or_path) if isinstance(name_or_path, str) else None
    if known is not None:
        return cls.options_class.from_dict(known)
    defaults = defaults or cls.options_class()
    name = type(name_or_path).__name__ if isinstance(name_or_path, PreTrainedModel) else name_or_path
    logger.info("%s is not a known reranker: using the defaults of %s: %s", name, cls.__name__, defaults)
    return defaults

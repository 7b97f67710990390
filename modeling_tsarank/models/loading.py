"""`load_ranker`: from any kind of model name to a ranking model."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig
from transformers.utils import cached_file

from ..cache.state_bytes import SHORT_NAMES
from ..engine.batch_invariance import cpu_has_bfloat16
from ..engine.int8_weights import use_int8_weights
from ..files.reading import read_json_object
from ..modeling_cross_encoder import CrossEncoderModel
from ..modeling_ranker import RankerModel
from ..modeling_twolar import TwolarModel
from ..ranking_errors import InputError, ModelError, load_errors
from ..ranking_options import CONFIG_KEY
from ..scores.calibration import CALIBRATION_FILE, Calibration
from . import families
from .checkpoints import load_backbone, newly_made_weights, refuse_shell_of_a_folder, some_of
from .embedded_models import ADAPTER_CONFIG, RECORD_FILE, add_adapter
from .published import UNSUPPORTED
from .resolver import OTHER_LIBRARIES, Kind, Source, resolve
from .sentence_rerankers import load_stack, logit_score_options, other_modules, read_stack


logger = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype | None] = {"auto": None}
DTYPES |= {name: getattr(torch, full) for short, full in SHORT_NAMES.items() for name in (full, short)}
# Not a torch dtype for loading, but a quantization for ranking: see `int8_weights`.
INT8 = "int8"


def resolve_device(device: Any = None) -> torch.device:
    """The given device or the best available. Raises `InputError` for one this machine does not have."""
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}; expected for example cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no device {device!r} here: torch sees {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("there is no device 'mps' here")
    if chosen.type not in ("cpu", "cuda", "mps"):
        try:
            torch.zeros(1, device=chosen).item()  # the device meta has no values
        except (RuntimeError, AssertionError, ImportError) as error:
            raise InputError(f"there is no device {str(device)!r} here to compute on") from error
    return chosen


def resolve_dtype(dtype: Any, device: torch.device) -> torch.dtype:
    """The dtype for ranking: `auto` is bfloat16 if the device supports it in hardware, else float32.

    Raises `InputError` for an unknown name and for one unsuitable for the device: bfloat16 on a CPU without its
    instructions, float16 on any CPU.
    """
    if isinstance(dtype, str):
        if dtype == INT8:
            raise InputError("int8 is for ranking only; use another dtype here")
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}, int8")
        dtype = DTYPES[dtype]
    if dtype is None:
        bfloat16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if bfloat16 and device.type in ("cuda", "cpu") else torch.float32
    if device.type == "cpu" and dtype == torch.float16:
        raise InputError("float16 is slow and imprecise on a CPU; use --dtype float32")
    if device.type == "cpu" and dtype == torch.bfloat16 and not cpu_has_bfloat16():
        raise InputError(
            "this CPU has no bfloat16 instructions (AVX512_BF16, AMX or ARM BF16), so bfloat16 would be several times "
            "slower than float32 here; use --dtype float32"
        )
    return dtype


def number_format(dtype: Any, device: torch.device) -> str:
    """The format `load_ranker` will compute in: `int8` or a dtype's name. Raises `InputError` as `resolve_dtype`."""
    if isinstance(dtype, str) and dtype == INT8:
        if device.type != "cpu":
            raise InputError(f"int8 weights are only for the CPU, not for {device}; use another dtype")
        return INT8
    return str(resolve_dtype(dtype, device)).removeprefix("torch.")


def load_ranker(
    name_or_path: str | os.PathLike | None = None,
    *,
    device: Any = None,
    dtype: Any = None,
    family: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> RankerModel:
    """Loads a reranker, or creates one from a plain language model.

    Args:
        name_or_path: A ranking checkpoint (with its saved options), a published one by name, any other Hub id or
            folder, a GGUF file, a folder with a LoRA adapter; `None` or `default` for the released ranker,
            `zero-shot` for the language model that it was trained from. See `resolver` for all names.
        device: `None` for the best available.
        dtype: Torch dtype or its name; `None` or `auto` is bfloat16 if the device has it in hardware, else float32.
            `int8`, on a CPU, computes with quantized weights: faster than float32, with less exact scores.
        family: `query_likelihood`, `true_false_logits`, `cross_encoder` or an installed family, to override the family
            in the checkpoint or the default of its kind; the weights of a ranker of another family are then loaded as
            a plain model's.
        gguf_file: The GGUF file in a folder or Hub repository.
        revision: Branch, tag or commit of a Hub model.
        trust_remote_code: Whether to run the backbone's own code.
        model_kwargs: Further arguments of transformers' `from_pretrained`, such as `attn_implementation`,
            `quantization_config` or `device_map`. The last two decide the device.
        options: Ranking options to change.

    Raises:
        InputError, ModelError, ResourceError: Each with a one-line message.
    """
    more = dict(model_kwargs or {})
    _check_model_kwargs(more, device, dtype)
    if "new_head" in options:
        raise InputError("new_head is for training only; to rank, use a model with a trained head")
    as_int8 = isinstance(dtype, str) and dtype == INT8
    if as_int8:
        number_format(dtype, resolve_device(device or "cpu"))
        device, dtype = "cpu", "float32"
    placed = "device_map" in more or "quantization_config" in more
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    if family is not None:
        families.family_class(family)
    named = resolve(name_or_path, revision)
    source = _hub_adapter(named, revision)
    origin: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "gguf_file": gguf_file,
        "backbone_options": more,
    }
    if source.kind in OTHER_LIBRARIES:
        raise ModelError(
            f"{source.name} is a {source.kind}, which load_ranker cannot load; `tsarank evaluate --model` accepts "
            "ce:M (a cross-encoder), dense:M (a bi-encoder), or the address of a service"
        )
    if source.kind is Kind.ADAPTER:
        ranker = _with_adapter(source, named.name, family, options, trust_remote_code, more)
        ranker.to(dtype=dtype)  # type: ignore[call-arg]
    else:
        ranker = make_ranker(source.location(), family, dtype=dtype, **origin, **options)
    if not placed:
        ranker.to(device)
    ours = getattr(ranker.backbone.config, CONFIG_KEY, None)
    plain = source.kind in (Kind.HUB, Kind.FOLDER) and gguf_file is None and not ranker.own_head and not ours
    lengths = {name: getattr(ranker.options, name) for name in ("max_length", "max_query_length")}
    if plain and ranker.options == type(ranker).options_class(**lengths):
        logger.warning(
            "%s is a plain %s model, not a known reranker: it is scored by %s with the default prompt",
            source.name,
            ranker.config.model_type,
            type(ranker).__name__,
        )
    if family is None and not options.keys() - lengths.keys():  # other options change its scores
        # A model saved by this package may have been trained after its publication.
        line = None if ours else families.published_probability(source.name, ranker.backbone.config)
        published = None if line is None else Calibration("platt", "none", line, origin={"published": True})
        ranker.calibration = _saved_calibration(source, revision, ours) or published
    return use_int8_weights(ranker) if as_int8 else ranker


def _saved_calibration(source: Source, revision: str | None, ours: Any) -> Calibration | None:
    """The calibration in a model's folder, or in a repository of a ranker of this package."""
    folder = Path(source.location()) if source.packaged or Path(source.name).is_dir() else None
    found: Any = None if folder is None else folder / CALIBRATION_FILE
    if source.kind is Kind.HUB and ours:
        with contextlib.suppress(OSError, ValueError):
            found = cached_file(
                source.name, CALIBRATION_FILE, revision=revision, _raise_exceptions_for_missing_entries=False
            )
    return Calibration.load(found) if found is not None and Path(found).is_file() else None


def _hub_adapter(source: Source, revision: str | None) -> Source:
    """The folder of a Hub repository that holds only an adapter; every other source unchanged."""
    if source.kind not in (Kind.HUB, Kind.PUBLISHED):
        return source
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    try:
        if cached_file(source.name, "config.json", **options) or not cached_file(
            source.name, ADAPTER_CONFIG, **options
        ):
            return source
        wanted = ["adapter_*", RECORD_FILE]
        folder = snapshot_download(source.name, revision=revision, allow_patterns=wanted)
    except (OSError, ValueError):  # loading reports the error
        return source
    return Source(Kind.ADAPTER, folder)


def _check_model_kwargs(more: dict[str, Any], device: Any, dtype: Any) -> None:
    own = sorted({"dtype", "torch_dtype", "revision", "trust_remote_code", "gguf_file"} & set(more))
    if own:
        raise InputError(f"model_kwargs holds {', '.join(own)}, which load_ranker has as an argument of its own")
    placing = [name for name in ("device_map", "quantization_config") if name in more]
    if placing and (device is not None or dtype == INT8):
        raise InputError(f"{placing[0]} in model_kwargs decides the device; leave out device and int8")


def make_ranker(
    path: str,
    family: str | None = None,
    otherwise: str | None = None,
    *,
    dtype: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    backbone_options: dict[str, Any] | None = None,
    new_head: bool = False,
    **options: Any,
) -> RankerModel:
    """A ranking model from a path or Hub id, on the CPU unless `backbone_options` choose another device.

    Args:
        path: A folder, a GGUF file or a Hub id.
        family: Its family; `None` is the checkpoint's own.
        otherwise: The family of a plain language model; `None` is the default of its kind.
        dtype: Of the weights; `None` keeps the checkpoint's.
        new_head: Whether to create a head if the family needs one and the checkpoint has none.
        revision, trust_remote_code, gguf_file, backbone_options, options: See `RankerModel.from_backbone`.

    Raises:
        InputError: An unknown family or option.
        ModelError: There is no such model, or it cannot be loaded as this family.
    """
    origin: dict[str, Any] = {
        "dtype": dtype,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "gguf_file": gguf_file,
    }
    reason = next((why for name, why in UNSUPPORTED.items() if name.lower() == path.lower()), None)
    if reason is not None and family is None:
        raise ModelError(f"{path} is not supported: {reason}")
    more = dict(backbone_options or {})
    saved = None
    is_gguf = gguf_file is not None or Path(path).suffix.lower() == ".gguf"
    if is_gguf:
        kind = families.model_kind({})
    else:
        refuse_shell_of_a_folder(path)
        with load_errors(path):
            config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        saved = (getattr(config, CONFIG_KEY, None) or {}).get("family")
        if saved is not None and saved not in families.families():
            raise ModelError(f"{path} is of an unknown family {saved!r}; known: {', '.join(families.families())}")
        kind = families.model_kind(config)
    chosen = family or saved
    if chosen is None and (published := families.published_family(path)) is not None:
        cls = published
    elif chosen is None and not is_gguf and (read := logit_score_options(path, revision)) is not None:
        cls, options = TwolarModel, {**read, **options}
    elif chosen is None and not is_gguf and (stack := read_stack(path, revision)) is not None:
        backbone, tokenizer, limits = load_stack(path, stack, **origin, **more)
        return CrossEncoderModel.from_backbone(backbone, tokenizer=tokenizer, **{**limits, **options})
    elif chosen is None and not is_gguf and (modules := other_modules(path, revision)):
        raise ModelError(
            f"{path} is a model of sentence-transformers with {modules}, which no family supports; in commands "
            f"with --model, name it ce:{path} (a cross-encoder) or dense:{path} (a bi-encoder)"
        )
    else:
        chosen = chosen or (None if kind == families.CLASSIFIER else otherwise)
        cls = families.plain_family(kind) if chosen is None else families.family_class(chosen)
    origin["new_head"] = new_head and cls.own_head and kind != families.CLASSIFIER
    if saved in (None, cls.options_class.family):
        return cls.from_backbone(path, **origin, backbone_options=more, **options)
    logger.info("%s was saved as %s; its weights are loaded as %s", path, saved, cls.options_class.family)
    backbone, tokenizer = load_backbone(path, cls.backbone_class, **origin, **more)
    delattr(backbone.config, CONFIG_KEY)
    return cls.from_backbone(backbone, tokenizer=tokenizer, **options)


def _with_adapter(
    source: Source,
    name: str,
    family: str | None,
    options: dict[str, Any],
    trust_remote_code: bool,
    model_kwargs: dict[str, Any],
) -> RankerModel:
    """A ranker of an adapter's base with the adapter merged, in float32, as training saves the merged model.

    The ranking options come from the training record next to the adapter or the table of published checkpoints,
    otherwise from the base. An adapter of a sequence-classification model includes the head.
    """
    folder = Path(source.name)
    base, revision = source.adapter_base()
    record = next((p for p in (folder / RECORD_FILE, folder.parent / RECORD_FILE) if p.is_file()), None)
    recorded = {} if record is None else read_json_object(record, allow_nan=True).get("ranking_options") or {}
    own = recorded.get("family")
    kept = {} if family not in (None, own) else {name: value for name, value in recorded.items() if name != "family"}
    given: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with_head = families.model_kind(read_json_object(folder / ADAPTER_CONFIG, allow_nan=True)) == families.CLASSIFIER
    try:
        if with_head:
            cls = families.plain_family(families.CLASSIFIER)
            cls = cls if (family or own) is None else families.family_class(str(family or own))
            kept = {**(families.published_options(cls, name) or {}), **kept, **options}
            given |= {"dtype": torch.float32, "backbone_options": model_kwargs, "new_head": True}
            ranker = make_ranker(resolve(base).location(), cls.options_class.family, **given, **kept)
        else:
            given |= {"device": "cpu", "dtype": "float32", "family": family or own, "model_kwargs": model_kwargs}
            ranker = load_ranker(base, **given, **{**kept, **options})
    except ModelError as error:
        raise ModelError(f"{folder} has only the adapter of {base!r:.200}, which cannot be loaded: {error}") from error
    brought = add_adapter(ranker.backbone, folder)
    if with_head and (lacking := {name for name in newly_made_weights(ranker.backbone) if name not in brought}):
        raise ModelError(f"{folder} is the adapter of a sequence-classification model without {some_of(lacking)}")
    return ranker

"""Models that come with the package: the embedded language model, and releases, LoRA adapters that make it a ranker.

A release is a folder of `hub_cards/releases/`: an ordinary PEFT adapter, its card, and `release.json`, which names
the base and the ranking options. It is merged into the base on first use, and the result is cached for the user.
A release may have been trained from another one; both adapters are then merged, one after the other.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.caches import cache_root
from ..files.hashes import hash_file
from ..files.reading import read_json_object
from ..files.writing import replacement
from ..ranking_errors import ModelError
from .default_model import (
    DEFAULT_NAME,
    GGUF_SHA256,
    VERSION,
    default_model_folder,
    made_once,
    read_default_model,
    save_in_any_process,
)


logger = logging.getLogger(__name__)

DEFAULT = "default"
DEFAULT_RELEASE = "twolar-smollm2-135m-v2"
BASE_NAMES = ("zero-shot", DEFAULT_NAME)
RELEASE_FILE = "release.json"
RECORD_FILE = "training_run.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "use_rslora", "fan_in_fan_out", "modules_to_save", "lora_bias")


@dataclass(frozen=True)
class Release:
    """A released ranker.

    Attributes:
        name: its name, which is also its folder's.
        folder: the folder of adapter and card.
        ranking: its ranking options, including the family.
        adapter_sha256: expected checksum of its adapter's weights.
        base_sha256: the checksum of the GGUF file that it was trained from.
        below: the release whose merged model its own training started from, if any and if installed.
        below_name: the name of that release, empty if there is none.
        below_sha256: expected checksum of that release's adapter.
    """

    name: str
    folder: Path
    ranking: dict[str, Any]
    adapter_sha256: str
    base_sha256: str
    below: Release | None = None
    below_name: str = ""
    below_sha256: str = ""

    @property
    def parts(self) -> tuple[Release, ...]:
        """The releases whose adapters are merged, in order; the last one is this release."""
        return (*(self.below.parts if self.below is not None else ()), self)

    @property
    def cached_folder(self) -> Path:
        """The cache folder of the merged model: it differs for another adapter, other options or another base."""
        adapters = "".join(part.adapter_sha256 for part in self.parts)
        parts = f"{adapters}{json.dumps(self.ranking, sort_keys=True)}{GGUF_SHA256}"
        return cache_root() / "models" / f"{self.name}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"

    def check(self) -> None:
        """Raises `ModelError` if its adapter is damaged, or its base is missing or a different one."""
        if self.below is None and self.below_name:
            raise ModelError(
                f"the release {self.name} is based on {self.below_name}, which is missing: install the package again"
            )
        if self.below is not None:
            self.below.check()
            if self.below.adapter_sha256 != self.below_sha256:
                raise ModelError(f"the release {self.name} was trained from another version of {self.below.name}")
        if self.base_sha256 != GGUF_SHA256:
            raise ModelError(f"the release {self.name} was trained from another base than the embedded {DEFAULT_NAME}")
        found = hash_file(self.folder / ADAPTER_WEIGHTS)
        if found != self.adapter_sha256:
            raise ModelError(
                f"the adapter of the release {self.name} is damaged (sha256 {found[:12]}…, expected "
                f"{self.adapter_sha256[:12]}…): install the package again"
            )


@functools.cache
def releases() -> dict[str, Release]:
    """The releases of this installation by name. They are checked when they are merged."""
    try:  # same path in a checkout and an installed package; it may be missing
        folder = Path(str(importlib.resources.files(f"{__package__.partition('.')[0]}.hub_cards")), "releases")
    except ImportError:
        return {}
    paths = sorted(folder.glob(f"*/{RELEASE_FILE}"))
    return {path.parent.name: read_release(path.parent) for path in paths}


def read_release(folder: Path) -> Release:
    """The release described by a folder's `release.json`; the one it was trained from is in a sibling folder."""
    facts = read_json_object(folder / RELEASE_FILE)
    below = facts.get("on") or {}
    # Not an error yet: names are looked up for every model, release or not.
    beside = folder.parent / below["release"] if below else None
    return Release(
        name=folder.name,
        folder=folder,
        ranking=facts["ranking"],
        adapter_sha256=facts["adapter_sha256"],
        base_sha256=facts["base"]["sha256"],
        below=read_release(beside) if beside is not None and (beside / RELEASE_FILE).is_file() else None,
        below_name=below.get("release", ""),
        below_sha256=below.get("adapter_sha256", ""),
    )


def embedded_version(full_name: str) -> str:
    """What distinguishes an embedded model from another of the same name."""
    return VERSION if full_name == DEFAULT_NAME else releases()[full_name].cached_folder.name.rpartition("-")[2]


def embedded_checkpoint(full_name: str) -> str:
    """The name of an embedded model in evaluations, with its version."""
    return f"{full_name} {embedded_version(full_name)}"


def embedded_source(full_name: str) -> Path:
    """The folder to load an embedded model from.

    Raises:
        ModelError: a release's files do not belong together.
        ResourceError: the base is unavailable, or the disk has no space for a release.
    """
    if full_name == DEFAULT_NAME:
        return default_model_folder()
    release = releases()[full_name]
    folder = made_once(release.cached_folder, lambda folder: _save_merged(release, folder))
    _copy_record(release, folder)
    return folder


def _save_merged(release: Release, folder: Path) -> None:
    ranker = merged_ranker(release)
    save_in_any_process(ranker.backbone)
    ranker.save_pretrained(folder)


def _copy_record(release: Release, folder: Path) -> None:
    """Copies the training record if it differs: it may be corrected without a change of weights."""
    record, copied = release.folder / RECORD_FILE, folder / RECORD_FILE
    if record.is_file() and not (copied.is_file() and copied.read_bytes() == record.read_bytes()):
        with contextlib.suppress(OSError), replacement(copied) as temporary:  # a cache may be read-only
            shutil.copyfile(record, temporary)


def merged_ranker(release: Release, family: str | None = None, options: dict[str, Any] | None = None) -> Any:
    """The release merged into its base, in memory, in float32; as a ranker of `family` if given.

    Raises:
        ModelError: its files do not belong together.
        ResourceError: the base is unavailable.
    """
    from .families import family_class

    release.check()
    logger.info("merging %s into its base (once, up to a minute)", release.name)
    backbone, tokenizer = read_default_model()
    for part in release.parts:
        add_adapter(backbone, part.folder)
    own = release.ranking["family"]
    kept = release.ranking if family in (None, own) else {}
    chosen = {**{name: value for name, value in kept.items() if name != "family"}, **(options or {})}
    return family_class(family or own).from_backbone(backbone, tokenizer=tokenizer, **chosen)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """A plain LoRA adapter, read without PEFT: its configuration, and each layer's A and scaled B, in float32.

    Raises:
        ModelError: there is none, or it is of an unsupported kind.
    """
    config, layers, whole = _read_parts(folder)
    if whole:
        raise ModelError(f"{folder} is not a plain LoRA adapter: {next(iter(whole))}")
    return config, layers


def _read_parts(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Like `read_adapter`, with the full weights of the head in an adapter of a sequence-classification model."""
    from safetensors.torch import load_file

    if not (folder / ADAPTER_CONFIG).is_file() or not (folder / ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{folder} has no adapter ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS})")
    config = read_json_object(folder / ADAPTER_CONFIG)
    with_head = config.get("task_type") == "SEQ_CLS"
    unknown = [name for name in _UNSUPPORTED if config.get(name) and not (with_head and name == "modules_to_save")]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unknown:
        raise ModelError(f"{folder} is not a plain LoRA adapter ({', '.join(unknown) or config.get('peft_type')})")
    weights = load_file(str(folder / ADAPTER_WEIGHTS))
    layers = {}
    for key in [key for key in weights if key.endswith(".lora_A.weight")]:
        name = key.removeprefix(ADAPTER_PREFIX).removesuffix(".lora_A.weight")
        a, b = weights.pop(key).float(), weights.pop(key.replace(".lora_A.", ".lora_B.")).float()
        alpha = (config.get("alpha_pattern") or {}).get(name, config["lora_alpha"])
        layers[name] = (a, b * (alpha / len(a)))
    if (weights and not with_head) or not layers:
        raise ModelError(f"{folder} is not a plain LoRA adapter: {next(iter(weights), 'it has no matrices')}")
    return config, layers, {key.removeprefix(ADAPTER_PREFIX): weight for key, weight in weights.items()}


def add_adapter(backbone: Any, folder: Path) -> set[str]:
    """Adds a LoRA adapter's scaled B A to the weights of a plain model, in place, and copies its head, if any.

    Returns:
        Names of the head's weights.

    Raises:
        ModelError: as `read_adapter`, or the adapter is for another model.
    """
    import torch  # late import: names are looked up before anything is loaded

    layers, weights = dict(backbone.named_modules()), dict(backbone.named_parameters())
    _, low_rank, whole = _read_parts(folder)
    for name, value in whole.items():
        if name not in weights or weights[name].shape != value.shape:
            raise ModelError(f"{folder} is an adapter for another model: {name} does not fit")
        with torch.no_grad():
            weights[name].copy_(value)
    for name, (a, b) in low_rank.items():
        layer: Any = layers.get(name)
        if layer is None or layer.weight.shape != (b.shape[0], a.shape[1]):
            raise ModelError(f"{folder} is an adapter for another model: {name} does not fit")
        with torch.no_grad():
            layer.weight += (b @ a).to(layer.weight.dtype)
    return set(whole)

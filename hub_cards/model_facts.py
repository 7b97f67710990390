"""The known facts about a model to publish: its configuration, weights, training and evaluations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modeling_tsarank.files.hashes import hash_folder
from modeling_tsarank.files.reading import read_json, read_json_object
from modeling_tsarank.modeling_ranker import RankerModel
from modeling_tsarank.models.embedded_models import RECORD_FILE, embedded_checkpoint, releases
from modeling_tsarank.models.families import family_class, model_kind, plain_family
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.ranking_options import CONFIG_KEY, RankingOptions
from modeling_tsarank.scores.calibration import CALIBRATION_FILE, Calibration


RECORD_NAME = RECORD_FILE
EVALUATIONS = "evaluations.json"
"""File of a release: the list of `metrics.json` contents that `tsarank evaluate` wrote for each test collection."""


@dataclass(frozen=True)
class BaseModel:
    """The model that a training started from.

    Attributes:
        name: A Hub id, or the name of a local model.
        on_hub: Whether `name` is a Hub id.
        revision: Its commit, if pinned.
        license: The Hub's identifier, or `None` if unknown.
    """

    name: str
    on_hub: bool
    revision: str | None = None
    license: str | None = None


@dataclass
class ModelFacts:
    """All facts in a model card.

    Attributes:
        folder: The folder to publish.
        config: Its config.json; for an adapter, its adapter_config.json.
        family: Its family, or `None` for a language model without ranking options.
        options: The ranking options.
        adapter: Whether the folder contains only an adapter.
        base: The base model, or `None` if unknown.
        training: The training record, or `None`.
        evaluations: Results on test collections, as written to `metrics.json` by `tsarank evaluate`.
        parameters: Number of parameters.
        dtype: Dtype of the weights.
    """

    folder: Path
    config: dict[str, Any]
    family: type[RankerModel] | None
    options: dict[str, Any]
    adapter: bool
    base: BaseModel | None
    training: dict[str, Any] | None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    dtype: str = ""

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in its folder. Raises `InputError` if it is invalid."""
        path = self.folder / CALIBRATION_FILE
        return Calibration.load(path) if path.is_file() else None

    @property
    def encoder_decoder(self) -> bool:
        """Whether the backbone is an encoder-decoder, from the configuration or the adapter."""
        return bool(self.config.get("is_encoder_decoder")) or self.config.get("task_type") == "SEQ_2_SEQ_LM"

    @property
    def kind(self) -> str:
        """Kind of the backbone, as in `RankerModel.default_for`."""
        return model_kind({**self.config, "is_encoder_decoder": self.encoder_decoder})

    @property
    def ranks_as(self) -> type[RankerModel]:
        """Its family; for a plain model the one it gets by default."""
        return self.family or plain_family(self.kind)

    @property
    def ranking(self) -> RankingOptions:
        """Its ranking options, for a plain model the defaults. Raises `ModelError` for an unknown option."""
        return self.ranks_as.options_class.from_dict(self.options)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The trainings that led to this model, in order."""
        found: list[dict[str, Any]] = []
        record = self.training
        while record is not None:
            found.insert(0, record)
            record = (record.get("started_from") or {}).get("training")
        return found


def read_model(folder: Path, base_model: str | None = None, base_revision: str | None = None) -> ModelFacts:
    """The facts of a saved folder: a ranker, a plain model from continual pre-training, or an adapter.

    Args:
        folder: Written by `save_pretrained` or by a training.
        base_model, base_revision: Hub id and commit of the base model; `None` takes them from the training record.

    Raises:
        InputError: No such folder, or an unreadable file in it.
        ModelError: It contains no model, or one whose weights are not safetensors.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    path = folder / ("adapter_config.json" if adapter else "config.json")
    if not path.is_file():
        hint = "; it contains only an adapter: publish it with --adapter-only" if (folder / "adapter").is_dir() else ""
        raise ModelError(f"{folder} is not a model folder: it has no config.json{hint}")
    config = read_json_object(path, allow_nan=True)
    if not adapter and not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} has no model_type")
    record_at = next((p for p in (folder / RECORD_NAME, folder.parent / RECORD_NAME) if p.is_file()), None)
    record = None if record_at is None else read_training_record(record_at)
    if not adapter and record_at is not None and record_at.parent != folder:
        record = None  # the record next to a whole model's folder is of another model
    options = config.get(CONFIG_KEY) or (record or {}).get("ranking_options") or {}
    try:
        family = family_class(options["family"]) if "family" in options else None
    except InputError as error:
        raise ModelError(f"{folder}: {error}; is the package that defines it installed?") from error
    base = _base_of(config, record, adapter, base_model, base_revision)
    parameters, dtype = _weights(folder)
    return ModelFacts(folder, config, family, options, adapter, base, record, parameters=parameters, dtype=dtype)


_TEXT, _NUMBER = (str, type(None)), (int, float, type(None))
_RECORD: dict[str, Any] = {
    "kind": {"cpt", "sft", "distill"},
    **{"settings": dict, "versions": dict, "evaluations": list, "steps": int, "finished": str},
    **{"epochs": _NUMBER, "seconds": _NUMBER, "final_loss": _NUMBER, "resumed_from_step": _NUMBER},
    "best_checkpoint_metric": _TEXT,
    "data": {**dict.fromkeys(("name", "fingerprint", "config", "split"), _TEXT), "rows": _NUMBER},
    "trained": {"part": {"lora", "top_blocks", "full"}, "parameters": int, "of": int},
    "hardware": {"device": str, "processes": int},
}
"""The fields of a training record that a card uses, and their types."""


def read_training_record(path: Path) -> dict[str, Any]:
    """The record of a training, and those of the trainings before it.

    Raises:
        InputError: It is not a JSON object, or a field is missing or has another type; names the field.
    """
    record = read_json_object(path, allow_nan=True)
    stage: Any = record
    while stage is not None:
        fault = _fault(stage, _RECORD)
        start = stage.get("started_from") if fault is None else None
        if fault is None and not isinstance(start, dict | None):
            fault = "started_from"
        if fault is not None:
            raise InputError(f"{path} is not a valid tsarank training record: see {fault!r}; remove or repair it")
        stage = (start or {}).get("training")
    return record


def _fault(value: Any, shape: dict[str, Any]) -> str | None:
    """The first field that is missing or has another type."""
    if not isinstance(value, dict):
        return "started_from.training"
    for name, kind in shape.items():
        found = value.get(name, ...)
        if isinstance(kind, dict):
            if (inner := _fault(found, kind)) is not None:
                return f"{name}.{inner}" if isinstance(found, dict) else name
        elif not (isinstance(found, str) and found in kind if isinstance(kind, set) else isinstance(found, kind)):
            return name
    return None


def _base_of(
    config: dict[str, Any], record: dict[str, Any] | None, adapter: bool, model: str | None, revision: str | None
) -> BaseModel | None:
    """The base model of the first training in the chain; values given by the user override recorded ones."""
    start = (record or {}).get("started_from") or {}
    # An adapter's base is the model it was trained on; a whole model's is that of the first training.
    while not adapter and start.get("training"):
        start = start["training"].get("started_from") or {}
    name = start.get("name") or (config.get("base_model_name_or_path") if adapter else None)
    base = None
    if name:
        on_hub = not start.get("local", not start) and not Path(name).exists()
        base = BaseModel(name if on_hub else Path(name).name, on_hub, config.get("revision"), start.get("license"))
    if model:
        same = base is not None and base.name == model
        base = BaseModel(model, True, base.revision if base and same else None, base.license if base else None)
    if revision:
        if base is None:
            raise InputError("the base model is not recorded; give it with --base-model")
        base = replace(base, revision=revision)
    return base


def _weights(folder: Path) -> tuple[int, str]:
    """Number of parameters and their most frequent dtype, from the headers of the safetensors files."""
    from safetensors import SafetensorError, safe_open

    dtypes = Counter[str]()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} has no weights in safetensors, the only format that is published")
    for path in files:
        if path.name == "trained_weights.safetensors":
            continue
        try:
            with safe_open(path, "numpy") as tensors:
                for piece in map(tensors.get_slice, tensors.keys()):
                    dtypes[piece.get_dtype()] += math.prod(piece.get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is not a readable safetensors file ({error})") from error
    return dtypes.total(), max(dtypes, key=lambda name: dtypes[name], default="")


def release_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The results included in a release, if the folder is the release's merged model."""
    for release in releases().values():
        path = release.folder / EVALUATIONS
        if release.cached_folder == folder and path.is_file():
            found = read_json(path)
            return [one for one in found if one["checkpoint"] == embedded_checkpoint(release.name)]
    return []


def read_evaluations(paths: Sequence[Path], folder: Path, other_checkpoint: bool = False) -> list[dict[str, Any]]:
    """The results of `tsarank evaluate`, checked to be of this checkpoint.

    Args:
        paths: Output folders of `tsarank evaluate`, their dataset folders, or metrics.json files.
        folder: The evaluated model.
        other_checkpoint: Also accept results of other files, for example of the same model before it was moved.

    Raises:
        InputError: No results were found, or they are of other weights than the folder's.
    """
    found: dict[str, dict[str, Any]] = {}
    # Names of this folder's weights in evaluations: a release's name, and a content hash for all.
    own = [embedded_checkpoint(one.name) for one in releases().values() if one.cached_folder == folder]
    own += [f"sha256:{hash_folder(folder)[:16]}"] if paths else []
    for path in paths:
        files = [path] if path.is_file() else sorted([*path.glob("metrics.json"), *path.glob("*/metrics.json")])
        if not files:
            raise InputError(f"{path} contains no metrics.json; give the output folder of `tsarank evaluate`")
        for file in files:
            values = read_json_object(file, allow_nan=True)
            if "measures" not in values or "dataset" not in values:
                raise InputError(f"{file} was not written by `tsarank evaluate`")
            if values.get("checkpoint") not in own and not other_checkpoint:
                raise InputError(
                    f"{file} was measured on {values.get('checkpoint')}, but {folder} is {own[-1]}: evaluate this "
                    "folder, or add --accept-other-checkpoint if its weights are the same"
                )
            found[values["dataset"]] = values
    return [found[name] for name in sorted(found)]

"""What is known of a model that is to be published: its configuration, its weights, its training, its evaluations."""

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
"""Of a release: a list of what `tsarank evaluate` wrote into `metrics.json` on each test collection."""


@dataclass(frozen=True)
class BaseModel:
    """The model that a training started from.

    Attributes:
        name: a Hub id, or the name of a local model.
        on_hub: whether `name` is a Hub id.
        revision: a commit of it, where it is pinned.
        license: the Hub's identifier, or `None` where it is not known.
    """

    name: str
    on_hub: bool
    revision: str | None = None
    license: str | None = None


@dataclass
class ModelFacts:
    """Everything a card says of a model.

    Attributes:
        folder: the folder that is published.
        config: its config.json; of an adapter, its adapter_config.json.
        family: its family, or `None` for a language model without ranking options.
        options: the ranking options.
        adapter: whether the folder holds only an adapter.
        base: the base model, or `None` where nothing is known of one.
        training: what the training recorded, or `None`.
        evaluations: results on test collections, as `tsarank evaluate` wrote them into `metrics.json`.
        parameters: number of weights.
        dtype: of the weights.
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
        """The calibration in its folder. Raises `InputError` for a damaged one."""
        path = self.folder / CALIBRATION_FILE
        return Calibration.load(path) if path.is_file() else None

    @property
    def encoder_decoder(self) -> bool:
        """Whether the backbone is one, as configuration or adapter say."""
        return bool(self.config.get("is_encoder_decoder")) or self.config.get("task_type") == "SEQ_2_SEQ_LM"

    @property
    def kind(self) -> str:
        """Of the backbone, as in `RankerModel.default_for`."""
        return model_kind({**self.config, "is_encoder_decoder": self.encoder_decoder})

    @property
    def ranks_as(self) -> type[RankerModel]:
        """Its family, of a plain model the one that it becomes where nobody names another."""
        return self.family or plain_family(self.kind)

    @property
    def ranking(self) -> RankingOptions:
        """Its ranking options, of a plain model the defaults. Raises `ModelError` for one that is not known."""
        return self.ranks_as.options_class.from_dict(self.options)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The trainings that led here, the first one first."""
        found: list[dict[str, Any]] = []
        record = self.training
        while record is not None:
            found.insert(0, record)
            record = (record.get("started_from") or {}).get("training")
        return found


def read_model(folder: Path, base_model: str | None = None, base_revision: str | None = None) -> ModelFacts:
    """The facts of a saved folder: a ranker, a plain model that continual pre-training made, or an adapter.

    Args:
        folder: what `save_pretrained` or a training wrote.
        base_model, base_revision: Hub id and commit of the base model; `None` looks them up in the record.

    Raises:
        InputError: no such folder, or a file in it that cannot be read.
        ModelError: it holds no model, or none whose weights are safetensors.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    path = folder / ("adapter_config.json" if adapter else "config.json")
    if not path.is_file():
        hint = "; it holds only an adapter: publish that with --adapter-only" if (folder / "adapter").is_dir() else ""
        raise ModelError(f"{folder} is no model folder: it holds no config.json{hint}")
    config = read_json_object(path, allow_nan=True)
    if not adapter and not isinstance(config.get("model_type"), str):
        raise ModelError(f"{path} names no model_type")
    record_at = next((p for p in (folder / RECORD_NAME, folder.parent / RECORD_NAME) if p.is_file()), None)
    record = None if record_at is None else read_training_record(record_at)
    if not adapter and record_at is not None and record_at.parent != folder:
        record = None  # the record beside a whole model's folder is another model's
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
"""The fields of a training record that a card is made of, and their types."""


def read_training_record(path: Path) -> dict[str, Any]:
    """What a training recorded, and the trainings before it.

    Raises:
        InputError: it is no JSON object, or one of its fields is missing or of another type; names the field.
    """
    record = read_json_object(path, allow_nan=True)
    stage: Any = record
    while stage is not None:
        fault = _fault(stage, _RECORD)
        start = stage.get("started_from") if fault is None else None
        if fault is None and not isinstance(start, dict | None):
            fault = "started_from"
        if fault is not None:
            raise InputError(f"{path} is no training record as tsarank writes it: see {fault!r}; remove or mend it")
        stage = (start or {}).get("training")
    return record


def _fault(value: Any, shape: dict[str, Any]) -> str | None:
    """The first field that is missing or of another type."""
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
    """The first model of the chain of trainings, with what the user says of it put over what was recorded."""
    start = (record or {}).get("started_from") or {}
    # An adapter belongs to the model it was trained on; a whole model descends from the first of all.
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
            raise InputError("nothing is recorded of a base model; name it with --base-model")
        base = replace(base, revision=revision)
    return base


def _weights(folder: Path) -> tuple[int, str]:
    """Number of weights and their most frequent dtype, read from the headers of the safetensors files."""
    from safetensors import SafetensorError, safe_open

    dtypes = Counter[str]()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no weights in safetensors, the only kind that is published")
    for path in files:
        if path.name == "trained_weights.safetensors":
            continue
        try:
            with safe_open(path, "numpy") as tensors:
                for piece in map(tensors.get_slice, tensors.keys()):
                    dtypes[piece.get_dtype()] += math.prod(piece.get_shape())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is no readable safetensors file ({error})") from error
    return dtypes.total(), max(dtypes, key=lambda name: dtypes[name], default="")


def release_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The results that a release brings along, if the folder is the release's merged model."""
    for release in releases().values():
        path = release.folder / EVALUATIONS
        if release.cached_folder == folder and path.is_file():
            found = read_json(path)
            return [one for one in found if one["checkpoint"] == embedded_checkpoint(release.name)]
    return []


def read_evaluations(paths: Sequence[Path], folder: Path, other_checkpoint: bool = False) -> list[dict[str, Any]]:
    """The results of `tsarank evaluate`, if they are results of this very folder.

    Args:
        paths: output folders of `tsarank evaluate`, one dataset's folders of them, or metrics.json files.
        folder: the evaluated model.
        other_checkpoint: takes results of other files as well, for example of the same model before it was moved.

    Raises:
        InputError: nothing was found there, or it was measured on other weights than the folder's.
    """
    found: dict[str, dict[str, Any]] = {}
    # What evaluations call this folder's weights: a release by its name, all by their content.
    own = [embedded_checkpoint(one.name) for one in releases().values() if one.cached_folder == folder]
    own += [f"sha256:{hash_folder(folder)[:16]}"] if paths else []
    for path in paths:
        files = [path] if path.is_file() else sorted([*path.glob("metrics.json"), *path.glob("*/metrics.json")])
        if not files:
            raise InputError(f"{path} holds no metrics.json; give the folder that `tsarank evaluate --output` wrote")
        for file in files:
            values = read_json_object(file, allow_nan=True)
            if "measures" not in values or "dataset" not in values:
                raise InputError(f"{file} was not written by `tsarank evaluate`")
            if values.get("checkpoint") not in own and not other_checkpoint:
                raise InputError(
                    f"{file} was measured on {values.get('checkpoint')}, but {folder} is {own[-1]}: evaluate this "
                    "folder, or say --accept-other-checkpoint if its weights are the same"
                )
            found[values["dataset"]] = values
    return [found[name] for name in sorted(found)]

"""Publishing a model: a self-contained repository of a ranker, or an adapter with a pinned base model."""

from __future__ import annotations

import glob
import inspect
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.hub_cards.file_selection import LICENSES, PublishedFile, Selection, select_files
from modeling_tsarank.hub_cards.model_cards import render_model_card
from modeling_tsarank.hub_cards.model_facts import (
    RECORD_NAME,
    BaseModel,
    ModelFacts,
    read_evaluations,
    read_model,
    release_evaluations,
)
from modeling_tsarank.hub_cards.uploading import (
    BROKEN_CONNECTIONS,
    CARD_NAME,
    DEFAULT_TAG,
    UNKNOWN_LICENSE,
    Publication,
)
from modeling_tsarank.models.embedded_models import RELEASE_FILE
from modeling_tsarank.ranking_errors import InputError, ModelError, ResourceError
from modeling_tsarank.scores.calibration import CALIBRATION_FILE


_RANKER = ("config.json", "generation_config.json", "modules.json", "config_sentence_transformers.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARY = ("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
# Files that an adapter includes as well.
_BESIDE = (RECORD_NAME, CALIBRATION_FILE, *_TOKENIZER, *_VOCABULARY, "chat_template.jinja")
_TEXTS = ("chat_template.json", "additional_chat_templates/*.jinja", *LICENSES)
_FILES = (*_RANKER, *_BESIDE, *_TEXTS)
INDEX_NAME = "model.safetensors.index.json"
UNKNOWN_COMMIT = "COMMIT"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", *_BESIDE, *_TEXTS)
_WEIGHTS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.bin",
    "*.bin.index.json",
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
)


@dataclass(frozen=True)
class ModelOptions:
    """The user's options of a publication.

    Attributes:
        tag: Revision to create; used in the card's snippets.
        private: Whether the repository is private; `None` creates a private one and leaves an existing one unchanged.
        license: The Hub's identifier; `None` takes the base model's.
        license_name: Name of a licence without an identifier (`license` is then "other").
        languages: ISO codes.
        base_model, base_revision: Hub id and commit of the base model, if not recorded.
        results: Output folders of `tsarank evaluate`.
        accept_other_checkpoint: Accept results measured on other files.
        adapter_only: Publish the adapter and not the merged model.
        include: Patterns of further files of the folder.
        not_secret: Paths with false positives of the secret scan.
        message: Commit message.
        token: Hub token; `None` takes the user's own.
        unknown_license: If no licence is known, publish with the licence "unknown" instead of requiring one.
    """

    tag: str = DEFAULT_TAG
    private: bool | None = True
    license: str | None = None
    license_name: str | None = None
    languages: Sequence[str] = ()
    base_model: str | None = None
    base_revision: str | None = None
    results: Sequence[Path] = ()
    accept_other_checkpoint: bool = False
    adapter_only: bool = False
    include: Sequence[str] = ()
    not_secret: Sequence[str] = ()
    message: str | None = None
    token: str | None = None
    unknown_license: bool = False


def prepare_model(folder: Path, repo_id: str, options: ModelOptions | None = None) -> Publication:
    """Everything but the upload: facts, files and card. `folder` is not changed.

    The Hub is queried only for missing facts: the licence and the commit of a base model, if not given. If one of them
    is not found, the publication lists this in `refusals`.

    Raises:
        InputError, ModelError: Something is missing or unusable; the message is one line.
    """
    options = options or ModelOptions()
    source = _adapter_folder(folder) if options.adapter_only else folder
    if options.adapter_only and (source / RELEASE_FILE).is_file():
        below = read_json_object(source / RELEASE_FILE).get("on")
        if below is not None:
            raise ModelError(
                f"{source} is an adapter on another release, not on a model of the Hub; publish the merged model"
            )
    facts = read_model(source, options.base_model, options.base_revision)
    if options.adapter_only != facts.adapter:
        raise ModelError(f"{folder} contains only an adapter; publish it with --adapter-only, or merge it first")
    refusals: list[str] = []

    def known(ask: Callable[[], str], unknown: str) -> str:
        """The result of `ask`, or the text for an unknown fact."""
        try:
            return ask()
        except (InputError, ResourceError) as error:
            refusals.append(str(error))
            return unknown

    if facts.adapter:
        base = _base_of_adapter(facts)
        facts.base = replace(base, revision=known(lambda: _commit_of(base, options.token), UNKNOWN_COMMIT))
    given = read_evaluations(options.results, folder, options.accept_other_checkpoint)
    facts.evaluations = given or release_evaluations(folder)
    license_id = options.license or (facts.base.license if facts.base else None)
    license_id = license_id or known(lambda: _base_license(facts.base, options), UNKNOWN_LICENSE)
    selection = (_select_adapter if facts.adapter else select_model_files)(facts, options.include)
    card = render_model_card(facts, repo_id, options.tag, license_id, options.languages, options.license_name)
    selection.add(CARD_NAME, card.encode("utf-8"))
    # Weights, code and configuration of an earlier version, which loaders would prefer or mix with the new ones.
    stale = (*_WEIGHTS, *_RANKER, *_BESIDE, "adapter_config.json", "*.py")
    return Publication(
        selection,
        repo_id,
        "model",
        options.tag,
        options.private,
        options.message,
        stale,
        options.not_secret,
        refusals,
        token=options.token,
    )


# ---- files -----------------------------------------------------------------------------------------


def select_model_files(facts: ModelFacts, include: Sequence[str] = ()) -> Selection:
    """The files of a whole model, without its card. Raises `ModelError` if one of them is missing."""
    folder, code = facts.folder, _code(facts)
    wanted = (*map(glob.escape, (*_weight_names(folder), *code)), *_FILES)
    selection = select_files(folder, wanted, include)
    for name, file in code.items():
        selection.add(name, file)
    plain = "sentence_transformers" in facts.config  # the config says how to load it as a CrossEncoder
    if facts.family is not None and "modules.json" not in selection.paths and not plain:
        from modeling_tsarank.crossencoder_tsarank import write_cross_encoder_files

        with tempfile.TemporaryDirectory(prefix="tsarank-publish-") as staging:
            write_cross_encoder_files(staging)
            for file in Path(staging).iterdir():
                selection.add(file.name, PublishedFile(file.name, file).read())
    if "tokenizer.json" not in selection.paths:
        raise ModelError(f"{folder} has no tokenizer.json; save the tokenizer with the model")
    return selection


def _weight_names(folder: Path) -> set[str]:
    """The weight files that a loader reads: one, or the shards listed in the index."""
    index = folder / INDEX_NAME
    if (folder / "model.safetensors").is_file():
        return {"model.safetensors"}
    if not index.is_file():
        raise ModelError(f"{folder} has neither model.safetensors nor {INDEX_NAME}")
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelError(f"{index} lists no weight files (weight_map)")
    names = set(weight_map.values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise ModelError(f"{folder} lacks {missing[0]}, which is listed in its index")
    return {*names, INDEX_NAME}


def _code(facts: ModelFacts) -> dict[str, Path]:
    """The modeling files by name: the folder's own, or the installed ones if its own predate `modules.json`."""
    from transformers.dynamic_module_utils import get_relative_import_files

    if facts.family is None:
        return {}
    reference = (facts.config.get("auto_map") or {}).get("AutoModel")
    if not isinstance(reference, str):
        raise ModelError(f"{facts.folder} has ranking options but no auto_map; save it with save_pretrained")
    own = facts.folder / f"{reference.partition('.')[0]}.py"
    if not (facts.folder / "modules.json").is_file() or not own.is_file():
        own = Path(inspect.getfile(facts.family))
    # A family that is defined elsewhere does not import the last two.
    entries = [own, own.with_name("pipeline_text_ranking.py"), own.with_name("crossencoder_tsarank.py")]
    try:
        files = [file for entry in entries for file in (entry, *map(Path, get_relative_import_files(entry)))]
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{own.parent} lacks a modeling file ({error}); save the model again") from error
    return {file.name: file for file in files}


def _select_adapter(facts: ModelFacts, include: Sequence[str]) -> Selection:
    assert facts.base is not None
    selection = select_files(facts.folder, _ADAPTER_FILES, include)
    config = {**facts.config, "base_model_name_or_path": facts.base.name, "revision": facts.base.revision}
    selection.add("adapter_config.json", (json.dumps(config, indent=2) + "\n").encode())
    # A training writes its record, and with a merged model the tokenizer, next to the folder `adapter`, not into it.
    for name in _BESIDE:
        beside = facts.folder.parent / name
        if facts.folder.name == "adapter" and name not in selection.paths and beside.is_file():
            selection.add(name, beside)
    return selection


def _adapter_folder(folder: Path) -> Path:
    inner = folder / "adapter"
    found = inner if (inner / "adapter_config.json").is_file() else folder
    if not (found / "adapter_config.json").is_file():
        raise ModelError(f"{folder} has no adapter (adapter_config.json)")
    return found


# ---- the base model --------------------------------------------------------------------------------


def _base_of_adapter(facts: ModelFacts) -> BaseModel:
    """The base model on the Hub. Raises `InputError` if it is not there, `ModelError` without ranking options."""
    base = facts.base
    if base is None or not base.on_hub:
        name = "no base model is recorded" if base is None else f"its base {base.name} is a local model"
        raise InputError(f"an adapter can only be used with a base on the Hub, but {name}; give --base-model HUB_ID")
    if not facts.options:
        raise ModelError(f"no {RECORD_NAME} next to {facts.folder} with ranking options; train with this version")
    return base


def _commit_of(base: BaseModel, token: str | None) -> str:
    """The commit of the base model's revision: itself, or looked up on the Hub for a branch or a tag."""
    if base.revision and re.fullmatch(r"[0-9a-f]{40}", base.revision):
        return base.revision
    return str(_model_info(base.name, "--base-revision COMMIT, of 40 digits", token, base.revision).sha)


def _base_license(base: BaseModel | None, options: ModelOptions) -> str:
    if options.unknown_license:
        return UNKNOWN_LICENSE
    if base is None or not base.on_hub:
        raise InputError("the license is not recorded; give --license, such as apache-2.0 (the Hub's identifiers)")
    card: Any = _model_info(base.name, "--license", options.token).card_data
    if card is None or not isinstance(card.get("license"), str):
        raise InputError(f"the card of {base.name} has no license; give yours with --license")
    return str(card["license"])


def _model_info(name: str, option: str, token: str | None, revision: str | None = None) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi(token=token).model_info(name, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise InputError(f"the Hub has no information on {name} ({type(error).__name__}); give {option}") from error
    except BROKEN_CONNECTIONS as error:
        raise ResourceError(f"the Hub cannot be reached to look up {name}; give {option}") from error

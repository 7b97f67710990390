"""From trained adapters to a release: the adapters of all stages merged into one, with the files to load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from modeling_tsarank.files.hashes import hash_file
from modeling_tsarank.files.reading import read_json_object
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.models.default_model import GGUF_NAME, GGUF_SHA256, PACKAGE, VERSION
from modeling_tsarank.models.embedded_models import (
    ADAPTER_CONFIG,
    ADAPTER_PREFIX,
    ADAPTER_WEIGHTS,
    RELEASE_FILE,
    merged_ranker,
    read_adapter,
    read_release,
)
from modeling_tsarank.ranking_errors import InputError, ModelError
from modeling_tsarank.ranking_options import CONFIG_KEY
from modeling_tsarank.trainers.checkpoint_files import whole_files
from modeling_tsarank.trainers.training_record import RECORD_NAME


ADAPTER_LIMIT = 20_000_000
JOIN = "+"


def stack_adapters(folders: Sequence[str | Path], output: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    """Merges several LoRA adapters, each trained on the merge of those before, into one with the same total update.

    The sum of the updates, s1 B1 A1 + s2 B2 A2, is [B1 s1, B2 s2] [A1; A2]: exact, at the sum of the ranks. Layers
    may have different ranks; every scaling of the result is 1.

    Args:
        folders: PEFT folders of the same base model; checkpoints of one stage, joined by `+`, count as one adapter,
            the mean of their matrices.
        output: a PEFT folder is written here, for `PeftModel.from_pretrained` on the base.
        dtype: dtype of the matrices; rounding is the only loss.

    Returns:
        Bytes of the adapter's weights.

    Raises:
        InputError: a folder contains no plain LoRA adapter, or they are incompatible.
    """
    if not folders:
        raise InputError("no adapter was given; give at least one folder")
    try:
        parts = [_mean_adapter(str(folder).split(JOIN)) for folder in folders]
    except ModelError as error:
        raise InputError(str(error)) from error
    stacked: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for folder, (_, layers) in zip(folders, parts, strict=True):
        for name, (a, b) in layers.items():
            above, beside = stacked.setdefault(name, ([], []))
            if above and (above[0].shape[1] != a.shape[1] or beside[0].shape[0] != b.shape[0]):
                raise InputError(f"{folder} is an adapter for another model: {name} does not fit")
            above.append(a)
            beside.append(b)
    weights, ranks = {}, {}
    for name, (above, beside) in sorted(stacked.items()):
        a, b = torch.cat(above), torch.cat(beside, dim=1)
        ranks[name] = len(a)
        weights[f"{ADAPTER_PREFIX}{name}.lora_A.weight"] = a.to(dtype).contiguous()
        weights[f"{ADAPTER_PREFIX}{name}.lora_B.weight"] = b.to(dtype).contiguous()
    usual = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != usual}
    config = {**parts[0][0], "target_modules": _targets([config for config, _ in parts], list(ranks))}
    config |= {"base_model_name_or_path": None, "r": usual, "lora_alpha": usual, "lora_dropout": 0.0}
    config |= {"inference_mode": True, "rank_pattern": others, "alpha_pattern": others}
    with whole_files(output) as folder:
        save_file(weights, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})
        write_json(folder / ADAPTER_CONFIG, config)
    return (output / ADAPTER_WEIGHTS).stat().st_size


def _mean_adapter(folders: Sequence[str]) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """The first folder's configuration, and the mean of each layer's A and scaled B."""
    read = [read_adapter(Path(folder)) for folder in folders]
    layers = [one for _, one in read]
    shapes = [{name: (a.shape, b.shape) for name, (a, b) in one.items()} for one in layers]
    if any(one != shapes[0] for one in shapes):
        raise InputError(f"{JOIN.join(folders)} are not checkpoints of one training: their layers differ")
    return read[0][0], {
        name: (sum(one[name][0] for one in layers) / len(layers), sum(one[name][1] for one in layers) / len(layers))
        for name in layers[0]
    }


def _targets(configs: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Short layer names if they match the whole model, as they did for the adapters; else full names."""
    lists = [config["target_modules"] for config in configs if isinstance(config.get("target_modules"), list)]
    short = sorted({name for one in lists for name in one})
    if all(any(name == target or name.endswith(f".{target}") for target in short) for name in names):
        return short
    return sorted(names)


def record_example(release: str | Path, query: str, documents: str | Path) -> dict[str, float]:
    """Ranks the documents of a file with the release, merged in memory in float32, and records the scores in it.

    Returns:
        The scores by document id. They reveal any later change in how the release encodes or scores.
    """
    from modeling_tsarank.cache.state_files import read_documents

    found = read_documents(str(documents), None)
    scores = merged_ranker(read_release(Path(release))).predict([(query, one.text) for one in found])
    by_id = {one.id: round(float(score), 6) for one, score in zip(found, scores, strict=True)}
    path = Path(release) / RELEASE_FILE
    facts = read_json_object(path)
    facts["example"] = {"query": query, "documents": Path(documents).name, "scores": by_id}
    write_json(path, facts)
    return by_id


def make_release(adapters: Sequence[str | Path], ranker: str | Path, output: str | Path, on: str | None = None) -> int:
    """Writes a release folder: the merged adapter in bfloat16, `release.json`, and the training record.

    Args:
        adapters: one per stage, the first one trained on the embedded language model itself or on the release `on`.
        ranker: the ranking folder written by the last stage; its ranking options become the release's.
        output: the folder, with the name of the release.
        on: the name of a release next to `output`, whose adapter is merged before these.

    Returns:
        Bytes of the adapter's weights.

    Raises:
        InputError: the release `on`, the ranker or an adapter is missing, or the adapter exceeds the size limit of a
            release.
    """
    ranker, output = Path(ranker), Path(output)
    config = ranker / "config.json"
    ranking = read_json_object(config).get(CONFIG_KEY) if config.is_file() else None
    if not ranking:
        raise InputError(f"{ranker} is not a ranking folder: its config.json has no {CONFIG_KEY!r}")
    record = ranker / RECORD_NAME
    if not record.is_file():
        raise InputError(f"{ranker} was not written by a training: it has no {RECORD_NAME}")
    if on and (on != Path(on).name or on == output.name):
        raise InputError(f"--on must be another release, by the name of its folder next to {output}, got {on!r}")
    below = output.parent / on / RELEASE_FILE if on else None
    if below is not None and not below.is_file():
        raise InputError(f"there is no release {on!r} next to {output}: {below} is missing")
    size = stack_adapters(adapters, output)
    if size > ADAPTER_LIMIT:
        raise InputError(f"the adapter has {size:,} bytes, a release at most {ADAPTER_LIMIT:,}: lower the rank")
    base = {"package": PACKAGE, "version": VERSION, "file": GGUF_NAME, "sha256": GGUF_SHA256}
    facts: dict[str, Any] = {"base": base}
    if below is not None:
        facts["on"] = {"release": on, "adapter_sha256": read_release(below.parent).adapter_sha256}
    facts |= {"adapter_sha256": hash_file(output / ADAPTER_WEIGHTS), "ranking": ranking}
    write_json(output / RECORD_NAME, read_json_object(record, allow_nan=True))
    write_json(output / RELEASE_FILE, facts)
    return size

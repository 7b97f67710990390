"""Weights written anew in files of a bounded size, with never more than one of them in memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from modeling_tsarank.files.writing import write_json
from modeling_tsarank.hub_cards.model_facts import safetensors_header
from modeling_tsarank.ranking_errors import ResourceError


INDEX_NAME = "model.safetensors.index.json"


def reshard(files: Sequence[Path], folder: Path, limit: int) -> list[Path]:
    """Copies tensors into files of at most `limit` bytes each (a larger single tensor gets its own), with an index.

    Args:
        files: safetensors files of one model.
        folder: an empty folder for the new ones.

    Returns:
        The files written: `model.safetensors` where one is enough, else the shards and the index.

    Raises:
        ResourceError: the disk has no room.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    groups = _plan(files, limit)
    needed, free = sum(path.stat().st_size for path in files), shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(f"re-sharding needs {needed:,} bytes in {folder}, where {free:,} are free; set TMPDIR")
    written, weight_map = [], dict[str, str]()
    for i, group in enumerate(groups, 1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for tensor, path in group:
            with safe_open(path, framework="pt") as reader:
                tensors[tensor] = reader.get_tensor(tensor)
            weight_map[tensor] = name
        save_file(tensors, folder / name, metadata={"format": "pt"})
        written.append(folder / name)
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": sum(_sizes(files).values())},
            "weight_map": dict(sorted(weight_map.items())),
        }
        path = folder / INDEX_NAME
        write_json(path, index)
        written.append(path)
    return written


def _sizes(files: Sequence[Path]) -> dict[str, int]:
    sizes = {}
    for path in files:
        for name, tensor in safetensors_header(path).items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                sizes[name] = end - start
    return sizes


def _plan(files: Sequence[Path], limit: int) -> list[list[tuple[str, Path]]]:
    """Which tensor goes into which file, in their order."""
    sizes = _sizes(files)
    groups: list[list[tuple[str, Path]]] = []
    filled = 0
    for path in files:
        for name in safetensors_header(path):
            if name == "__metadata__":
                continue
            if not groups or filled + sizes[name] > limit:
                groups.append([])
                filled = 0
            groups[-1].append((name, path))
            filled += sizes[name]
    return groups

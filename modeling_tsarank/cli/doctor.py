"""`tsarank doctor`: this machine, its packages, caches and network, and how fast a model ranks on it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ..files.caches import cache_root
from ..files.sizes import readable_size
from ..files.versions import installed_version
from ..models.arguments import add_model_arguments, model_from_arguments
from ..ranking_errors import TSARankError
from .command_line import add_command, one_line, real


_EXAMPLES = """\
  tsarank doctor
  tsarank doctor --model Qwen/Qwen3-Reranker-0.6B --dtype int8
  HF_HUB_OFFLINE=1 tsarank doctor --json
"""
_DOCUMENT = "An adult flea lives for two to three months, and a cat that is combed every day has fewer of them. "


def register(subparsers: Any) -> None:
    """Adds `doctor` to the command line."""
    parser = add_command(
        subparsers,
        "doctor",
        "show what this machine has and what is missing",
        _EXAMPLES,
        run,
        common="model dtype device timeout json",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--timeout", type=real(above=0), default=5.0, metavar="S", help="seconds to wait for a response (5)"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")


def machine(args: argparse.Namespace) -> dict[str, str]:
    """Versions, processors, memory, accelerator, and the number format for models."""
    import torch

    from ..models.loading import number_format, resolve_device

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    versions = {name: installed_version(name) for name in ("tsarank", "torch", "transformers")}
    device = resolve_device(args.device)
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "processors": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}, "
        f"torch uses {torch.get_num_threads()} threads",
        "memory": _memory(),
        "GPU": ", ".join(f"{one.name} ({readable_size(one.total_memory)})" for one in gpus) or "none",
        "model runs": f"on {device}, in {number_format(args.dtype, device)}",
    }


def _memory() -> str:
    try:
        return readable_size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return "unknown"


def extras() -> dict[str, str]:
    """For each extra of the package, its missing or outdated packages."""
    from packaging.requirements import Requirement

    distribution = importlib.metadata.metadata("tsarank")
    required = [Requirement(text) for text in importlib.metadata.requires("tsarank") or ()]
    found = {}
    for extra in distribution.get_all("Provides-Extra") or ():
        own = [one for one in required if one.marker is not None and one.marker.evaluate({"extra": extra})]
        missing = [str(one).partition(";")[0].strip() for one in own if not _is_installed(one)]
        if extra != "dev":
            found[f"extra {extra}"] = f"lacks {', '.join(missing)}" if missing else "installed"
    return found


def _is_installed(requirement: Any) -> bool:
    version = installed_version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def caches() -> dict[str, str]:
    """The cache folders and their sizes."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return {
        name: f"{folder}, {readable_size(_size(folder)) if folder.is_dir() else 'does not exist yet'}"
        for name, folder in (("cache", cache_root()), ("Hub's cache", Path(HF_HUB_CACHE)))
    }


def _size(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files)


def network(timeout: float) -> dict[str, str]:
    """Whether the Hub and the package index (for the default model) respond; no requests in offline mode."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    from ..models.default_model import PACKAGE

    if HF_HUB_OFFLINE:
        return dict.fromkeys(("Hub", "registry"), "not checked: HF_HUB_OFFLINE is set")
    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=timeout):
            hub = "reachable"
    except urllib.error.HTTPError as error:
        hub = f"answers with {error.code}"
    except (OSError, ValueError) as error:
        hub = f"cannot be reached ({getattr(error, 'reason', None) or error})"
    # pip uses the user's index settings.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", str(timeout)]
    try:
        done = subprocess.run(
            [*command, "index", "versions", PACKAGE], capture_output=True, timeout=4 * timeout, check=False
        )
        registry = "reachable" if done.returncode == 0 else f"has no {PACKAGE}"
    except subprocess.TimeoutExpired:
        registry = "does not respond"
    return {"Hub": f"{ENDPOINT}: {hub}", "registry": f"{registry} (checked with pip)"}


def speed(args: argparse.Namespace) -> dict[str, str]:
    """Seconds to load the model and to rank ten documents of about 100 tokens. The default model is not downloaded for
    this."""
    from ..models.default_model import installed_gguf, unpacked_folder
    from ..models.resolver import resolve

    source = resolve(args.model)
    here = unpacked_folder().is_dir() or installed_gguf() is not None
    if source.packaged and not here:
        return {"ten documents": f"not measured: {source.name} is downloaded on first use (93 MB)"}
    start = time.perf_counter()
    model = model_from_arguments(args)
    loaded = time.perf_counter() - start
    documents = [f"{place}. {4 * _DOCUMENT}" for place in range(10)]
    model.rank("warm up", documents[:1], batch_tokens=args.batch_tokens)
    start = time.perf_counter()
    model.rank("how long does a flea live", documents, batch_tokens=args.batch_tokens)
    seconds = time.perf_counter() - start
    tokens = model.last_stats["tokens"]
    return {
        "model": f"{source.name}, loaded in {loaded:.1f} s",
        "ten documents": f"{seconds:.2f} s, {tokens / seconds:,.0f} tokens a second",
    }


def run(args: argparse.Namespace) -> int:
    """Show what this machine has: processors, GPU, number format, installed extras, cache folders and their sizes,
    whether the Hub and PyPI respond, and how long ten documents take with the default model or --model.

    Anything that cannot be determined is reported in its line. With HF_HUB_OFFLINE=1 no connection is opened.
    """
    rows: dict[str, str] = {}
    parts = (
        ("machine", lambda: machine(args)),
        ("extras", extras),
        ("caches", caches),
        ("network", lambda: network(args.timeout)),
        ("ten documents", lambda: speed(args)),
    )
    failed: TSARankError | None = None
    for name, find in parts:
        try:
            found = find()
        except TSARankError as error:
            found, failed = {name: f"error: {one_line(str(error))}"}, error
        rows |= found
        if not args.json:
            sys.stdout.writelines(f"{label:<20}  {value}\n" for label, value in found.items())
            sys.stdout.flush()
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    if failed is not None:
        raise failed
    return 0

"""Versions of installed packages and the machine, for records."""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def installed_version(package: str) -> str | None:
    """The version of a distribution, `None` if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of the installed ones of these distributions."""
    found = {package: installed_version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


def cpu_name() -> str:
    """The processor's model name from Linux, else Python's information."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()

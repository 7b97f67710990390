"""Versions of installed packages, for records."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata


def installed_version(package: str) -> str | None:
    """The version of a distribution, `None` where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {package: installed_version(package) for package in packages}
    return {package: version for package, version in found.items() if version is not None}

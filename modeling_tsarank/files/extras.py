"""Import of packages that belong to an optional extra."""

from __future__ import annotations

import importlib
from typing import Any

from modeling_tsarank.ranking_errors import ResourceError


def require(module: str, extra: str = "eval", purpose: str = "") -> Any:
    """Imports `module`, which the extra `extra` of this distribution installs.

    Args:
        module: Name of the module to import, such as `bm25s`.
        extra: Extra that installs it.
        purpose: What needs it, as the subject of the error message.

    Returns:
        The imported module.

    Raises:
        ResourceError: The module is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is installed, but one of its requirements is not: the original message names it
        needed_by = purpose or "This feature"
        raise ResourceError(
            f"{needed_by} needs the Python module '{module}', which is not installed: "
            f"run pip install 'tsarank[{extra}]'"
        ) from error

"""Publishing of a training, by the publisher installed under the entry points `tsarank.publishers`.

Publishing is a higher layer than training, so training does not import it.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Protocol

from modeling_tsarank.ranking_errors import ResourceError


GROUP = "tsarank.publishers"


class Publisher(Protocol):
    """Writes the card of a finished training and publishes its model."""

    def write_card(self, trainer: Any) -> None:
        """Writes the card into the trainer's `output_dir`."""

    def push(self, trainer: Any, message: str | None = None, token: str | None = None) -> str:
        """Publishes the saved model of a training; returns the commit's URL."""


def installed_publisher() -> Publisher:
    """The installed publisher. Raises `ResourceError` if there is none."""
    found = next(iter(entry_points(group=GROUP)), None)
    if found is None:
        raise ResourceError(f"no publisher of models is installed (entry points {GROUP}): install tsarank again")
    publisher: Publisher = found.load()
    return publisher

"""How a training is published: by what the installed packages name under the entry points `tsarank.publishers`.

Publishing stands above training, so training does not import it.
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
        """Publishes what the training saved; returns the commit's address."""


def installed_publisher() -> Publisher:
    """The publisher that is installed. Raises `ResourceError` where none is."""
    found = next(iter(entry_points(group=GROUP)), None)
    if found is None:
        raise ResourceError(f"nothing installed publishes models (entry points {GROUP}): install tsarank again")
    publisher: Publisher = found.load()
    return publisher

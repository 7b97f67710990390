"""One call on a model that other threads use, and may change, at the same time."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


_MODE = threading.Lock()


def snapshot(model: Any) -> Any:
    """The model as it is now, for one call; weights and memory are the model's own.

    Options, tokenizer and document store that another thread sets meanwhile do not reach it, and `last_stats` of two
    calls do not mix: a call hands its own to the model when it is done.
    """
    return copy.copy(model)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode; the last of several calls that overlap puts it back as it was."""
    calls: dict[str, Any] = model.between_calls
    with _MODE:
        running = calls.get("running", 0)
        if not running:
            calls["training"] = model.training
            model.eval()
        calls["running"] = running + 1
    try:
        yield
    finally:
        with _MODE:
            calls["running"] -= 1
            if not calls["running"]:
                model.train(calls["training"])

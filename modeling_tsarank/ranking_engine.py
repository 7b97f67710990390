"""Where a checkpoint's code meets the installed engine, which reads shared and stored documents once.

Without it, pairs are read in plain padded batches, with the same scores.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from .ranking_errors import ModelError
from .ranking_scoring import RankingCancelled, accepts, check_attention, context_length, plan_batches, rope_limits


logger = logging.getLogger(__name__)

# The version of what this file and the engine say to each other.
ENGINE_API = 1
_warned: set[str] = set()


class Task(NamedTuple):
    """What is read for one pair.

    Attributes:
        ids: token ids.
        at: positions in `ids`, ascending, whose outputs are wanted.
        targets: for query likelihood, the token asked for at each of these positions.
        cached: token ids under which a store holds the document's states, where there is a store.
        length: tokens of the whole text, on which some rotary embeddings depend.
    """

    ids: tuple[int, ...]
    at: tuple[int, ...]
    targets: tuple[int, ...]
    cached: tuple[int, ...]
    length: int


def installed_engine(needed_for: str = "") -> Any:
    """The engine of the installed package, or `None` where there is none that this file understands.

    Only ids, numbers, tensors and the plain backbone go to it: a checkpoint's code is another copy than the package's,
    with other classes. Raises `ModelError` where there is none and `needed_for` says what needs it.
    """
    reason = "the package tsarank is not installed"
    try:
        import modeling_tsarank.engine as engine
    except ModuleNotFoundError as error:
        if __name__.startswith("modeling_tsarank.") or error.name not in (
            "modeling_tsarank",
            "modeling_tsarank.engine",
        ):
            raise
    else:
        if engine.OLDEST_API <= ENGINE_API <= engine.ENGINE_API:
            return engine
        reason = (
            f"the installed one serves the engine API {engine.OLDEST_API} to {engine.ENGINE_API}, and this "
            f"checkpoint's code has {ENGINE_API}"
        )
        if reason not in _warned:
            _warned.add(reason)
            logger.warning("the engine of the package tsarank is not used: %s", reason)
    if needed_for:
        raise ModelError(f"{needed_for} needs the engine of the package tsarank, but {reason}")
    return None


def load_errors(name: Any) -> AbstractContextManager[None]:
    """Within, what is raised for a damaged checkpoint is a `ModelError` of one line, where there is an engine."""
    engine = installed_engine()
    return nullcontext() if engine is None else engine.load_errors(name)


def read_values(
    model: Any,
    tasks: Sequence[Task],
    batch_tokens: int,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[list[torch.Tensor], int]:
    """For each task the values `(positions, values)` at its wanted positions, and how many tokens were read.

    Parameters:
        model: a ranking model.
        batch_tokens, show_progress, stop: as in `RankerModel.predict`.
    """
    needed_for = "a store of document states" if model.document_store is not None else model.number_format or ""
    engine = installed_engine(needed_for)
    if engine is not None:
        budget = model.pad_id, batch_tokens, show_progress, stop
        found: tuple[list[torch.Tensor], int] = engine.read(
            model.backbone, [tuple(task) for task in tasks], model._read_out(), model.document_store, *budget
        )
        return found
    values: list[torch.Tensor] = [torch.empty(0)] * len(tasks)
    lengths = [len(task.ids) for task in tasks]
    for batch in plan_batches(lengths, batch_tokens):
        if stop is not None and stop():
            raise RankingCancelled("scoring was cancelled")
        for i, value in zip(batch, model._read_plainly([tasks[i] for i in batch]), strict=True):
            values[i] = value
    return values, sum(lengths)


def logits_at(backbone: Any, input_ids: torch.Tensor, keep: torch.Tensor, behind: int = 0) -> torch.Tensor:
    """A decoder's logits `(kept positions, vocabulary)`; the output head runs on these positions only, where it can.

    Padding must stand on the right, where causal attention never looks: no mask is needed, and the fastest attention
    kernel applies.

    Parameters:
        input_ids: `(rows, length)`.
        keep: boolean `(rows, length)`, the positions wanted.
        behind: tokens of a text behind the last of them.
    """
    check_attention(backbone)
    engine = installed_engine() if rope_limits(backbone.config.get_text_config()) else None
    if engine is not None:
        last = keep.shape[1] - keep.flip(-1).int().argmax(-1)
        backbone = engine.with_own_lengths(backbone, (last + behind).tolist())
    if accepts(backbone.forward, "logits_to_keep"):
        kept: torch.Tensor = backbone(input_ids=input_ids, use_cache=False, logits_to_keep=keep).logits
        return kept
    logits: torch.Tensor = backbone(input_ids=input_ids, use_cache=False).logits[keep]
    return logits


def readable_length(backbone: Any) -> int | None:
    """How many tokens a text may have, `None` if the configuration does not say.

    Some rotary embeddings depend on the longest text of a batch. Without the engine, none may be so long.
    """
    limits = rope_limits(backbone.config.get_text_config())
    if not limits:
        return context_length(backbone.config)
    engine = installed_engine()
    found: int | None = min(limit for limit, _ in limits) if engine is None else engine.readable_length(backbone)
    return found


_MODE = threading.Lock()


@contextmanager
def while_idle(model: Any, what: str) -> Iterator[None]:
    """Within, no call on the model begins. Raises `ModelError`, with `what` is to be done, if one is running."""
    with _MODE:
        if model._running_calls["running"]:
            raise ModelError(f"{what} would change the scores of a call that is running; wait until it is done")
        yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode; the last of several calls that overlap puts it back as it was."""
    calls = model._running_calls
    with _MODE:
        if not calls["running"]:
            calls["training"] = model.training
            model.eval()
        calls["running"] += 1
    try:
        yield
    finally:
        with _MODE:
            calls["running"] -= 1
            if not calls["running"]:
                model.train(calls["training"])

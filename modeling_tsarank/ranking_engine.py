"""The interface of a checkpoint's code to the installed engine, which encodes shared and cached documents once.

Without it, pairs are scored in plain padded batches, with the same scores.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .ranking_errors import ModelError
from .ranking_scoring import (
    RankingCancelled,
    accepts,
    check_attention,
    gathered_log_probs,
    pad_right,
    plan_batches,
    with_answer_head,
)


logger = logging.getLogger(__name__)

# The version of the interface between this file and the engine, and the engine's module.
ENGINE_API = 3
PLACE = "modeling_tsarank.models.installed"
_warned: set[str] = set()


class Task(NamedTuple):
    """The forward pass of one pair.

    Attributes:
        ids: token ids.
        at: positions in `ids`, ascending, whose outputs are wanted.
        targets: for query likelihood, the target token at each of these positions.
        cached: token ids under which a store caches the document's states, if there is a store.
        length: number of tokens of the whole text, on which some rotary embeddings depend.
    """

    ids: tuple[int, ...]
    at: tuple[int, ...]
    targets: tuple[int, ...]
    cached: tuple[int, ...]
    length: int


def installed_engine(needed_for: str = "") -> Any:
    """The engine of the installed package, or `None` if there is none with a compatible API.

    Only ids, numbers, tensors and the plain backbone are passed to it: a checkpoint's code is another copy than the
    package's, with other classes. Raises `ModelError` if there is none and `needed_for` names a feature that needs it.
    """
    reason = "the package tsarank is not installed"
    try:
        import modeling_tsarank.models.installed as engine
    except ModuleNotFoundError as error:
        if __name__.startswith("modeling_tsarank.") or not f"{PLACE}.".startswith(f"{error.name}."):
            raise
    else:
        if engine.OLDEST_API <= ENGINE_API <= engine.ENGINE_API:
            return engine
        reason = (
            f"the installed one supports the engine API {engine.OLDEST_API} to {engine.ENGINE_API}, and this "
            f"checkpoint's code has {ENGINE_API}"
        )
        if reason not in _warned:
            _warned.add(reason)
            logger.warning("the engine of the package tsarank is not used: %s", reason)
    if needed_for:
        raise ModelError(f"{needed_for} needs the engine of the package tsarank, but {reason}")
    return None


def read_values(
    model: Any,
    tasks: Sequence[Task],
    batch_tokens: int,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[list[torch.Tensor], int]:
    """For each task the values `(positions, values)` at its wanted positions, and the number of processed tokens.

    Parameters:
        model: a ranking model.
        batch_tokens, show_progress, stop: as in `RankerModel.predict`.
    """
    check_attention(model.backbone)
    if model.document_store is not None:
        model.check_cacheable()
    if not tasks:
        return [], 0
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
        for i, value in zip(batch, read_plainly(model, [tasks[i] for i in batch]), strict=True):
            values[i] = value.cpu()
    return values, sum(lengths)


def read_plainly(model: Any, tasks: Sequence[Task]) -> list[torch.Tensor]:
    """For each task the values `(positions, values)`, from one padded batch; with gradients in training."""
    ids, mask = pad_right([task.ids for task in tasks], model.pad_id, model.device)
    if model.config.is_encoder_decoder or model.own_head:
        return list(model.answer_logits(ids, mask)[:, None])
    keep = torch.zeros(ids.shape, dtype=torch.bool)
    for row, task in enumerate(tasks):
        keep[row, list(task.at)] = True
    targets = torch.tensor([token for task in tasks for token in task.targets], device=model.device)
    behind = tasks[0].length - len(tasks[0].ids)
    values = values_at(model.backbone, ids, keep.to(model.device), model._read_out(), targets, behind)
    return list(values.split([len(task.at) for task in tasks]))


def logits_at(backbone: Any, input_ids: torch.Tensor, keep: torch.Tensor, behind: int = 0) -> torch.Tensor:
    """A decoder's logits `(kept positions, vocabulary)`; the output head runs only there, if the model allows it.

    Needs right padding, to which causal attention never attends: no mask is necessary, and the fastest attention
    kernel can be used.

    Parameters:
        input_ids: `(rows, length)`.
        keep: boolean `(rows, length)`, the wanted positions.
        behind: tokens of a text after the last of them.
    """
    check_attention(backbone)
    engine = installed_engine()
    if engine is not None:
        last = keep.shape[1] - keep.flip(-1).int().argmax(-1)
        backbone = engine.with_own_lengths(backbone, last + behind)
    takes_keep = accepts(backbone.forward, "logits_to_keep")
    inputs = {"logits_to_keep": keep} if takes_keep else {}
    logits: torch.Tensor = backbone(input_ids=input_ids, use_cache=False, **inputs).logits
    return logits if takes_keep else logits[keep]


def values_at(
    backbone: Any,
    input_ids: torch.Tensor,
    keep: torch.Tensor,
    read_out: tuple[str, Sequence[int]],
    targets: torch.Tensor | None = None,
    behind: int = 0,
) -> torch.Tensor:
    """A decoder's output values at the kept positions, `(positions, values)` float32.

    Parameters:
        input_ids, keep, behind: as in `logits_at`.
        read_out: `token_log_probs` of `targets` `(positions,)`, or `answer_logits` and the token ids.
    """
    kind, tokens = read_out
    if kind == "token_log_probs" and targets is not None:
        return gathered_log_probs(logits_at(backbone, input_ids, keep, behind), targets)[:, None]
    reading = with_answer_head(backbone, tokens)
    logits = logits_at(reading or backbone, input_ids, keep, behind)
    return logits if reading else logits[:, list(tokens)]


def readable_length(backbone: Any) -> int | None:
    """Maximum number of tokens of a text, `None` if the configuration has no limit."""
    engine = installed_engine()
    if engine is not None:
        found: int | None = engine.readable_length(backbone)
        return found
    config = backbone.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    limit = next((limit for name in names if (limit := getattr(config, name, None) or 0) > 0), None)  # XLNet has -1
    # LongRoPE rotates all keys of a batch by its longest text's length: without the engine no text may be so long.
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict) and kind.get("rope_type") == "longrope"]
    return min((kind["original_max_position_embeddings"] for kind in kinds), default=limit)


_MODE = threading.Lock()


@contextmanager
def while_idle(model: Any, what: str) -> Iterator[None]:
    """No call on the model starts within it. Raises `ModelError`, which names `what`, if one is running."""
    with _MODE:
        if model._running_calls["running"]:
            raise ModelError(f"{what} would change the scores of a call that is running; wait until it is done")
        yield


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model is in evaluation mode within it; the last of overlapping calls restores its mode."""
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

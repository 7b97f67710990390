"""Options of `predict` and `rank`: passages, fusion, probabilities, CrossEncoder's options."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from ..ranking_errors import InputError
from ..ranking_options import check_choice, whole_number
from ..ranking_scoring import check_batch_tokens
from ..ranking_text import document_list
from .calibration import Calibration
from .fusion import FusionSetting, fuse, fusion_setting
from .passages import PassageRanker


logger = logging.getLogger(__name__)

OUTPUTS = ("score", "probability")
# Options of CrossEncoder's methods that are set elsewhere here.
_ELSEWHERE = {
    **dict.fromkeys(("prompt", "prompt_name"), "the prompt is one of the ranking options (`set_options`)"),
    **dict.fromkeys(("pool", "chunk_size"), "`tsarank score` uses several processes"),
    "device": "move the model with `to`",
    "num_workers": "texts are tokenized in the same process",
}


def rank(
    ranker: Any,
    query: str,
    documents: Sequence[Any],
    top_k: int | None = None,
    return_documents: bool = False,
    *,
    first_stage_scores: Sequence[float] | None = None,
    weight: float | None = None,
    fusion: FusionSetting | str | os.PathLike[str] | None = None,
    output: str = "score",
    threshold: float | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
    passages: str | None = None,
    passage_length: int | None = None,
    passage_stride: int | None = None,
    convert_to_numpy: bool = True,
    convert_to_tensor: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Ranked documents, best first, from any ranker: of pairs, of passages, of lists, or behind a URL.

    Args:
        ranker: An object with `rank(query, documents)`.
        query, documents, top_k, return_documents: As in `RankerModel.rank`.
        first_stage_scores: Shape `(documents,)`: fused with the ranker's, by `weight` or `fusion`. The rows then have
            the fused score.
        weight: Weight of the first stage, in [0, 1], of scores normalised to [0, 1] (min-max).
        fusion: A file of `tsarank tune-fusion`, or a setting, instead of `weight`.
        output: `probability` adds the `probability` of relevance to every row, by the calibration of the ranker's own
            scores.
        threshold: Only documents of at least this probability; without a calibration, of this score, with a warning.
        calibration: A calibration or its file, instead of the ranker's own (`ranker.calibration`), which is for whole
            documents and not used with `passages`.
        passages, passage_length, passage_stride: How to split documents into passages, in tokens, and how to aggregate
            their scores: see `PassageRanker`. Rows then have the best `passage`.
        convert_to_numpy, convert_to_tensor: Have no effect: rows have plain numbers, like CrossEncoder's.
        options: Further arguments of `ranker.rank`; for a listwise ranker, those that it supports.

    Raises:
        InputError: incompatible options; also the errors of `ranker.rank`.
    """
    check_choice("output", output, OUTPUTS)
    documents = document_list(documents)
    ranker = by_passages(ranker, passages, passage_length, passage_stride)
    top_k = None if top_k is None else whole_number(top_k, "top_k")
    setting = check_fusion(first_stage_scores, weight, fusion, len(documents))
    if calibration is None:
        calibration = getattr(ranker, "calibration", None)
    elif not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    if calibration is None and output == "probability":
        raise InputError(
            "a probability needs a calibration of this ranker: fit one with `tsarank calibrate` and set "
            "`model.calibration`, or pass `calibration`"
        )
    if threshold is not None and (
        isinstance(threshold, bool) or not isinstance(threshold, Real) or not math.isfinite(threshold)
    ):
        raise InputError(f"threshold must be a finite number, got {threshold!r:.80}")
    if calibration is None and threshold is not None:
        logger.warning(
            "no calibration is given: the threshold %g applies to raw scores, which mean something else for every "
            "query and model; fit one with `tsarank calibrate`",
            threshold,
        )
    if calibration is not None and threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"the threshold is {threshold!r}, but a probability is in [0, 1]")

    parameters = inspect.signature(ranker.rank).parameters
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    given = {name: value for name, value in options.items() if takes_all or name in parameters}
    found = list(ranker.rank(query, documents, **given))
    rows = [{"score": float(len(found) - place), **row} for place, row in enumerate(found)]
    compared = own = [row["score"] for row in rows]
    if calibration is not None and (output == "probability" or threshold is not None):
        compared = calibration.probabilities(own).tolist()
        for row, value in zip(rows, compared, strict=True):
            row["probability"] = value
    keep = [threshold is None or value >= threshold for value in compared]
    if setting is not None and first_stage_scores is not None:
        first = [float(first_stage_scores[row["corpus_id"]]) for row in rows]
        for row, value in zip(rows, fuse(own, first, setting.weight, setting.normalization), strict=True):
            row["score"] = float(value)
    kept = [row for row, wanted in zip(rows, keep, strict=True) if wanted]
    if setting is not None:
        kept.sort(key=lambda row: (-row["score"], row["corpus_id"]))
    for row in kept if return_documents else ():
        row["text"] = documents[row["corpus_id"]]
    return kept[:top_k]


def check_fusion(scores: Any, weight: Any, fusion: Any, count: int) -> FusionSetting | None:
    """How to fuse `count` first-stage scores, `None` without scores. Raises `InputError` like `rank`."""
    if scores is None:
        if weight is not None or fusion is not None:
            raise InputError("weight and fusion need first_stage_scores as well")
        return None
    if (weight is None) == (fusion is None):
        raise InputError("first_stage_scores need a weight in [0, 1], or fusion, a file of `tsarank tune-fusion`")
    values = np.asarray(scores)
    if values.shape != (count,) or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise InputError(f"first_stage_scores must be {count} finite numbers, one for each document")
    return FusionSetting(weight) if fusion is None else fusion_setting(fusion)


def by_passages(ranker: Any, passages: str | None, length: int | None, stride: int | None) -> Any:
    """The ranker itself without `passages`, or a `PassageRanker`. Raises `InputError` as `PassageRanker`."""
    if passages is not None:
        return PassageRanker(ranker, passages, length, stride)
    if length is not None or stride is not None:
        raise InputError("passage_length and passage_stride need passages, such as max")
    return ranker


RANK_OPTIONS = frozenset(
    name for name, one in inspect.signature(rank).parameters.items() if one.kind is one.KEYWORD_ONLY
)
"""The options that `RankerModel.rank` passes to `rank` here."""


def predict(
    model: Any,
    pairs: Any,
    instruction: str | None = None,
    batch_tokens: int | None = None,
    show_progress: bool | None = None,
    stop: Callable[[], bool] | None = None,
    *,
    batch_size: int | None = None,
    show_progress_bar: bool | None = None,
    activation_fn: Callable[[Any], Any] | None = None,
    apply_softmax: bool | None = False,
    passages: str | None = None,
    passage_length: int | None = None,
    passage_stride: int | None = None,
    convert_to_numpy: bool = True,
    convert_to_tensor: bool = False,
    **options: Any,
) -> Any:
    """`model.predict` with the options of CrossEncoder's `predict`.

    Args:
        model: A `RankerModel`.
        pairs, instruction, batch_tokens, show_progress, stop: As in `RankerModel.predict`.
        batch_size: Limits a batch to the tokens of so many pairs of maximum length; `batch_tokens` is the direct
            option. Batches are formed by tokens, and are never larger than by default.
        show_progress_bar: Same as `show_progress`.
        activation_fn: Applied to the scores, a float32 tensor `(pairs, 1)`.
        apply_softmax: Has no effect with one score per pair, as in CrossEncoder.
        passages, passage_length, passage_stride: See `rank`.
        convert_to_numpy: False returns a list of tensors.
        convert_to_tensor: Return a tensor on the model's device; overrides `convert_to_numpy`.
        options: Not supported: other options of CrossEncoder.

    Raises:
        InputError: for `options`; the message names what to use instead.
    """
    import torch

    for name in options:
        raise InputError(f"predict does not support {name}: {_ELSEWHERE.get(name, 'see RankerModel.predict')}")
    if batch_size is not None:
        most = whole_number(batch_size, "batch_size") * model.options.max_length
        batch_tokens = min(most, check_batch_tokens(batch_tokens, model.device))
    shown = show_progress_bar if show_progress is None else show_progress
    ranker = by_passages(model, passages, passage_length, passage_stride)
    scores = ranker.predict(pairs, instruction=instruction, batch_tokens=batch_tokens, show_progress=shown, stop=stop)
    values = torch.from_numpy(np.asarray(scores)).to(model.device)
    if activation_fn is not None:
        values = activation_fn(values.reshape(-1, 1)).reshape(values.shape)
    if convert_to_tensor:
        return values
    if convert_to_numpy:
        return values.float().cpu().numpy()[()]
    return list(values) if values.ndim else values

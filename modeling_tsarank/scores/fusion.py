"""Fusing a reranker's scores with the first stage's; used by evaluation, `rank` and the service.

The fused score of a document is `(1 - weight) * reranker + weight * first_stage`, each score normalised within its
query first, over the documents that the reranker scored.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..files.reading import read_saved
from ..files.writing import write_json
from ..ranking_errors import InputError


Normalization = Literal["minmax", "zscore", "rrf"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
RRF_K = 60
"""The constant of reciprocal rank fusion, from its paper."""


@dataclass(frozen=True)
class FusionSetting:
    """How to fuse; `tsarank tune-fusion` writes one with its origin, a plain `--interpolate 0.3` creates one without.

    Attributes:
        weight: Weight of the first stage, in [0, 1].
        normalization: `minmax`, `zscore` or `rrf`, per query; see `normalize`.
        measure: The tuned objective: a measure, or `likelihood`; or None.
        value: Its mean over the development queries at `weight`.
        qrels_hash: Digest of the judgments it was tuned on (`eval.fusion.hash_qrels`).
        query_hashes: One digest per development query and its judgments: tells overlapping splits apart.
    """

    weight: float
    normalization: Normalization = "minmax"
    measure: str | None = None
    value: float | None = None
    qrels_hash: str | None = None
    query_hashes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.weight, bool) or not isinstance(self.weight, Real) or not 0 <= self.weight <= 1:
            raise InputError(
                f"the interpolation weight is {self.weight!r}, but must be in [0, 1]: 0 is the reranker alone, "
                "1 the first stage alone"
            )
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "query_hashes", tuple(self.query_hashes))
        if self.normalization not in NORMALIZATIONS:
            raise InputError(
                f"unknown normalization {self.normalization!r}; choose one of {', '.join(NORMALIZATIONS)}"
            )

    def save(self, path: Path) -> None:
        """Writes the setting as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FusionSetting:
        """Loads a saved setting.

        Raises:
            InputError: no such file, not JSON, missing or unknown fields, or a weight out of range.
        """
        return read_saved(cls, path, "tsarank tune-fusion")


def fusion_setting(given: Any, normalization: Any = None) -> FusionSetting:
    """The setting from a weight (a number, or its text), a file of `tsarank tune-fusion` or a setting.

    Args:
        given: One of the above.
        normalization: With a weight, instead of `minmax`; with a file it must equal the file's.

    Raises:
        InputError: See `FusionSetting.load`.
    """
    if isinstance(given, FusionSetting):
        return given
    try:
        weight = given if isinstance(given, Real) else float(given)
    except (TypeError, ValueError):
        setting = FusionSetting.load(given)
        if normalization not in (None, setting.normalization):
            raise InputError(
                f"{given} was tuned with {setting.normalization}, got --normalize {normalization}: leave it out"
            ) from None
        return setting
    return FusionSetting(weight, normalization or "minmax")  # type: ignore[arg-type]


def normalize(scores: Sequence[float] | np.ndarray, normalization: Normalization) -> np.ndarray:
    """Brings the scores of one query's candidates to a common scale.

    Args:
        scores: Shape `(n,)`, finite.
        normalization: `minmax` maps the lowest to 0 and the highest to 1; `zscore` subtracts the mean and divides by
            the (population) standard deviation; `rrf` is 1 / (60 + rank), equal scores share the best rank:
            with the weight 0.5, reciprocal rank fusion (Cormack et al., 2009).

    Returns:
        Shape `(n,)`, float64; all zeros if all candidates have the same score, which gives no order.

    Raises:
        InputError: a score is infinite, as is possible in a run file, or NaN.
    """
    # Halved before subtracting: the difference of two very large doubles would overflow.
    halves = np.asarray(scores, dtype=np.float64) / 2
    if not np.isfinite(halves).all():
        raise InputError(f"scores of {2 * halves[~np.isfinite(halves)][0]} cannot be fused; give finite ones")
    spread = halves.max() - halves.min() if halves.size else 0.0
    if spread == 0:
        return np.zeros_like(halves)
    if normalization == "rrf":
        return 1 / (RRF_K + 1 + np.searchsorted(np.sort(-halves), -halves))
    scaled = (halves - halves.min()) / spread
    return scaled if normalization == "minmax" else (scaled - scaled.mean()) / scaled.std()


def fuse(
    reranked: Sequence[float] | np.ndarray, first: Sequence[float], weight: float, normalization: Normalization
) -> np.ndarray:
    """Fused scores `(n,)`, float64, of one query's documents from the reranker's `(n,)` and the first stage's."""
    return (1 - weight) * normalize(reranked, normalization) + weight * normalize(first, normalization)


def fuse_query(
    reranked: Mapping[str, float], first: Mapping[str, float], weight: float, normalization: Normalization
) -> dict[str, float]:
    """Fused scores of one query's reranked documents, all of which the first stage must have scored as well."""
    fused = fuse(list(reranked.values()), [first[one] for one in reranked], weight, normalization)
    return dict(zip(reranked, fused.tolist(), strict=True))

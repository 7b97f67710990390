"""Calibration: from the scores of one ranker to probabilities of relevance.

A ranker's scores order the documents of one query; they are not probabilities, and a threshold on them means something
else for each query and model. `tsarank calibrate` fits the map from scores to probabilities on judged queries:

    calibration = Calibration.load("calibration.json")
    probabilities = calibration.probabilities([row["score"] for row in ranker.rank(query, documents)])
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ..files.reading import read_saved
from ..files.writing import write_json
from ..ranking_errors import InputError


CALIBRATION_FILE = "calibration.json"
"""Its file name next to a ranker's weights, where `load_ranker` finds it."""
METHODS = ("platt", "isotonic")
NORMALIZATIONS = ("none", "zscore")


@dataclass(frozen=True)
class Calibration:
    """A map from scores to probabilities of relevance.

    Attributes:
        method: `platt`, the logistic function of a linear function of the score (Platt, 1999), or `isotonic`, a
            nondecreasing piecewise linear function (Zadrozny and Elkan, 2002).
        normalization: `none`, or `zscore`: over the scores of one query's documents, which must be passed together.
        scores: Shape `(2,)` for `platt`: slope and intercept. For `isotonic` the scores at the knots, increasing.
        values: For `isotonic` the probabilities at the knots, nondecreasing; empty for `platt`.
        origin: The data that it was fitted on and its quality on held-out queries.
    """

    method: str
    normalization: str
    scores: tuple[float, ...]
    values: tuple[float, ...] = ()
    origin: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in METHODS or self.normalization not in NORMALIZATIONS:
            raise InputError(
                f"unknown calibration {self.method!r:.40} of {self.normalization!r:.40} scores; expected one of "
                f"{', '.join(METHODS)}, of {' or '.join(NORMALIZATIONS)}"
            )
        for name in ("scores", "values"):
            numbers = np.asarray(getattr(self, name))
            if numbers.ndim != 1 or (
                numbers.size and (numbers.dtype.kind not in "if" or not np.isfinite(numbers).all())
            ):
                raise InputError(f"a calibration's {name} must be finite numbers")
            object.__setattr__(self, name, tuple(map(float, numbers)))
        if not isinstance(self.origin, dict):
            raise InputError("a calibration's origin must be an object")
        if self.method == "platt":
            fits = len(self.scores) == 2 and not self.values
        else:
            fits = len(self.scores) == len(self.values) > 0
            fits = fits and all(a <= b for row in (self.scores, self.values) for a, b in pairwise(row))
            fits = fits and 0 <= self.values[0] <= self.values[-1] <= 1
        if not fits:
            raise InputError(f"invalid parameters of a calibration by {self.method}")

    def probabilities(self, scores: Sequence[float] | np.ndarray) -> np.ndarray:
        """Probabilities of relevance.

        Args:
            scores: Shape `(n,)`: scores of the ranker that it was fitted for; with `zscore` those of one query.

        Returns:
            Shape `(n,)`, float64, in the order given.
        """
        given = normalized(np.asarray(scores, dtype=np.float64), self.normalization)
        if self.method == "platt":
            slope, intercept = self.scores
            return 1 / (1 + np.exp(-np.clip(slope * given + intercept, -700, 700)))
        return np.interp(given, self.scores, self.values)

    @property
    def rule(self) -> str:
        """A description of the function and its origin."""
        given = "score" if self.normalization == "none" else f"{self.normalization} of the query's scores"
        if self.method == "platt":
            slope, intercept = self.scores
            done = f"sigmoid({slope:.4g} x {given}{f' {intercept:+.4g}' if intercept else ''})"
        else:
            done = f"isotonic function of the {given}"
        if self.origin.get("published"):
            return f"{done}, as published with the model"
        return f"{done}, fitted on {self.origin.get('queries', 'an unknown number of')} queries"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Loads a saved calibration. Raises `InputError` for a missing file or one that is not a calibration."""
        return read_saved(cls, path, "tsarank calibrate")


def normalized(scores: np.ndarray, normalization: str) -> np.ndarray:
    """The scores of one query, shape `(n,)`, normalized; equal scores all become 0."""
    if normalization == "none" or not scores.size:
        return scores
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)

"""Mixing a reranker's scores with its first stage's, and choosing the weight on a development split.

The fused score of a document is `(1 - weight) * reranker + weight * first_stage`, each score normalised within its
query first, by min-max or z-score over the candidates that the reranker scored. Only those are mixed; the others
follow in first-stage order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from modeling_tsarank.eval.metrics import canonical_measure, compute_metrics
from modeling_tsarank.eval.run_files import ranked
from modeling_tsarank.eval.types import Qrels, Run
from modeling_tsarank.files.hashes import hash_parts
from modeling_tsarank.files.reading import read_json
from modeling_tsarank.files.writing import write_json
from modeling_tsarank.ranking_errors import InputError
from modeling_tsarank.ranking_options import whole_number


Normalization = Literal["minmax", "zscore"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


@dataclass(frozen=True)
class FusionSetting:
    """How to mix; `tsarank tune-fusion` writes one with its origin, a plain `--interpolate 0.3` makes one without.

    Attributes:
        weight: Share of the first stage, in [0, 1].
        normalization: `minmax` or `zscore`, per query.
        measure: The measure that was tuned, or None.
        value: Its mean over the development queries at `weight`.
        qrels_hash: Digest of the judgments it was tuned on (`hash_qrels`).
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
                f"the interpolation weight is {self.weight!r}, but must lie in [0, 1]: 0 is the reranker alone, "
                "1 the first stage alone"
            )
        object.__setattr__(self, "weight", float(self.weight))
        if self.normalization not in NORMALIZATIONS:
            raise InputError(
                f"unknown normalization {self.normalization!r}; choose one of {', '.join(NORMALIZATIONS)}"
            )

    def refuse_tuned_split(self, qrels: Qrels, name: str) -> None:
        """Refuses to report on queries that the weight was tuned on.

        Raises:
            InputError: `qrels` are the tuned judgments, or share a judged query with them.
        """
        if self.qrels_hash is None:
            return
        reported = hash_queries(qrels)
        shared = len(set(reported) & set(self.query_hashes))
        if shared or hash_qrels(qrels) == self.qrels_hash:
            raise InputError(
                f"the fusion weight was tuned on {shared or len(reported)} of the {len(reported)} judged queries "
                f"of {name}: tune it on another split than the one that is reported"
            )

    def save(self, path: Path) -> None:
        """Writes the setting as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> FusionSetting:
        """Reads what `save` wrote.

        Raises:
            InputError: no such file, not JSON, missing or unknown fields, or a weight out of range.
        """
        fields = read_json(path)
        try:
            setting = cls(**fields)
        except TypeError as error:
            raise InputError(
                f"{path} is not a fusion setting ({error}); give a weight in [0, 1] or a file of `tsarank tune-fusion`"
            ) from error
        return cls(**{**asdict(setting), "query_hashes": tuple(setting.query_hashes)})


@dataclass(frozen=True)
class TunedFusion:
    """The chosen setting with the whole curve: `curve[i]` is the measure's mean at `weights[i]`."""

    setting: FusionSetting
    weights: list[float]
    curve: list[float]


def hash_qrels(qrels: Qrels) -> str:
    """Digest of judgments, whatever their order and file format."""
    return hash_parts(hash_queries(qrels))


def hash_queries(qrels: Qrels) -> tuple[str, ...]:
    """One short digest for every query id with its judgments, in the order of the ids."""
    return tuple(
        hash_parts([query_id, json.dumps(sorted(qrels[query_id].items()), ensure_ascii=False)])[:16]
        for query_id in sorted(qrels)
    )


def normalize(scores: Sequence[float] | np.ndarray, normalization: Normalization) -> np.ndarray:
    """Brings the scores of one query's candidates to a common scale.

    Args:
        scores: Shape `(n,)`, finite.
        normalization: `minmax` maps the lowest to 0 and the highest to 1; `zscore` subtracts the mean and divides by
            the (population) standard deviation.

    Returns:
        Shape `(n,)`, float64; all zeros where the candidates all have one score, for such scores order nothing.
    """
    # Halved before subtracting: the difference of two doubles near the largest one would overflow.
    halves = np.asarray(scores, dtype=np.float64) / 2
    spread = halves.max() - halves.min() if halves.size else 0.0
    if spread == 0:
        return np.zeros_like(halves)
    scaled = (halves - halves.min()) / spread
    return scaled if normalization == "minmax" else (scaled - scaled.mean()) / scaled.std()


def append_tail(head: Mapping[str, float], tail: Sequence[str]) -> dict[str, float]:
    """Places documents that were not reranked below those that were, in the given order.

    The steps are wide enough to survive trec_eval's single precision, so that the file ranks as intended.

    Args:
        head: Scores of the reranked documents, kept as they are.
        tail: Other documents, best first.
    """
    lowest = min(head.values(), default=0.0)
    step = max(1.0, abs(lowest) * 2.0**-18)
    combined = dict(head)
    combined.update({document_id: lowest - step * rank for rank, document_id in enumerate(tail, start=1)})
    return combined


def fuse_query(
    reranked: Mapping[str, float], first: Mapping[str, float], weight: float, normalization: Normalization
) -> dict[str, float]:
    """Fused scores of one query's reranked documents, all of which the first stage must have scored as well."""
    ids = list(reranked)
    own = normalize([reranked[document_id] for document_id in ids], normalization)
    other = normalize([first[document_id] for document_id in ids], normalization)
    fused = (1 - weight) * own + weight * other
    return {document_id: float(score) for document_id, score in zip(ids, fused, strict=True)}


def fuse_runs(
    reranked: Run,
    first: Run,
    weight: float,
    normalization: Normalization = "minmax",
    top_k: int | None = None,
) -> Run:
    """Mixes two runs, query by query.

    Args:
        reranked: The reranker's run; for each query its documents must be among the first stage's.
        first: The first stage's run. Documents that only it has follow in its own order.
        weight: Share of the first stage, in [0, 1].
        normalization: `minmax` or `zscore`.
        top_k: Mix only the first stage's `top_k` best, for a reranked run with an appended tail.

    Raises:
        InputError: a reranked query or document that the first stage does not have.
    """
    fused: Run = {}
    for query_id, first_scores in first.items():
        scores = dict(reranked.get(query_id, {}))
        order = ranked(first_scores)
        unknown = next((document_id for document_id in scores if document_id not in first_scores), None)
        if unknown is not None:
            raise InputError(
                f"document {unknown!r} of query {query_id!r} is in the reranked run and not in the first stage's run; "
                "give the run that was reranked"
            )
        if top_k is not None:
            scores = {document_id: scores[document_id] for document_id in order[:top_k] if document_id in scores}
        tail = [document_id for document_id in order if document_id not in scores]
        fused[query_id] = append_tail(fuse_query(scores, first_scores, weight, normalization), tail)
    missing = next((query_id for query_id in reranked if query_id not in first), None)
    if missing is not None:
        raise InputError(f"query {missing!r} is in the reranked run and not in the first stage's run")
    return fused


def tune_fusion(
    reranked: Run,
    first: Run,
    qrels: Qrels,
    measure: str = "ndcg@10",
    normalization: Normalization = "minmax",
    steps: int = 20,
    top_k: int | None = None,
) -> TunedFusion:
    """Chooses the weight with the best mean of `measure`, on a grid of `steps + 1` weights from 0 to 1.

    Equal weights are decided for the smallest, that is for the reranker.

    Args:
        reranked: The reranker's run over the development queries.
        first: The first stage's run over them.
        qrels: The development split's judgments; never those that will be reported.
        measure: A name that `compute_metrics` knows.
        normalization: `minmax` or `zscore`.
        steps: Number of intervals of the grid.
        top_k: See `fuse_runs`.

    Raises:
        InputError: `steps` below 1, no query in common, an unknown measure, or runs that do not belong together.
    """
    steps = whole_number(steps, "the number of steps")
    measure = canonical_measure(measure)
    weights = [step / steps for step in range(steps + 1)]
    curve: list[float] = []
    for weight in weights:
        result = compute_metrics(fuse_runs(reranked, first, weight, normalization, top_k), qrels, measures=(measure,))
        curve.append(result.aggregate[measure])
    best = max(range(len(weights)), key=lambda index: (round(curve[index], 12), -index))
    setting = FusionSetting(
        weight=weights[best],
        normalization=cast(Normalization, normalization),
        measure=measure,
        value=curve[best],
        qrels_hash=hash_qrels(qrels),
        query_hashes=hash_queries(qrels),
    )
    return TunedFusion(setting, weights, curve)
